"""A whole run in seconds: a handful of coloured squares, two stages, a model of a few thousand parameters."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from mmjax.data.tokenizer import train_sentencepiece

COLOURS = dict(red=(220, 30, 30), green=(30, 200, 30), blue=(30, 30, 220), white=(250, 250, 250))
ROOT = Path(__file__).parents[1]


def write_data(folder):
    """LLaVA-style questions on coloured squares, one of them without a picture, and their tokenizer."""
    rng = np.random.default_rng(0)
    records = []
    for i in range(24):
        name = list(COLOURS)[i % len(COLOURS)]
        shade = np.clip(np.array(COLOURS[name]) + rng.integers(-20, 20, 3), 0, 255).astype(np.uint8)
        Image.fromarray(np.broadcast_to(shade, (16, 16, 3)).copy()).save(folder / f"{i}.png")
        turns = [("human", "<image>\nWhat colour is it?"), ("gpt", f"It is {name}.")]
        if i % 2:
            turns += [("human", f"Is it {name}?"), ("gpt", "Yes."), ("human", "And black?"), ("gpt", "No.")]
        records.append(dict(id=f"square-{i}", image=f"{i}.png", conversations=_turns(turns)))
    for i, text in enumerate(["Hello.", "Good day."] * 6):
        records.append(dict(id=f"text-{i}", conversations=_turns([("human", "Say hello."), ("gpt", text)])))
    (folder / "train.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    texts = [turn["value"].replace("<image>", "") for record in records for turn in record["conversations"]]
    train_sentencepiece(texts, folder / "tokenizer.model", vocab_size=300, specials=["<image>"])


def _turns(turns):
    return [{"from": role, "value": text} for role, text in turns]


def config(folder, fusion="splice", steps=6, **changes):
    """The run's config as a dict; `changes` override keys of both stages."""
    encoder = dict(
        type="encoders.vit.ViT", variant="vit", stem="patch", position="learned", layer=-1,
        size=16, patch=8, width=16, depth=1, heads=2, kv_heads=2, head_dim=8, mlp_width=32,
    )  # fmt: skip
    backbone = dict(
        type="backbones.decoder.Decoder", variant="llama", xattn=None,
        width=32, depth=2, heads=2, kv_heads=2, head_dim=16, mlp_width=64, tied=True,
    )  # fmt: skip
    projector = dict(
        type="projectors.mlp.MLP", depth=1, activation="gelu", bias=True, reduce="none", factor=1, norm="rms"
    )
    if fusion == "xattn":
        backbone["xattn"] = dict(every=1, first=0, activation="gelu", gated=False, norm="layer")
        projector = dict(
            type="projectors.resampler.Perceiver", latents=4, depth=1, heads=2, head_dim=8, mlp_ratio=2,
            norm="layer", norm_eps=1e-5, activation="gelu", project=False,
        )  # fmt: skip
    data = dict(
        length=48, pack=True, too_long="truncate", template="bare", bidirectional_images=False,
        media=dict(slots=2, size=16, resize="stretch", max_pixels=10_000),
        sources=dict(main=dict(path=str(folder / "train.jsonl"), root=str(folder), weight=1.0)),
        max_refused=0.1, workers=0, threads=1,
    )  # fmt: skip
    optimizer = dict(
        type="adamw", lr=3e-3, schedule="cosine", warmup=1, final=0.1, b1=0.9, b2=0.98, eps=1e-8,
        weight_decay=0.01, clip=1.0, lr_factors=[(".*", 1.0)], decay=[("kernel$", True), (".*", False)],
    )  # fmt: skip
    stage = dict(
        data=data, batch=4, steps=steps,
        losses=dict(next_token=dict(type="objectives.language.next_token", weight=1.0)),
        trainable=["."], lora=[], optimizer=optimizer, accumulate=1, ema=0.0, valid=None,
        log_every=1, save_every=100,
    )  # fmt: skip
    return dict(
        seed=0,
        model=dict(
            encoders=dict(image=encoder), projectors=dict(image=projector), backbone=backbone, fusion=fusion
        ),
        tokenizer=dict(type="data.tokenizer.SentencePiece", path=str(folder / "tokenizer.model")),
        stages=["pretrain", "sft"],
        pretrain=copy.deepcopy(stage | {"trainable": ["^projectors/", "xattn|embedding"]} | changes)
        if fusion == "xattn"
        else copy.deepcopy(stage | {"trainable": ["^projectors/"]} | changes),
        sft=copy.deepcopy(stage | changes),
        evaluation=None,
        mesh=dict(data=1),
        precision=dict(param_dtype="float32", compute_dtype="float32", frozen_dtype="float32"),
        remat=False,
        scan=True,
        data_dir=str(folder),
        max_skipped=2,
        keep=3,
        load=[],
        wandb=None,
    )


def write_config(raw, file):
    """The config as a file that `mmjax train --config` takes."""
    lines = ["import json", "from ml_collections import ConfigDict", "", "", "def get_config():"]
    lines.append(f"    return ConfigDict(json.loads({json.dumps(json.dumps(raw))}))")
    file.write_text("\n".join(lines) + "\n")


def mmjax(*arguments, **options):
    """`python -m mmjax ...` in a process of its own, started but not awaited."""
    command = [sys.executable, "-m", "mmjax", *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}.", "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )


def metrics(workdir, stage):
    """The lines of a stage's metrics.jsonl."""
    return [json.loads(line) for line in (Path(workdir) / stage / "metrics.jsonl").read_text().splitlines()]
