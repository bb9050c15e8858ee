"""Small pictures, tokenizers, files and specs that the tests of the data room share."""

import io
import json
import re

import numpy as np
import tokenizers
from PIL import Image

from mmjax.data.tokenizer import HFTokenizer

SPECIALS = (
    "<image>",
    "<|im_start|>",
    "<|im_end|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<fake_token_around_image>",
)
TEXTS = [
    "USER: what colour is the shape? ASSISTANT: it is blue.",
    "user assistant system the picture shows a red circle and a green triangle",
    "A chat between a curious user and an artificial intelligence assistant.",
    "Grüße, naïve façade 123 4567",
]


class Words:
    """A tokenizer whose tokens can be read: a word with the space before it, or one other character."""

    def __init__(self, pattern=r" ?\w+|."):
        self.pattern = pattern
        self.words = ["<pad>", "<s>", "</s>", *SPECIALS]
        self.pad, self.bos, self.eos, self.vocab_size = 0, 1, 2, 1000
        self.stops, self.names = (), {"bos_token": "<s>", "eos_token": "</s>"}
        self.begins, self.model_max_length = False, 0

    def encode(self, text, start=True):
        found = list(re.finditer(self.pattern, text, re.DOTALL))
        for word in found:
            if word[0] not in self.words:
                self.words.append(word[0])
        return [self.words.index(word[0]) for word in found], [word.end() for word in found]

    def decode(self, ids):
        return "".join(self.words[i] for i in ids if i >= 3 + len(SPECIALS))

    def special(self, name):
        return self.words.index(name)

    def special_tokens(self):
        return {name: (i, False, False) for i, name in enumerate(self.words[: 3 + len(SPECIALS)])}


def make_hf(path, style):
    """A small byte-pair tokenizer.json: 'bytes' as GPT-2 and Llama 3 have it, or 'first' with a space before
    the first word of a sequence, as Mistral has it."""
    model = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>" if style == "first" else None))
    pre = tokenizers.pre_tokenizers
    if style == "bytes":
        model.pre_tokenizer = pre.ByteLevel(add_prefix_space=False)
        model.decoder = tokenizers.decoders.ByteLevel()
        alphabet = pre.ByteLevel.alphabet()
    else:
        model.pre_tokenizer = pre.Metaspace(prepend_scheme="first")
        model.decoder = tokenizers.decoders.Metaspace(prepend_scheme="first")
        alphabet = [chr(c) for c in range(32, 127)] + ["▁", "\n"]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=420, special_tokens=["<unk>", "<s>", "</s>", *SPECIALS], initial_alphabet=alphabet
    )
    model.train_from_iterator(TEXTS, trainer)
    model.save(str(path))
    return HFTokenizer(path, bos="<s>", eos="</s>")


def picture(number=0, size=(8, 8), kind="PNG", **save):
    """Encoded bytes of a small picture of one colour; `number` tells pictures apart."""
    file = io.BytesIO()
    Image.new("RGB", size, (number % 256, number // 256, 7)).save(file, kind, **save)
    return file.getvalue()


def truncated(data):
    return data[: len(data) * 2 // 3]


def noise(size=(40, 30), seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels)


def conversation(number, turns=1, pictures=1, words=3):
    """A LLaVA record whose length grows with `turns` and `words`."""
    said = []
    for turn in range(turns):
        marks = "<image>\n" * pictures if turn == 0 else ""
        said.append({"from": "human", "value": f"{marks}what colour is shape {number}?"})
        said.append({"from": "gpt", "value": " ".join(["blue"] * words)})
    names = [f"{number}-{k}.png" for k in range(pictures)]
    return {"id": f"r{number}", "image": names, "conversations": said}


def write_folder(folder, records):
    """A `data.jsonl` beside its pictures; picture k of record n has the red value 10 * n + k."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, record in enumerate(records):
        if isinstance(record, dict):
            for k, name in enumerate(record.get("image", [])):
                if isinstance(name, str) and re.fullmatch(r"\d+-\d+\.png", name):
                    (folder / name).write_bytes(picture(10 * number + k))
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    (folder / "data.jsonl").write_text("\n".join(lines) + "\n")
    return str(folder / "data.jsonl")


def spec_of(path, **changes):
    """A data spec of one source, for small tests."""
    spec = dict(
        length=64,
        pack=True,
        too_long="truncate",
        template="chatml",
        bidirectional_images=False,
        media=dict(slots=4, size=8, resize="stretch", max_pixels=1_000_000),
        sources=dict(main=dict(path=path, root="", weight=1.0)),
        max_refused=1.0,
        workers=0,
        threads=1,
    )
    return spec | changes
