"""Configs of small models on made data: those of tests/tiny_run.py with the data sections of the quickstart."""

import copy

from entries import get_config
from tiny_run import config

STEPS = 20
LANGUAGE = ["^projectors/", "^backbone/"]  # frozen encoders compile in less time
VARIANTS = {"splice": "projector", "xattn": "flamingo"}
PLACES = {"openmoji": "names", "easy_vqa/captions": "captions", "easy_vqa/conversations": "conversations"}


def quickstart(folder, fusion="splice", **changes):
    """Both stages of 20 steps, on what the quickstart's stages are trained on, but for the size of pictures."""
    raw = config(folder, fusion, steps=STEPS, **changes)
    published = get_config(f"quickstart.py:variant={VARIANTS[fusion]}")
    for stage in ("pretrain", "sft"):
        raw[stage]["data"] = _on_made_data(published[stage]["data"], folder)
        # Adam would make much of the rounding of tiny gradients, and large steps of all rounding.
        raw[stage]["optimizer"] |= dict(eps=1e-3, lr=1e-3)
    return raw


def _on_made_data(data, folder):
    data = copy.deepcopy(data)
    data["media"]["size"] = 16
    for source in data["sources"].values():
        (name,) = (file for place, file in PLACES.items() if f":{place}/" in source["path"])
        source |= dict(path=str(folder / f"{name}.jsonl"), root=str(folder))
    return data


def one_stage(folder, fusion="splice", **changes):
    """Instruction tuning alone."""
    raw = quickstart(folder, fusion, **changes)
    del raw["pretrain"]
    return raw | dict(stages=["sft"])


def splice(folder):
    """Instruction tuning of all parameters, then adapters on what that has trained, the rest in bfloat16."""
    raw = one_stage(folder)
    adapters = dict(lora=[("^backbone/layers/", dict(rank=4, alpha=8))])
    raw["adapters"] = raw["sft"] | adapters | dict(trainable=["^projectors/", "/lora_a$", "/lora_b$"])
    raw["precision"]["frozen_dtype"] = "bfloat16"
    return raw | dict(stages=["sft", "adapters"])


def cross_attention(folder):
    raw = one_stage(folder, "xattn", trainable=["^projectors/", "^backbone/xattn/"])
    raw["model"]["backbone"]["xattn"]["every"] = 2
    return raw


def local_and_global(folder):
    raw = one_stage(folder, trainable=LANGUAGE)
    raw["model"]["backbone"] |= dict(attention_pattern=["local", "global"], sliding_window=8)
    return raw


def accumulated(folder):
    """A batch in two parts, the running mean of the parameters, and losses on held-out data."""
    raw = one_stage(folder, accumulate=2, ema=0.9, trainable=LANGUAGE)
    raw["model"]["backbone"]["depth"] = 1
    raw["sft"]["valid"] = dict(every=10, data=quickstart(folder)["pretrain"]["data"])
    return raw


def contrast(folder):
    loss = dict(type="objectives.contrastive.image_text", temperature=0.07, weight=1.0)
    return one_stage(folder, losses=dict(image_text=loss), trainable=["^projectors/"])


RUNS = {
    "splice": splice,
    "cross-attention": cross_attention,
    "local-and-global": local_and_global,
    "accumulated": accumulated,
    "contrast": contrast,
}
