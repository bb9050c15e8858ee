"""Configs of small models on made data: those of tests/tiny_run.py with the data sections of the quickstart."""

import copy

from entries import get_config
from tiny_run import config

STEPS = 20
VARIANTS = {"splice": "projector", "xattn": "flamingo"}
PLACES = {"openmoji": "names", "easy_vqa/captions": "captions", "easy_vqa/conversations": "conversations"}


def quickstart(folder, fusion="splice", **changes):
    """Both stages of 20 steps, on what the quickstart's stages are trained on, but for the size of pictures."""
    raw = config(folder, fusion, steps=STEPS, **changes)
    published = get_config(f"quickstart.py:variant={VARIANTS[fusion]}")
    for stage in ("pretrain", "sft"):
        raw[stage]["data"] = _on_made_data(published[stage]["data"], folder)
        raw[stage]["optimizer"]["eps"] = 1e-3  # Adam would make much of the rounding of tiny gradients
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


def cross_attention(folder):
    return one_stage(folder, "xattn")


def local_and_global(folder):
    raw = one_stage(folder)
    raw["model"]["backbone"] |= dict(attention_pattern=["local", "global"], sliding_window=8)
    return raw | dict(remat=True)


def lora(folder):
    adapters = [("^backbone/layers/", dict(rank=4, alpha=8))]
    raw = one_stage(folder, lora=adapters, trainable=["^projectors/", "/lora_a$", "/lora_b$"])
    raw["precision"]["frozen_dtype"] = "bfloat16"
    return raw


def accumulated(folder):
    """A batch in two parts, the running mean of the parameters, and losses on held-out data."""
    raw = one_stage(folder, accumulate=2, ema=0.9)
    raw["sft"]["valid"] = dict(every=10, data=quickstart(folder)["pretrain"]["data"])
    return raw


def contrast(folder):
    loss = dict(type="objectives.contrastive.image_text", temperature=0.07, weight=1.0)
    return one_stage(folder, losses=dict(image_text=loss), trainable=["^projectors/", "^encoders/"])


RUNS = {
    "splice": quickstart,
    "cross-attention": cross_attention,
    "local-and-global": local_and_global,
    "lora": lora,
    "accumulated": accumulated,
    "contrast": contrast,
}
