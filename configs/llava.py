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

from mmjax import recipes


def get_config(arg=""):
    arg = recipes.arguments(arg, size=("7b", "13b"), data="data/llava", lora=("false", "true"))
    folder = arg["data"]
    pairs = f"{folder}/LLaVA-Pretrain"
    captions = recipes.source(f"{pairs}/blip_laion_cc_sbu_558k.json", root=f"{pairs}/images")
    conversations = recipes.source(f"{folder}/llava_v1_5_mix665k.json", root=folder)
    tokenizer = dict(type="data.tokenizer.HFTokenizer", path=f"{folder}/vicuna/tokenizer.json")
    tokenizer |= dict(bos="<s>", eos="</s>", pad="<unk>", extra=["<image>"])

    pretrain = recipes.stage(
        data(captions, template="plain", length=768, resize="crop"),
        recipes.adamw(1e-3),
        batch=256,
        steps=2181,  # one epoch
        trainable=["^projectors/"],
    )
    tuning = data(conversations, template="vicuna_v1", length=2048, resize="pad")
    epoch = dict(batch=128, steps=5198)
    if arg["lora"] == "true":
        lora = recipes.stage(
            tuning,
            recipes.adamw(2e-4, lr_factors=[("^projectors/", 0.1), (".*", 1.0)]),  # the projector's rate is 2e-5
            **epoch,
            trainable=["^projectors/", "/lora_a$", "/lora_b$"],
            lora=[("^backbone/layers/", dict(rank=128, alpha=256))],
        )
        stages = dict(pretrain=pretrain, lora=lora)
    else:
        sft = recipes.stage(tuning, recipes.adamw(2e-5), **epoch, trainable=["^projectors/", "^backbone/"])
        stages = dict(pretrain=pretrain, sft=sft)
    return ConfigDict(recipes.run(model(arg["size"]), tokenizer, stages, data_dir=folder))


def model(size):
    return dict(
        encoders=dict(image=dict(type="encoders.vit.ViT", variant="clip-L/14-336", layer=-2)),
        projectors=dict(image=dict(type="projectors.mlp.MLP", depth=2, **MLP)),
        # Vicuna's 32,000 tokens and <image>, rounded up as in llava-hf/llava-1.5-7b-hf.
        backbone=dict(type="backbones.decoder.Decoder", variant=f"llama-{size}", vocab=32_064, xattn=None),
        fusion="splice",
    )


MLP = dict(activation="gelu", bias=True, reduce="none", factor=1, norm="")


def data(source, template, length, resize):
    """One example a row, one picture an example. What has no place in a row is cut off at its end."""
    pictures = recipes.pictures(336, slots=1, resize=resize)
    return recipes.data(dict(main=source), pictures, template=template, length=length, pack=False)
