"""Small checkpoints with the tokenizers, settings and chat templates that families publish, and what makes ids of
prompts for them in `transformers`."""

import io
import json
from pathlib import Path

import sentencepiece
import tokenizers
import transformers
from parity import randomise
from small_models import TEXT, TEXTS, VISION, WHOLE
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.idefics.image_processing_pil_idefics import IdeficsImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from mmjax.hub.sentencepiece_model import generate_merges, read_sentencepiece

TEMPLATES = Path(__file__).parent / "templates"
SPLIT_LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLIT_QWEN_2 = SPLIT_LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("a", "t"), ("c", "at"), ("Ċ", "Ċ"), ("Ġ", "Ġ"), ("1", "2")]
LINES = ["the quick brown fox jumps over a lazy dog. What is it? A picture of a cat USER: ASSISTANT: [INST]"] * 9
ROWS = [f"<row_{row}_col_{column}>" for row in range(1, 5) for column in range(1, 5)]
VISION_TOKENS = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]


def byte_level(specials, plain=(), split="", begin="", nfc=False, prefix=False):
    """A tokenizer.json of bytes and a few merges. begin: a special token before every text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = {w: i for i, w in enumerate([*alphabet, *("".join(m) for m in MERGES)])}
    made = tokenizers.Tokenizer(models.BPE(words, MERGES))
    made.normalizer = normalizers.NFC() if nfc else None
    level = pre_tokenizers.ByteLevel(add_prefix_space=prefix, use_regex=not split)
    cut = [pre_tokenizers.Split(Regex(split), "isolated")] if split else []
    made.pre_tokenizer = pre_tokenizers.Sequence([*cut, level]) if cut else level
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens(list(specials))
    made.add_tokens([AddedToken(name, normalized=False) for name in plain])
    return with_begin(made, begin)


def with_begin(made, begin):
    if begin:
        opening = [(begin, made.token_to_id(begin))]
        made.post_processor = processors.TemplateProcessing(f"{begin} $A", special_tokens=opening)
    return made


def trained(folder, gemma, symbols=()):
    """Writes a tokenizer.model with the settings of Llama's, or of Gemma's."""
    roles = dict(unk_id=0, bos_id=1, eos_id=2, pad_id=-1)
    if gemma:
        names = dict(pad_piece="<pad>", eos_piece="<eos>", bos_piece="<bos>", add_dummy_prefix=False)
        roles = dict(pad_id=0, eos_id=1, bos_id=2, unk_id=3, user_defined_symbols=[*symbols, "\n\n"], **names)
    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_writer=made,
        model_type="bpe",
        vocab_size=360,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
        **roles,
    )
    (folder / "tokenizer.model").write_bytes(made.getvalue())


def llama_json(folder, specials=()):
    """The tokenizer.json that was published beside Llama's tokenizer.model, from that."""
    trained(folder, gemma=False)
    words = read_sentencepiece(folder / "tokenizer.model").vocabulary
    model = models.BPE(words, generate_merges(words), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    made = tokenizers.Tokenizer(model)
    made.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1)]
    made.decoder = decoders.Sequence(parts)
    made.add_special_tokens(["<unk>", "<s>", "</s>", *specials])
    return with_begin(made, "<s>")


def gemma_json(folder, specials=()):
    """Gemma's, likewise. `specials` are pieces of the model."""
    trained(folder, True, ["<mask>", *specials])
    words = read_sentencepiece(folder / "tokenizer.model").vocabulary
    model = models.BPE(words, generate_merges(words), unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    made = tokenizers.Tokenizer(model)
    made.normalizer = normalizers.Replace(" ", "▁")
    made.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    made.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    made.add_special_tokens(["<pad>", "<eos>", "<bos>", "<unk>", *specials])
    made.add_tokens([AddedToken("\n\n", normalized=False)])
    return with_begin(made, "<bos>")


LLAMA_NAMES = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>", tokenizer_class="LlamaTokenizer")
GEMMA_NAMES = dict(
    bos_token="<bos>", eos_token="<eos>", unk_token="<unk>", pad_token="<pad>", tokenizer_class="GemmaTokenizer"
)
QWEN_NAMES = dict(eos_token="<|im_end|>", pad_token="<|endoftext|>", tokenizer_class="Qwen2Tokenizer")
QWEN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TURNS = ["<start_of_turn>", "<end_of_turn>"]
HEADERS = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
FAST = "PreTrainedTokenizerFast"
NEOX = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
THOUGHTS = ["<think>", "</think>", "<tool_call>", "</tool_call>"]


def qwen(*specials, plain=()):
    return lambda folder: byte_level([*QWEN, *specials], plain, SPLIT_QWEN_2, nfc=True)


# Family -> (model of small_models, chat template, tokenizer.json, tokenizer_config.json).
FAMILIES = {
    "Llama-2-Chat": ("llama", "llama-2", llama_json, LLAMA_NAMES | dict(add_bos_token=True, legacy=False)),
    "Llama-3-Instruct": (
        "llama",
        "llama-3",
        lambda folder: byte_level(HEADERS, split=SPLIT_LLAMA_3, begin=HEADERS[0]),
        dict(bos_token=HEADERS[0], eos_token="<|eot_id|>", tokenizer_class=FAST),
    ),
    "Mistral-Instruct": ("mistral", "mistral-v0.2", llama_json, LLAMA_NAMES | dict(legacy=True)),
    "Qwen2-Instruct": ("qwen2", "qwen2", qwen(), QWEN_NAMES | dict(add_prefix_space=False)),
    "Qwen2.5-Instruct": ("qwen2", "qwen2.5", qwen(plain=THOUGHTS[2:]), QWEN_NAMES | dict(add_bos_token=False)),
    "Qwen3": ("qwen3", "qwen3", qwen(plain=THOUGHTS), QWEN_NAMES | dict(add_bos_token=False)),
    "Gemma": ("gemma", "gemma", lambda f: gemma_json(f, TURNS), GEMMA_NAMES | dict(add_bos_token=True)),
    "Gemma-2": ("gemma2", "gemma", lambda f: gemma_json(f, TURNS), GEMMA_NAMES | dict(add_bos_token=True)),
    "Gemma-3": ("gemma3_text", "gemma-3", lambda f: gemma_json(f, TURNS), GEMMA_NAMES | dict(add_bos_token=True)),
    "Llama-2": ("llama", "", llama_json, LLAMA_NAMES | dict(add_bos_token=True, legacy=False)),
    "Phi-2": (
        "phi",
        "",
        lambda f: byte_level([NEOX["bos_token"]]),
        NEOX | dict(tokenizer_class="CodeGenTokenizer"),
    ),
    "OPT": (
        "opt",
        "",
        lambda f: byte_level(["<pad>", "</s>"], begin="</s>"),
        dict.fromkeys(("bos_token", "eos_token", "unk_token"), "</s>")
        | dict(pad_token="<pad>", tokenizer_class="GPT2Tokenizer", add_bos_token=True),
    ),
    "Pythia": (
        "gpt_neox",
        "",
        lambda f: byte_level([NEOX["bos_token"], "<|padding|>"], nfc=True),
        NEOX | dict(tokenizer_class="GPTNeoXTokenizer"),
    ),
    "MPT": (
        "mpt",
        "",
        lambda f: byte_level([NEOX["bos_token"], "<|padding|>"], nfc=True),
        NEOX | dict(tokenizer_class="GPTNeoXTokenizer"),
    ),
    "LLaVA-1.5": (
        "llava",
        "llava-1.5",
        lambda f: llama_json(f, ["<image>", "<pad>"]),
        LLAMA_NAMES | dict(add_bos_token=True, legacy=False, pad_token="<pad>", image_token="<image>"),
    ),
    "LLaVA-1.6-Mistral": (
        "llava_next",
        "llava-v1.6-mistral",
        lambda f: llama_json(f, ["<image>", "<pad>"]),
        LLAMA_NAMES | dict(legacy=True, pad_token="<pad>", image_token="<image>"),
    ),
    "Qwen2-VL": ("qwen2_vl", "qwen2-vl", qwen(*VISION_TOKENS), QWEN_NAMES | dict(add_prefix_space=False)),
    "Qwen2.5-VL": (
        "qwen2_5_vl",
        "qwen2-vl",
        qwen(*VISION_TOKENS, plain=THOUGHTS[2:]),
        QWEN_NAMES | dict(add_bos_token=False),
    ),
    "SmolVLM": (
        "smolvlm",
        "smolvlm",
        lambda f: byte_level(["<|endoftext|>", *IDEFICS3, "<|im_start|>", "<|im_end|>"]),
        dict(bos_token="<|im_start|>", eos_token="<end_of_utterance>", tokenizer_class="GPT2Tokenizer")
        | dict(unk_token="<|endoftext|>", pad_token="<|im_end|>", add_prefix_space=False),
    ),
    "Idefics3": (
        "idefics3",
        "idefics3",
        lambda f: byte_level([*HEADERS, *IDEFICS3], split=SPLIT_LLAMA_3, begin=HEADERS[0]),
        dict(bos_token=HEADERS[0], eos_token="<|end_of_text|>", tokenizer_class=FAST),
    ),
    "InternVL": (
        "internvl",
        "internvl",
        qwen("<img>", "</img>", "<IMG_CONTEXT>", "<video>"),
        QWEN_NAMES
        | dict(
            extra_special_tokens=dict(
                start_image_token="<img>",
                end_image_token="</img>",
                context_image_token="<IMG_CONTEXT>",
                video_token="<video>",
            )
        ),
    ),
    "Idefics": (
        "idefics",
        "",
        lambda f: llama_json(f, ["<fake_token_around_image>", "<image>"]),
        LLAMA_NAMES | dict(legacy=False, tokenizer_class="LlamaTokenizerFast", pad_token="<unk>"),
    ),
    "PaliGemma": (
        "paligemma",
        "",
        lambda f: gemma_json(f, ["<image>"]),
        GEMMA_NAMES | dict(extra_special_tokens=dict(image_token="<image>")),
    ),
}
IDEFICS3 = ["<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>", *ROWS]
IMAGES = {
    "llava": lambda: CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}),
    "llava_next": lambda: LlavaNextImageProcessorPil(
        size={"shortest_edge": 28},
        crop_size={"height": 28, "width": 28},
        image_grid_pinpoints=[[28, 56], [56, 28], [56, 56]],
    ),
    "qwen2_vl": lambda: Qwen2VLImageProcessorPil(size=dict(shortest_edge=3136, longest_edge=12845056)),
    "qwen2_5_vl": lambda: Qwen2VLImageProcessorPil(size=dict(shortest_edge=3136, longest_edge=12845056)),
    "smolvlm": lambda: Idefics3ImageProcessorPil(
        size={"longest_edge": 56}, max_image_size={"longest_edge": 28}, return_row_col_info=True
    ),
    "internvl": lambda: GotOcr2ImageProcessorPil(
        size={"height": 28, "width": 28}, crop_to_patches=True, max_patches=4
    ),
    "paligemma": lambda: SiglipImageProcessorPil(size={"height": 28, "width": 28}),
}
IMAGES["idefics"] = lambda: IdeficsImageProcessorPil(image_size=28)
IMAGES["idefics3"] = IMAGES["smolvlm"]
KINDS = {
    "llava": transformers.LlavaProcessor,
    "llava_next": transformers.LlavaNextProcessor,
    "qwen2_vl": transformers.Qwen2VLProcessor,
    "qwen2_5_vl": transformers.Qwen2_5_VLProcessor,
    "smolvlm": transformers.Idefics3Processor,  # its own takes a package for videos, and writes the same
    "idefics": transformers.IdeficsProcessor,
    "idefics3": transformers.Idefics3Processor,
    "internvl": transformers.InternVLProcessor,
    "paligemma": transformers.PaliGemmaProcessor,
}
MORE = {
    "llava": dict(patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1),
    "smolvlm": dict(image_seq_len=1),
    "idefics3": dict(image_seq_len=1),
    "internvl": dict(image_seq_length=1),
}
MORE["llava_next"] = MORE["llava"]
PICTURE = {"internvl": "<IMG_CONTEXT>", "qwen2_vl": "<|image_pad|>", "qwen2_5_vl": "<|image_pad|>"}


def _model(name, tokenizer):
    """The small model, for the tokenizer's vocabulary."""
    size = dict(vocab_size=len(tokenizer), max_position_embeddings=8192)
    if name in TEXTS:
        given = TEXT | TEXTS[name] | size | ({"max_seq_len": 8192} if name == "mpt" else {})
        return transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.for_model(name, **given))
    if name == "idefics":  # the last two tokens have a table of their own
        text = {key: value for key, value in TEXT.items() if key != "num_key_value_heads"}
        given = text | size | dict(vocab_size=len(tokenizer) - 2, additional_vocab_size=2, cross_layer_interval=1)
        vision = dict(embed_dim=32, **VISION)
        perceiver = dict(resampler_n_latents=3, resampler_depth=1, resampler_n_heads=2, resampler_head_dim=8)
        made = transformers.IdeficsConfig(
            **given, vision_config=vision, perceiver_config=perceiver, use_resampler=True
        )
        return transformers.IdeficsForVisionText2Text(made)
    kind, config = WHOLE[name]
    image = tokenizer.convert_tokens_to_ids(PICTURE.get(name, "<image>"))
    key = "image_token_index" if "image_token_index" in config else "image_token_id"
    config = config | {"text_config": config["text_config"] | size, key: image}
    if name == "llava_next":
        config |= dict(image_grid_pinpoints=IMAGES[name]().image_grid_pinpoints)
    made = getattr(transformers, f"{kind}Config")(**config)
    return getattr(transformers, f"{kind}ForConditionalGeneration")(made)


def published(family, folder, with_json=True):
    """Writes a checkpoint of that family; returns what makes ids of its prompts: a processor, or a tokenizer.

    with_json: whether tokenizer.json lies beside tokenizer.model.
    """
    name, template, make, settings = FAMILIES[family]
    make(folder).save(str(folder / "tokenizer.json"))
    if not with_json:
        (folder / "tokenizer.json").unlink()
    chat = dict(chat_template=(TEMPLATES / f"{template}.jinja").read_text()) if template else {}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | chat))
    (folder / "config.json").write_text(json.dumps(dict(model_type=name)))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    randomise(_model(name, tokenizer)).save_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    if name not in KINDS:
        return tokenizer
    images = IMAGES[name]()
    images.save_pretrained(folder)
    if name == "paligemma":
        images.image_seq_length = 4
    # A video processor takes a package that nothing else here does.
    kind = type(KINDS[name].__name__, (KINDS[name],), dict(check_argument_for_proper_class=_any))
    more = MORE.get(name, {}) | chat
    return kind(image_processor=images, tokenizer=tokenizer, **more)


def _any(self, name, argument):
    return type(argument)
