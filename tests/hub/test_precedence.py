"""Of files that say different things, those count that count in `transformers`."""

import itertools
import json

import pytest
import transformers
from prompt_folders import published
from tiled import picture

import mmjax
from mmjax.convert import convert
from mmjax.hub.tensors import CheckpointError
from mmjax.hub.tokenizer import template_of
from mmjax.types import Sample, Turn

WHERE = [
    "tokenizer_config.json",
    "named in tokenizer_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "processor_config.json",
    "additional_chat_templates/default.jinja",
    "additional_chat_templates/tool_use.jinja",
]


def template(where):
    """A template that its place can be told by."""
    return (
        "{% for m in messages %}{% if m['content'] is string %}{{ m['content'] }}{% else %}"
        "{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% else %}{{ c['text'] }}{% endif %}"
        "{% endfor %}{% endif %}{% endfor %} " + " ".join(where.split("."))
    )


def write_templates(folder, places):
    """Leaves templates in these places of a folder alone."""
    for name in ("chat_template.json", "chat_template.jinja"):
        (folder / name).unlink(missing_ok=True)
    for file in (folder / "additional_chat_templates").glob("*"):
        file.unlink()
    if (folder / "additional_chat_templates").exists():
        (folder / "additional_chat_templates").rmdir()
    for name in ("tokenizer_config.json", "processor_config.json"):
        found = json.loads((folder / name).read_text()) if (folder / name).exists() else {}
        found.pop("chat_template", None)
        if name in places:
            found["chat_template"] = template(name)
        if found:
            (folder / name).write_text(json.dumps(found))
    for place in places:
        (folder / place).parent.mkdir(exist_ok=True)
        if place.startswith("named"):
            file = folder / "tokenizer_config.json"
            several = [dict(name="rag", template="R"), dict(name="default", template=template(place))]
            file.write_text(json.dumps(json.loads(file.read_text()) | dict(chat_template=several)))
        elif place.endswith("template.json"):
            (folder / place).write_text(json.dumps(dict(chat_template=template(place))))
        elif place.endswith("jinja"):
            (folder / place).write_text(template(place))


def expected(maker):
    """What `apply_chat_template` of a processor or tokenizer renders; None where it has no template to take."""
    found = maker.chat_template
    return found.get("default") if isinstance(found, dict) else found


PLACES = [places for n in (1, 2, 3, 7) for places in itertools.combinations(WHERE, n)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Checkpoints with a processor, and with a tokenizer alone."""
    made = {}
    for name, family in (("processor", "LLaVA-1.5"), ("tokenizer", "Llama-2-Chat")):
        made[name] = tmp_path_factory.mktemp(name)
        published(family, made[name])
        if name == "processor":
            more = dict(patch_size=14, vision_feature_select_strategy="default", num_additional_image_tokens=1)
            (made[name] / "processor_config.json").write_text(
                json.dumps(dict(processor_class="LlavaProcessor", **more))
            )
    return made


@pytest.mark.parametrize("kind", ["processor", "tokenizer"])
def test_of_several_templates_the_one_counts_that_counts_in_transformers(folders, kind):
    reader = transformers.LlavaProcessor if kind == "processor" else transformers.AutoTokenizer
    seen, refused = set(), 0
    for places in PLACES:
        write_templates(folders[kind], places)
        try:
            theirs = expected(reader.from_pretrained(folders[kind]))
        except ValueError as error:  # a chat_template.json beside additional ones
            assert "conflicting files" in str(error)
            continue
        if theirs is not None:
            assert template_of(folders[kind], kind == "processor") == f"jinja:{theirs}", places
            seen.add(theirs)
        elif any("tool_use" in place for place in places):
            with pytest.raises(CheckpointError, match=r"chat templates .*none named 'default'; copy"):
                template_of(folders[kind], kind == "processor")
            refused += 1
    assert refused and len(seen) == 4


@pytest.mark.parametrize("kind", ["processor", "tokenizer"])
@pytest.mark.parametrize("places", [WHERE[:4], WHERE[:5], [WHERE[1], WHERE[3], WHERE[5]]], ids=len)
def test_prompts_of_a_folder_with_conflicting_templates(folders, kind, places, tmp_path):
    folder = folders[kind]
    write_templates(folder, places)
    convert(folder, tmp_path / "ours")
    assistant = mmjax.load(tmp_path / "ours")
    if kind == "processor":
        parts = [dict(type="image", image=picture((60, 40))), dict(type="text", text="What is it?")]
        maker = transformers.LlavaProcessor.from_pretrained(folder)
        talk, pictures, mark = [dict(role="user", content=parts)], (picture((60, 40)),), "<image>\n"
    else:
        maker = transformers.AutoTokenizer.from_pretrained(folder)
        talk, pictures, mark = [dict(role="user", content="What is it?")], (), ""
    theirs = maker.apply_chat_template(talk, add_generation_prompt=True, tokenize=True, return_dict=True)
    theirs = theirs["input_ids"][0] if kind == "processor" else theirs["input_ids"]
    sample = Sample("prompt", (Turn("user", mark + "What is it?"),), pictures)
    assert assistant._encode(sample, 4).tokens.tolist() == list(theirs)
    convert(tmp_path / "ours", tmp_path / "back")
    assert expected(type(maker).from_pretrained(tmp_path / "back")) == expected(maker)
