"""Made data: pictures of noise in many sizes, captions, conversations, and prompts about them."""

import json

import numpy as np
from PIL import Image

from mmjax.types import Sample, Turn

SHAPES = ("circle", "square", "triangle")
COLOURS = ("red", "green", "blue", "black", "yellow")
WHO = ("human", "gpt")
NAMES = ("cat face", "rocket", "red apple", "flag: Norway", "woman juggling", "snowflake")


def picture(number):
    """Noise in large pixels, 16 to 120 pixels wide and high, another size and content for each number."""
    rng = np.random.default_rng(number)
    width, height = (int(side) for side in rng.integers(16, 121, 2))
    noise = Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
    return noise.resize((width, height), Image.Resampling.BICUBIC)


def write_data(folder):
    """names.jsonl, captions.jsonl and conversations.jsonl in LLaVA's format, and their pictures beside them."""
    for number in range(40):
        picture(number).save(folder / f"{number}.png")
    names = [(f"name-{n}", [n], [("<image>", NAMES[n % 6])]) for n in range(20)]
    captions = [(f"caption-{n}", [n], [("<image>", _caption(n))]) for n in range(20, 40)]
    for name, records in dict(names=names, captions=captions, conversations=list(_conversations())).items():
        lines = [json.dumps(_record(*record)) for record in records]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")


def _caption(number):
    return f"a {COLOURS[number % 5]} {SHAPES[number % 3]} on grey"


def _conversations():
    for n in range(30):
        colour, shape = COLOURS[n % 5], SHAPES[n % 3]
        talk = [("<image>\nwhat colour is the shape?", colour), (f"is it a {shape}?", "yes"), ("sure?", "Quite.")]
        yield f"asked-{n}", [n], talk[: 1 + n % 3]
    for n in range(6):
        yield f"pair-{n}", [n, n + 20], [("<image> and <image>: are they alike?", "No, not at all.")]
        yield f"text-{n}", [], [("Say hello.", f"Hello, {NAMES[n]}!")]


def _record(name, numbers, talk):
    turns = [
        {"from": who, "value": text} for pair in talk for who, text in zip(("human", "gpt"), pair, strict=True)
    ]
    return dict(id=name, image=[f"{n}.png" for n in numbers], conversations=turns)


def texts():
    """All that is said in the data, without marks: what a tokenizer is trained on."""
    said = [text for _, _, talk in _conversations() for pair in talk for text in pair]
    return [text.replace("<image>", "") for text in [*said, *NAMES, *map(_caption, range(40))]]


def prompt_batches(system):
    """20 lists of prompts: text alone, a picture, two, turns before. system: whether one begins some of them."""
    batches = []
    for k in range(20):
        batch = [_prompt(f"picture-{k}", "<image>\nwhat colour is the shape?", k)]
        if k % 2:
            batch.append(_prompt(f"text-{k}", f"Say hello, {NAMES[k % 6]}."))
        if k % 3 == 0:
            batch.append(_prompt(f"pair-{k}", "<image> and <image>: are they alike?", k, k + 20))
        if k % 4 == 0:
            before = (Turn("user", "<image>\nis it a circle?"), Turn("assistant", "yes"))
            begin = (Turn("system", "Be brief."),) if system else ()
            batch.append(Sample(f"talk-{k}", (*begin, *before, Turn("user", "sure?")), (picture(k),)))
        batches.append(batch)
    return batches


def _prompt(name, text, *pictures):
    return Sample(name, (Turn("user", text),), tuple(map(picture, pictures)))
