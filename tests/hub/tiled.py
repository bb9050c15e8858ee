"""Families whose pictures come in tiles, tiny: processors, a tokenizer of bytes, and both sides' inputs."""

import json

import numpy as np
import tokenizers
import transformers
from PIL import Image
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

SPECIALS = [
    *("<s>", "</s>", "<image>", "<IMG_CONTEXT>", "<img>", "</img>", "<video>"),
    *("<fake_token_around_image>", "<global-img>", "<end_of_utterance>"),
    *(f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)),
]
VOCAB = 256 + len(SPECIALS)
TILE, PATCH = 56, 14
TEXT = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=512,
    bos_token_id=0,
    eos_token_id=1,
)
VISION = dict(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=2,
    image_size=TILE,
    patch_size=PATCH,
)
PINPOINTS = [[TILE, 2 * TILE], [2 * TILE, TILE], [2 * TILE, 2 * TILE], [3 * TILE, TILE]]
IMAGE = SPECIALS.index("<image>")
MEAN, STD = [0.5, 0.4, 0.45], [0.25, 0.3, 0.27]  # no family's own


def tokenizer():
    """Each byte a token, without merges; special tokens first; a text begins with `<s>`, as Llama's do."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    words = {name: i for i, name in enumerate([*SPECIALS, *alphabet])}
    model = tokenizers.Tokenizer(tokenizers.models.BPE(words, []))
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    model.add_special_tokens(SPECIALS)
    opening = [("<s>", SPECIALS.index("<s>"))]
    model.post_processor = tokenizers.processors.TemplateProcessing(single="<s> $A", special_tokens=opening)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=model,
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=dict(
            start_image_token="<img>",
            end_image_token="</img>",
            context_image_token="<IMG_CONTEXT>",
            video_token="<video>",
        ),
    )


def llava_next(tile=TILE, patch=PATCH, pinpoints=PINPOINTS):
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": tile},
        crop_size={"height": tile, "width": tile},
        image_grid_pinpoints=pinpoints,
        image_mean=MEAN,
        image_std=STD,
    )
    return transformers.LlavaNextProcessor(
        image_processor=images,
        tokenizer=tokenizer(),
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def idefics3(tile=TILE, patch=PATCH, longest=2 * TILE, **more):
    images = Idefics3ImageProcessorPil(
        size={"longest_edge": longest},
        max_image_size={"longest_edge": tile},
        image_mean=MEAN,
        image_std=STD,
        **more,
    )
    return transformers.Idefics3Processor(images, tokenizer(), image_seq_len=(tile // patch // 2) ** 2)


class _InternVLWithoutVideo(transformers.InternVLProcessor):
    """Its video processor needs a package that nothing else here does."""

    def check_argument_for_proper_class(self, name, argument):
        return type(argument)


def internvl(tile=TILE, patch=PATCH, most=4):
    images = GotOcr2ImageProcessorPil(
        size={"height": tile, "width": tile}, max_patches=most, image_mean=MEAN, image_std=STD
    )
    return _InternVLWithoutVideo(
        image_processor=images, tokenizer=tokenizer(), image_seq_length=(tile // patch // 2) ** 2
    )


def picture(size, seed=0):
    """A smooth picture with an edge in it, so that a wrong filter or a shift by one shows."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
    pixels = np.array(small.resize(size, Image.Resampling.BICUBIC))
    pixels[: size[1] // 3, : size[0] // 4] = rng.integers(0, 256, 3)
    return Image.fromarray(pixels)


def write_records(folder, conversations):
    """(question, answer, pictures) of each conversation -> a `.jsonl` in LLaVA's format, pictures beside it."""
    lines = []
    for n, (question, answer, shown) in enumerate(conversations):
        names = [f"{n}-{k}.png" for k in range(len(shown))]
        for name, image in zip(names, shown, strict=True):
            image.save(folder / name)
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        lines.append(json.dumps(dict(id=f"r{n}", image=names, conversations=turns)))
    (folder / "data.jsonl").write_text("\n".join(lines))
    return str(folder / "data.jsonl")


def inputs(processor, text, shown):
    """What a Hugging Face processor makes of a text whose `<image>` marks stand for pictures."""
    text = text.replace("<image>", getattr(processor, "image_token", "<image>"))
    if not shown:
        return dict(processor.tokenizer([text], return_tensors="pt", add_special_tokens=False))
    return dict(processor(text=text, images=shown, return_tensors="pt", add_special_tokens=False))
