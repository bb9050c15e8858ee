"""The chat template of an export is the one that was trained with: prompts by transformers equal ours."""

import json

import pytest
import tokenizers
import transformers

import mmjax
from mmjax.convert import convert
from mmjax.data.templates import TEMPLATES
from mmjax.training.stages import train
from mmjax.types import Sample, Turn
from mmjax.workdir import read_raw

SPECIALS = [
    *("<s>", "</s>", "<image>", "<|im_start|>", "<|im_end|>"),
    *("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<fake_token_around_image>"),
]
OLD = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}</s>{% endfor %}"
OTHER = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)
ASKED = [dict(role="user", content="Hi, you.")]
TALKS = [
    ASKED,
    [*ASKED, dict(role="assistant", content="Good day."), dict(role="user", content="And?")],
    [dict(role="system", content="Be brief."), *ASKED],
]


def tokenizer():
    words = {w: i for i, w in enumerate([*SPECIALS, *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())])}
    made = tokenizers.Tokenizer(tokenizers.models.BPE(words, []))
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    made.add_special_tokens(SPECIALS)
    return transformers.PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A converted language model whose tokenizer brings the template OLD, and a record to train on."""
    folder = tmp_path_factory.mktemp("template")
    made = tokenizer()
    made.chat_template = OLD
    made.save_pretrained(folder / "hf")
    config = transformers.LlamaConfig(
        vocab_size=len(made),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=256,
        bos_token_id=0,
        eos_token_id=1,
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder / "hf")
    convert(folder / "hf", folder / "run")
    record = json.dumps(dict(messages=[dict(role="user", content="Q"), dict(role="assistant", content="A")]))
    (folder / "train.jsonl").write_text(record + "\n")
    return folder / "run"


def trained(run, target, template):
    raw = read_raw(run)
    raw["sft"]["data"] |= dict(template=template, workers=0, threads=1, length=256)
    raw["sft"]["data"]["sources"]["main"]["path"] = str(run.parent / "train.jsonl")
    raw["sft"] |= dict(batch=1, steps=1, save_every=1)
    raw["sft"]["optimizer"]["warmup"] = 0
    train(raw | dict(mesh=dict(data=1)), target)
    return target


def ours(workdir, messages):
    turns = tuple(Turn(message["role"], message["content"]) for message in messages)
    return mmjax.load(workdir)._encode(Sample("p", turns, ()), 2).tokens.tolist()


def assert_prompts_equal(workdir, exported, parts=False):
    loaded = transformers.AutoTokenizer.from_pretrained(exported)
    for messages in TALKS:
        given = [
            {**one, "content": [dict(type="text", text=one["content"])]} if parts else one for one in messages
        ]
        found = loaded.apply_chat_template(given, add_generation_prompt=True, return_dict=False)
        assert found == ours(workdir, messages)


@pytest.mark.parametrize("place", ["jinja", "tokenizer_config.json", "chat_template.json"])
def test_a_template_in_jinja_replaces_the_one_that_came(run, tmp_path, place):
    (tmp_path / "other.jinja").write_text(OTHER)
    workdir = trained(run, tmp_path / "trained", f"file:{tmp_path / 'other.jinja'}")
    if place != "jinja":
        (workdir / "hub" / "chat_template.jinja").unlink()
        file = workdir / "hub" / place
        settings = json.loads(file.read_text()) if file.exists() else {}
        file.write_text(json.dumps(settings | dict(chat_template=OLD)))
    convert(workdir, tmp_path / "out")
    assert_prompts_equal(workdir, tmp_path / "out")
    for name in ("tokenizer_config.json", "chat_template.json"):
        file = tmp_path / "out" / name
        assert not file.exists() or "chat_template" not in json.loads(file.read_text())
    stops = transformers.GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id
    assert stops == list(mmjax.load(workdir).encoder.stop_ids)


@pytest.mark.parametrize("name", ["bare", "text", "vicuna_v1", "chatml", "llama3"])
def test_a_template_of_ours_is_written_in_jinja(run, tmp_path, name, caplog):
    workdir = trained(run, tmp_path / "trained", name)
    convert(workdir, tmp_path / "out")
    assert_prompts_equal(workdir, tmp_path / "out")
    assert_prompts_equal(workdir, tmp_path / "out", parts=True)
    assert "data.template" not in caplog.text
    convert(tmp_path / "out", tmp_path / "again")  # and it comes back as it was
    for messages in TALKS:
        assert ours(tmp_path / "again", messages) == ours(workdir, messages)


@pytest.mark.parametrize("name", ["paligemma", "idefics"])
def test_a_template_without_a_form_in_jinja_is_named(run, tmp_path, name, caplog):
    workdir = trained(run, tmp_path / "trained", name)
    convert(workdir, tmp_path / "out")
    assert f"data.template='{name}' has no form in Jinja" in caplog.text
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out").chat_template is None
    assert {"paligemma", "idefics"} < TEMPLATES.keys()


def test_what_was_not_trained_comes_back_as_it_came(run, tmp_path):
    convert(run, tmp_path / "out")
    for file in (run / "hub").iterdir():
        if file.name not in ("config.json", "mmjax_tokens.json"):
            assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes(), file.name
