"""A small multimodal LLM from scratch, on pictures that packages carry: minutes on two CPU cores.

    mmjax prepare --config configs/quickstart.py
    mmjax train --config configs/quickstart.py --workdir runs/quickstart-projector
    mmjax train --config configs/quickstart.py:variant=flamingo --workdir runs/quickstart-flamingo

Two stages: pre-training on captions (emoji and their names, and short captions of easy-vqa's pictures), then
instruction tuning on easy-vqa's questions: all of a picture are one conversation, and as examples apart, since
an answer that earlier answers give away teaches nobody to look.
"""

from ml_collections import ConfigDict

from mmjax import recipes

WIDTH, HEADS = 128, dict(heads=2, head_dim=64)


def get_config(arg=""):
    arg = recipes.arguments(arg, variant=("projector", "flamingo"), data="data/quickstart")
    splice = arg["variant"] == "projector"
    tokenizer = dict(type="data.tokenizer.SentencePiece", path=f"{arg['data']}/tokenizer.model")
    tokenizer |= dict(train=dict(vocab_size=1024, specials=["<image>"]))
    captions = dict(
        openmoji=recipes.source("corpus:openmoji/64px/train", weight=0.2),
        easy_vqa=easy_vqa("captions", 0.8),
    )
    questions = dict(
        main=easy_vqa("conversations", 0.6, turns="apart"), captions=easy_vqa("captions", 0.4, template="plain")
    )
    # A picture takes four tokens of a row where it is spliced, one where it is looked at; that costs more a step.
    length, steps = (256, 760) if splice else (192, 540)
    # Gates start at 0, shut, and hold back what lies behind them: they open ten times as fast as the rest learns.
    factors = [(".*", 1.0)] if splice else [("_gate$", 10.0), (".*", 1.0)]
    stages = dict(
        pretrain=stage(data(captions, "plain", length=128, slots=12), factors, batch=4, steps=440),
        sft=stage(data(questions, "bare", length=length, slots=3), factors, batch=16, steps=steps),
    )
    here = dict(mesh=dict(data=-1), compute_dtype="float32", frozen_dtype="float32", remat=False, scan=False)
    return ConfigDict(
        recipes.run(
            model(splice), tokenizer, stages, data_dir=arg["data"], evaluation=evaluation(), keep=2, **here
        )
    )


def model(splice):
    """The composition: the two variants differ in projector and fusion alone."""
    encoder = dict(type="encoders.vit.ViT", variant="vit", stem="conv", position="learned", size=64, patch=8)
    encoder |= dict(width=WIDTH, depth=2, **HEADS, kv_heads=2, mlp_width=4 * WIDTH, layer=-1)
    backbone = dict(type="backbones.decoder.Decoder", variant="llama", width=WIDTH, depth=3, **HEADS, kv_heads=2)
    backbone |= dict(mlp_width=3 * WIDTH, tied=True, xattn=None)
    if splice:
        projector = dict(type="projectors.mlp.MLP", depth=2, activation="gelu", bias=True)
        projector |= dict(reduce="average", factor=4, norm="rms")
    else:
        projector = dict(type="projectors.resampler.Perceiver", latents=8, depth=2, **HEADS, mlp_ratio=4)
        projector |= dict(norm="layer", norm_eps=1e-5, activation="gelu", project=False)
        backbone |= dict(xattn=dict(every=2, first=0, activation="gelu", gated=False, norm="layer"))
    parts = dict(encoders=dict(image=encoder), projectors=dict(image=projector), backbone=backbone)
    return parts | dict(fusion="splice" if splice else "xattn")


def easy_vqa(kind, weight, **more):
    return recipes.source(f"corpus:easy_vqa/{kind}/train", weight=weight, augment="dihedral", **more)


def data(sources, template, length, slots):
    pictures = recipes.pictures(64, slots=slots, resize="pad")
    return recipes.data(sources, pictures, template=template, length=length, workers=0, threads=1)


def stage(data, lr_factors, **more):
    decay = dict(weight_decay=0.05, decay=[(r"kernel$", True), (".*", False)])
    optimizer = recipes.adamw(5e-4, warmup=0.05, final=0.02, b2=0.98, lr_factors=lr_factors, **decay)
    return recipes.stage(data, optimizer, log_every=20, save_every=200, **more)


def evaluation():
    questions = {split: f"corpus:easy_vqa/questions/{split}" for split in ("train", "test")}
    captions = dict(test="corpus:openmoji/64px/test", question="", limit=0, examples=12)
    return dict(
        easy_vqa=recipes.benchmark("easy_vqa", "sft", **questions, limit=0, examples=24),
        captions=recipes.benchmark("captions", "pretrain", **captions),
    )
