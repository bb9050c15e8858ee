"""LLaVA-1.5: CLIP ViT-L/14 at 336 pixels, a two-layer MLP, Vicuna-1.5, trained in two stages.

    mmjax train --config configs/llava.py:size=7b,data=DATA --workdir runs/llava-7b
    mmjax train --config configs/llava.py:size=13b,data=DATA --workdir runs/llava-13b
    mmjax train --config configs/llava.py:size=7b,lora=true,data=DATA --workdir runs/llava-7b-lora

DATA is a folder as https://github.com/haotian-liu/LLaVA lays it out, and Vicuna's tokenizer:

    DATA/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json   558,128 captions (LCS-558K), and their pictures in images/
    DATA/llava_v1_5_mix665k.json                      665,298 conversations, and their pictures beside it, in
                                                      coco/ gqa/ ocr_vqa/ textvqa/ vg/
    DATA/vicuna/tokenizer.json                        of lmsys/vicuna-7b-v1.5 or -13b-v1.5

Hyper-parameters are those of the published scripts (scripts/v1_5/{pretrain,finetune,finetune_lora}.sh; Liu et al.,
arXiv:2310.03744, table 9). Stages, and what they train:

    pretrain   the projector                      21.0 M of 7.06 B (0.30 %), 13b: 31.5 M of 13.4 B (0.24 %)
    sft        projector and language model       6.76 B of 7.06 B (95.7 %), 13b: 13.0 B of 13.4 B (97.7 %)
    lora       instead of sft: projector and rank-128 adapters of every matrix of the language model's layers,
               341 M of 7.38 B (4.6 %), 13b: 532 M of 13.9 B (3.8 %)

Published results of the whole recipe, 7b / 13b: VQAv2 78.5 / 80.0, GQA 62.0 / 63.3, TextVQA 58.2 / 61.3,
POPE 85.9 / 85.9, MME 1510.7 / 1531.3. They need the published weights of CLIP and Vicuna; this config starts from
random ones.

What differs: rows are not sorted by length (`group_by_modality_length`), captions have rows of 768 tokens instead
of up to 2048 (a picture is 576, a caption seldom 100), and adapters have no dropout (0.05 there).
"""

from ml_collections import ConfigDict

DEFAULTS = dict(size="7b", data="data/llava", lora="false")
SIZES = ("7b", "13b")


def get_config(arg=""):
    given = dict(pair.split("=", 1) for pair in arg.split(",") if pair)
    if unknown := set(given) - set(DEFAULTS):
        raise ValueError(f"llava.py: no argument {sorted(unknown)}; it takes {sorted(DEFAULTS)}.")
    arg = DEFAULTS | given
    if arg["size"] not in SIZES:
        raise ValueError(f"llava.py: size={arg['size']!r} is none of {', '.join(SIZES)}.")
    if arg["lora"] not in ("true", "false"):
        raise ValueError(f"llava.py: lora={arg['lora']!r} is neither true nor false.")
    folder = arg["data"]
    pairs = f"{folder}/LLaVA-Pretrain"
    captions = dict(path=f"{pairs}/blip_laion_cc_sbu_558k.json", root=f"{pairs}/images")
    conversations = dict(path=f"{folder}/llava_v1_5_mix665k.json", root=folder)

    c = ConfigDict()
    c.seed = 0
    c.data_dir = folder
    c.tokenizer = dict(
        type="data.tokenizer.HFTokenizer",
        path=f"{folder}/vicuna/tokenizer.json",
        bos="<s>",
        eos="</s>",
        pad="<unk>",
        extra=["<image>"],
    )
    c.model = model(arg["size"])
    c.pretrain = stage(
        data=data(captions, template="plain", length=768, resize="crop"),
        batch=256,
        steps=2181,  # one epoch
        trainable=["^projectors/"],
        lr=1e-3,
    )
    tuning = dict(
        data=data(conversations, template="vicuna_v1", length=2048, resize="pad"),
        batch=128,
        steps=5198,  # one epoch
    )
    if arg["lora"] == "true":
        c.stages = ["pretrain", "lora"]
        c.lora = stage(
            **tuning,
            trainable=["^projectors/", "/lora_a$", "/lora_b$"],
            lr=2e-4,
            lora=[("^backbone/layers/", dict(rank=128, alpha=256))],
            lr_factors=[("^projectors/", 0.1), (".*", 1.0)],  # the projector's rate is 2e-5
        )
    else:
        c.stages = ["pretrain", "sft"]
        c.sft = stage(**tuning, trainable=["^projectors/", "^backbone/"], lr=2e-5)
    c.evaluation = None
    c.mesh = dict(fsdp=-1)
    c.precision = dict(param_dtype="float32", compute_dtype="bfloat16", frozen_dtype="bfloat16")
    c.remat, c.scan = True, True
    c.max_skipped, c.keep = 10, 1
    c.load = []
    c.wandb = None
    return c


def model(size):
    return dict(
        encoders=dict(image=dict(type="encoders.vit.ViT", variant="clip-L/14-336", layer=-2)),
        projectors=dict(
            image=dict(
                type="projectors.mlp.MLP",
                depth=2,
                activation="gelu",
                bias=True,
                reduce="none",
                factor=1,
                norm="",
            )
        ),
        backbone=dict(
            type="backbones.decoder.Decoder",
            variant=f"llama-{size}",
            vocab=32_064,  # Vicuna's 32,000 and <image>, rounded up as in llava-hf/llava-1.5-7b-hf
            xattn=None,
        ),
        fusion="splice",
    )


def data(source, template, length, resize):
    """One example a row, one picture an example. What has no place in a row is cut off at its end."""
    return dict(
        length=length,
        pack=False,
        too_long="truncate",
        template=template,
        bidirectional_images=False,
        media=dict(slots=1, size=336, resize=resize, max_pixels=64_000_000),
        sources=dict(main=source | dict(weight=1.0)),
        max_refused=0.01,
        workers=8,
        threads=4,
    )


def stage(data, batch, steps, trainable, lr, lora=(), lr_factors=((".*", 1.0),)):
    return dict(
        data=data,
        batch=batch,
        steps=steps,
        losses=dict(next_token=dict(type="objectives.language.next_token", weight=1.0)),
        trainable=trainable,
        lora=list(lora),
        optimizer=dict(
            type="adamw",
            lr=lr,
            schedule="cosine",
            warmup=0.03,
            final=0.0,
            b1=0.9,
            b2=0.999,
            eps=1e-8,
            weight_decay=0.0,
            clip=1.0,
            lr_factors=list(lr_factors),
            decay=[(".*", False)],
        ),
        accumulate=1,
        ema=0.0,
        valid=None,
        log_every=10,
        save_every=500,
    )
