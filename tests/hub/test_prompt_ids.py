"""What a conversation becomes: the ids of `transformers`, with the template and tokenizer that the family
publishes, through mmjax.load."""

import pytest
from parity import tabulate
from prompt_folders import FAMILIES, published
from tiled import picture

import mmjax
from mmjax.convert import convert
from mmjax.types import Sample, Turn

HEADING = """## Prompts

The ids of conversations, through `mmjax.load`, beside those of `transformers`: `apply_chat_template` of the
family's processor or tokenizer, or what those make of a text where the family has no template. Templates,
settings and parts of tokenizers are the published ones (tests/hub/templates, prompt_folders.py), vocabularies are
small. What a template refuses is left out."""

BASE = [family for family, (_, template, *_) in FAMILIES.items() if not template]
SIZES = [(60, 40), (30, 90)]
SYSTEM = ("system", "Be brief.", 0)
# Turns of (role, text, pictures before it).
CONVERSATIONS = {
    "a question": [("user", "What is  the  cat?", 0)],
    "spaces around": [("user", "  the fox\n\n is 1234\n", 0)],
    "letters": [("user", "é ☃ e\u0301 <b> the", 0)],
    "a picture": [("user", "What is it?", 1)],
    "a picture, spaces around": [("user", "  the cat\n\n", 1)],
    "two pictures": [("user", "the cat", 2)],
    "a system turn": [SYSTEM, ("user", "What is it?", 0)],
    "a second turn": [("user", "the", 0), ("assistant", "A fox.", 0), ("user", "cat?", 0)],
    "a picture, then a turn": [SYSTEM, ("user", "the", 1), ("assistant", "A fox.", 0), ("user", "cat?", 0)],
    "a picture a turn": [("user", "the", 1), ("assistant", "A dog", 0), ("user", "cat", 1)],
}


def theirs_of(maker, turns, pictures):
    """The ids of `transformers`; None where it takes no such conversation."""
    tokenizer = getattr(maker, "tokenizer", maker)
    if type(maker).__name__ == "PaliGemmaProcessor":
        if len(turns) > 1 or not pictures:
            return None
        return maker(text="<image>" * len(pictures) + turns[0][1], images=[pictures])["input_ids"][0]
    if type(maker).__name__ == "IdeficsProcessor":
        return maker(text=[[*pictures, turns[0][1]]])["input_ids"][0].tolist() if len(turns) == 1 else None
    if not tokenizer.chat_template:
        return tokenizer(turns[0][1])["input_ids"] if len(turns) == 1 and not pictures else None
    lists = maker is not tokenizer
    if pictures and not lists:
        return None
    talk, ahead = [], iter(pictures)
    for role, text, shown in turns:
        parts = [dict(type="image", image=next(ahead)) for _ in range(shown)] + [dict(type="text", text=text)]
        talk.append(dict(role=role, content=parts if lists else text))
    try:
        found = maker.apply_chat_template(talk, add_generation_prompt=True, tokenize=True, return_dict=True)
    except Exception as error:
        if "jinja2" in type(error).__module__:
            return None
        raise
    ids = found["input_ids"]
    return ids[0] if lists else ids


def ours_of(assistant, turns, pictures):
    turns = tuple(Turn(role, "<image>\n" * shown + text) for role, text, shown in turns)
    return assistant._encode(Sample("prompt", turns, tuple(pictures)), 4).tokens.tolist()


SENTENCEPIECE = ["Llama-2-Chat", "Gemma-2", "LLaVA-1.5", "PaliGemma"]
CASES = [(family, True) for family in FAMILIES] + [(family, False) for family in SENTENCEPIECE]


@pytest.mark.parametrize(("family", "with_json"), CASES)
def test_ids_are_those_of_transformers(family, with_json, tmp_path):
    (tmp_path / "hf").mkdir()
    maker = published(family, tmp_path / "hf", with_json)
    convert(str(tmp_path / "hf"), str(tmp_path / "ours"))
    assistant = mmjax.load(str(tmp_path / "ours"))
    equal = []
    for name, turns in CONVERSATIONS.items():
        pictures = [picture(size) for size in SIZES[: sum(shown for *_, shown in turns)]]
        theirs = theirs_of(maker, turns, pictures)
        if theirs is not None:
            assert ours_of(assistant, turns, pictures) == list(theirs), name
            equal.append(name)
    assert len(equal) >= (3 if family in ("PaliGemma", *BASE) else 4)
    if "Qwen" in family and "VL" in family:  # more patches than a row of training has room for
        large = [("user", "What?", 1)]
        theirs = theirs_of(maker, large, [picture((1600, 1200))])
        assert ours_of(assistant, large, [picture((1600, 1200))]) == list(theirs) and len(theirs) > 2400
    row = family if with_json else f"{family}, of tokenizer.model alone"
    tabulate(HEADING, row, "template", FAMILIES[family][1] or "none: texts as they are")
    tabulate(HEADING, row, "conversations of the same ids", f"{len(equal)} of {len(equal)}: {'; '.join(equal)}")
