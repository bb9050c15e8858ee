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

from mmjax import recipes

SIZES = {  # of the language model: width, depth, heads; layers between two cross-attention blocks; mesh
    "3b": (2048, 24, 16, 1, dict(fsdp=-1)),
    "9b": (4096, 32, 32, 4, dict(fsdp=-1)),
    "80b": (8192, 80, 64, 7, dict(fsdp=-1, tensor=8)),
}


def get_config(arg=""):
    arg = recipes.arguments(arg, size=tuple(SIZES), data="data/flamingo")
    *shape, mesh = SIZES[arg["size"]]
    folder = arg["data"]
    tokenizer = dict(type="data.tokenizer.SentencePiece", path=f"{folder}/tokenizer.model")
    tokenizer |= dict(train=dict(vocab_size=32_000, specials=["<image>"]))
    mixture = {
        name: recipes.source(f"{folder}/{name}.jsonl", root=folder, weight=weight)
        for name, weight in dict(pages=1.0, align=0.2, ltip=0.2).items()
    }
    pictures = recipes.pictures(224, slots=5, resize="crop")
    pretrain = recipes.stage(
        recipes.data(mixture, pictures, template="plain", length=256, pack=False),
        recipes.adamw(
            1e-4,
            schedule="constant",
            warmup=5000,
            final=1,
            weight_decay=0.1,
            decay=[("^projectors/", False), (".*", True)],
        ),
        batch=256,
        steps=500_000,
        trainable=["^projectors/", "^backbone/xattn/"],
        log_every=50,
        save_every=2000,
    )
    stages = dict(pretrain=pretrain)
    return ConfigDict(recipes.run(model(*shape), tokenizer, stages, data_dir=folder, mesh=mesh, max_skipped=100))


def model(width, depth, heads, every):
    # As OpenFlamingo without the last norm, which is for the pooled token alone.
    encoder = dict(type="encoders.vit.ViT", variant="clip-L/14", layer=-1, final_norm=False)
    resampler = dict(type="projectors.resampler.Perceiver", latents=64, depth=6, heads=16, head_dim=64)
    resampler |= dict(mlp_ratio=4, norm="layer", norm_eps=1e-5, activation="relu2", project=False)
    backbone = dict(type="backbones.decoder.Decoder", variant="llama", activation="gelu", gated=False, tied=True)
    backbone |= dict(vocab=32_000, width=width, depth=depth, heads=heads, kv_heads=heads, head_dim=128)
    backbone |= dict(mlp_width=4 * width, xattn=dict(every=every, first=0, activation="relu2", norm="layer"))
    return dict(encoders=dict(image=encoder), projectors=dict(image=resampler), backbone=backbone, fusion="xattn")
