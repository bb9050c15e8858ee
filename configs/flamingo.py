"""Flamingo (Alayrac et al., arXiv:2204.14198): a frozen encoder and a frozen language model, and between them a
perceiver resampler and gated cross-attention, trained on interleaved pages and on captions.

    mmjax prepare --config configs/flamingo.py:size=3b,data=DATA
    mmjax train --config configs/flamingo.py:size=3b,data=DATA --workdir runs/flamingo-3b

size is 3b, 9b or 80b. DATA holds three files in LLaVA's conversation format, their pictures beside them:

    DATA/pages.jsonl   web pages: pictures are user turns of `<image>` alone, the text after them assistant turns
    DATA/align.jsonl, DATA/ltip.jsonl   one picture and its caption

The paper's data (M3W, ALIGN, LTIP, VTP), its encoder (NFNet-F6) and its language models (Chinchilla) were never
published. Here stand in for them:

    NFNet-F6, 435 M, width 1536   CLIP ViT-L/14 at 224 pixels, 303 M, width 1024: what OpenFlamingo takes
    Chinchilla 1.4 / 7.1 / 70 B   the same depth and width with rotary positions. Chinchilla's relative positions
                                  have one more D x D matrix a layer; without it 1.27 / 6.57 / 64.7 B remain
    videos (VTP)                  left out

Sizes: what is published (table 1; the first figure of each pair, not checked against the paper again), and what
this config builds. The resampler is as wide as the encoder, and so
are the inputs of the cross-attention's keys and values; hence the smaller figures.

              resampler           cross-attention             trained of all
    3b     194 M    75.6 M     1.2 B   1.11 B (24 blocks)    1.4 of 3.2 B     1.18 of 2.76 B (42.9 %)
    9b     194 M    75.6 M     1.6 B   1.41 B (8 blocks)     1.8 of 9.3 B     1.49 of 8.36 B (17.8 %)
    80b    194 M    75.6 M    10   B   8.25 B (12 blocks)   10.2 of 80  B     8.33 of 73.3 B (11.4 %)

From the paper: 64 latents, 6 resampler layers of 16 heads, squared ReLU in all that is trained, a cross-attention
block before every 1st / 4th / 7th layer, each token looking at the picture just before it, at most 5 pictures and
256 tokens a page; AdamW, 1e-4 after 5000 steps and constant from there, clipped at 1, weight decay 0.1 but for the
resampler; mixture M3W 1.0, ALIGN 0.2, LTIP 0.2 (there these weigh losses, here they are shares of the rows). The
depth of the 9b's language model is inferred from its size. Ours: 256 rows a step; no token's embedding is trained
(there, those of the new tokens are).

Nothing here starts from published weights, so this shows the composition and its cost, not the paper's results.
"""

from ml_collections import ConfigDict

DEFAULTS = dict(size="3b", data="data/flamingo")
SIZES = {  # of the language model: width, depth, heads; layers between two cross-attention blocks; mesh
    "3b": dict(width=2048, depth=24, heads=16, every=1, mesh=dict(fsdp=-1)),
    "9b": dict(width=4096, depth=32, heads=32, every=4, mesh=dict(fsdp=-1)),
    "80b": dict(width=8192, depth=80, heads=64, every=7, mesh=dict(fsdp=-1, tensor=8)),
}


def get_config(arg=""):
    given = dict(pair.split("=", 1) for pair in arg.split(",") if pair)
    if unknown := set(given) - set(DEFAULTS):
        raise ValueError(f"flamingo.py: no argument {sorted(unknown)}; it takes {sorted(DEFAULTS)}.")
    arg = DEFAULTS | given
    if arg["size"] not in SIZES:
        raise ValueError(f"flamingo.py: size={arg['size']!r} is none of {', '.join(SIZES)}.")
    size, folder = SIZES[arg["size"]], arg["data"]

    c = ConfigDict()
    c.seed = 0
    c.data_dir = folder
    c.tokenizer = dict(
        type="data.tokenizer.SentencePiece",
        path=f"{folder}/tokenizer.model",
        train=dict(vocab_size=32_000, specials=["<image>"]),
    )
    c.model = model(size["width"], size["depth"], size["heads"], size["every"])
    c.stages = ["pretrain"]
    c.pretrain = dict(
        data=data(folder),
        batch=256,
        steps=500_000,
        losses=dict(next_token=dict(type="objectives.language.next_token", weight=1.0)),
        trainable=["^projectors/", "^backbone/xattn/"],
        lora=[],
        optimizer=dict(
            type="adamw",
            lr=1e-4,
            schedule="constant",
            warmup=5000,
            final=1,
            b1=0.9,
            b2=0.999,
            eps=1e-8,
            weight_decay=0.1,
            clip=1.0,
            lr_factors=[(".*", 1.0)],
            decay=[("^projectors/", False), (".*", True)],
        ),
        accumulate=1,
        ema=0.0,
        valid=None,
        log_every=50,
        save_every=2000,
    )
    c.evaluation = None
    c.mesh = size["mesh"]
    c.precision = dict(param_dtype="float32", compute_dtype="bfloat16", frozen_dtype="bfloat16")
    c.remat, c.scan = True, True
    c.max_skipped, c.keep = 100, 1
    c.load = []
    c.wandb = None
    return c


def model(width, depth, heads, every):
    return dict(
        encoders=dict(
            image=dict(
                type="encoders.vit.ViT",
                variant="clip-L/14",
                layer=-1,
                final_norm=False,  # as OpenFlamingo: the norm is for the pooled token alone
            )
        ),
        projectors=dict(
            image=dict(
                type="projectors.resampler.Perceiver",
                latents=64,
                depth=6,
                heads=16,
                head_dim=64,
                mlp_ratio=4,
                norm="layer",
                norm_eps=1e-5,
                activation="relu2",
                project=False,
            )
        ),
        backbone=dict(
            type="backbones.decoder.Decoder",
            variant="llama",
            activation="gelu",
            gated=False,
            tied=True,
            vocab=32_000,
            width=width,
            depth=depth,
            heads=heads,
            kv_heads=heads,
            head_dim=128,
            mlp_width=4 * width,
            xattn=dict(every=every, first=0, activation="relu2", norm="layer"),
        ),
        fusion="xattn",
    )


def data(folder):
    def source(name, weight):
        return dict(path=f"{folder}/{name}.jsonl", root=folder, weight=weight)

    return dict(
        length=256,
        pack=False,
        too_long="truncate",
        template="plain",
        bidirectional_images=False,
        media=dict(slots=5, size=224, resize="crop", max_pixels=64_000_000),
        sources=dict(pages=source("pages", 1.0), align=source("align", 0.2), ltip=source("ltip", 0.2)),
        max_refused=0.01,
        workers=8,
        threads=4,
    )
