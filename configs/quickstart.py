"""A small multimodal LLM from scratch, on pictures that packages carry: minutes on two CPU cores.

    mmjax prepare --config configs/quickstart.py
    mmjax train --config configs/quickstart.py --workdir runs/quickstart-projector
    mmjax train --config configs/quickstart.py:variant=flamingo --workdir runs/quickstart-flamingo

Two stages: pre-training on captions (emoji and their names, and short captions of easy-vqa's pictures), then
instruction tuning on easy-vqa's questions: all of a picture are one conversation, and as examples apart, since
an answer that earlier answers give away teaches nobody to look.
"""

from ml_collections import ConfigDict

DEFAULTS = dict(variant="projector", data="data/quickstart")


def get_config(arg=""):
    given = dict(pair.split("=", 1) for pair in arg.split(",") if pair)
    if unknown := set(given) - set(DEFAULTS):
        raise ValueError(f"quickstart.py: no argument {sorted(unknown)}; it takes {sorted(DEFAULTS)}.")
    arg = DEFAULTS | given
    c = ConfigDict()
    c.seed = 0
    c.data_dir = arg["data"]
    c.tokenizer = dict(
        type="data.tokenizer.SentencePiece",
        path=f"{arg['data']}/tokenizer.model",
        train=dict(vocab_size=1024, specials=["<image>"]),
    )
    c.model = model(arg["variant"])
    c.stages = ["pretrain", "sft"]
    captions = dict(
        openmoji=source("corpus:openmoji/64px/train", 0.2),
        easy_vqa=source("corpus:easy_vqa/captions/train", 0.8, augment="dihedral"),
    )
    questions = dict(
        main=source("corpus:easy_vqa/conversations/train", 0.6, augment="dihedral", turns="apart"),
        captions=source("corpus:easy_vqa/captions/train", 0.4, template="plain", augment="dihedral"),
    )
    splice = c.model.fusion == "splice"
    # Gates start at 0, shut, and hold back what lies behind them: they open ten times as fast as the rest learns.
    factors = [(".*", 1.0)] if splice else [("_gate$", 10.0), (".*", 1.0)]
    c.pretrain = stage(
        data(captions, "plain", length=128, slots=12), batch=4, steps=440, lr=5e-4, lr_factors=factors
    )
    # A picture takes four tokens of a row where it is spliced, one where it is looked at; that costs more a step.
    length, steps = (256, 760) if splice else (192, 540)
    rows = data(questions, "bare", length=length, slots=3)
    c.sft = stage(rows, batch=16, steps=steps, lr=5e-4, lr_factors=factors)
    c.evaluation = dict(
        easy_vqa=dict(
            type="evaluation.benchmarks.easy_vqa.evaluate",
            stage="sft",
            train="corpus:easy_vqa/questions/train",
            test="corpus:easy_vqa/questions/test",
            limit=0,
            examples=24,
        ),
        captions=dict(
            type="evaluation.benchmarks.captions.evaluate",
            stage="pretrain",
            test="corpus:openmoji/64px/test",
            question="",
            limit=0,
            examples=12,
        ),
    )
    c.mesh = dict(data=-1)
    c.precision = dict(param_dtype="float32", compute_dtype="float32", frozen_dtype="float32")
    c.remat, c.scan = False, False
    c.max_skipped, c.keep = 10, 2
    c.load = []
    c.wandb = None
    return c


def model(variant):
    """The composition: the two variants differ in projector and fusion alone."""
    width, heads, head_dim = 128, 2, 64
    m = ConfigDict()
    m.encoders = dict(
        image=dict(
            type="encoders.vit.ViT",
            variant="vit",
            stem="conv",
            position="learned",
            size=64,
            patch=8,
            width=width,
            depth=2,
            heads=heads,
            kv_heads=heads,
            head_dim=head_dim,
            mlp_width=4 * width,
            layer=-1,
        )
    )
    m.backbone = dict(
        type="backbones.decoder.Decoder",
        variant="llama",
        width=width,
        depth=3,
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        mlp_width=3 * width,
        tied=True,
        xattn=None,
    )
    if variant == "projector":
        m.projectors = dict(
            image=dict(
                type="projectors.mlp.MLP",
                depth=2,
                activation="gelu",
                bias=True,
                reduce="average",
                factor=4,
                norm="rms",
            )
        )
        m.fusion = "splice"
    elif variant == "flamingo":
        m.projectors = dict(
            image=dict(
                type="projectors.resampler.Perceiver",
                latents=8,
                depth=2,
                heads=heads,
                head_dim=head_dim,
                mlp_ratio=4,
                norm="layer",
                norm_eps=1e-5,
                activation="gelu",
                project=False,
            )
        )
        m.backbone.xattn = dict(every=2, first=0, activation="gelu", gated=False, norm="layer")
        m.fusion = "xattn"
    else:
        raise ValueError(f"quickstart.py: variant={variant!r} is neither 'projector' nor 'flamingo'.")
    return m


def source(path, weight, **more):
    return dict(path=path, root="", weight=weight, **more)


def data(sources, template, length, slots):
    return dict(
        length=length,
        pack=True,
        too_long="truncate",
        template=template,
        bidirectional_images=False,
        media=dict(slots=slots, size=64, resize="pad", max_pixels=64_000_000),
        sources=sources,
        max_refused=0.01,
        workers=0,
        threads=1,
    )


def stage(data, batch, steps, lr, lr_factors):
    return dict(
        data=data,
        batch=batch,
        steps=steps,
        losses=dict(next_token=dict(type="objectives.language.next_token", weight=1.0)),
        trainable=["."],
        lora=[],
        optimizer=dict(
            type="adamw",
            lr=lr,
            schedule="cosine",
            warmup=0.05,
            final=0.02,
            b1=0.9,
            b2=0.98,
            eps=1e-8,
            weight_decay=0.05,
            clip=1.0,
            lr_factors=lr_factors,
            decay=[(r"kernel$", True), (".*", False)],
        ),
        accumulate=1,
        ema=0.0,
        valid=None,
        log_every=20,
        save_every=200,
    )
