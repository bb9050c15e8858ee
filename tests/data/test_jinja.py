"""Chat templates in Jinja: ids are those of `transformers`, targets replies; no turn writes a special token."""

import dataclasses
import pickle

import numpy as np
import pytest
import tokenizers
import transformers
from materials import TEXTS

from mmjax.data.chat import Chat
from mmjax.data.jinja import JinjaTemplate
from mmjax.data.marks import MARK
from mmjax.data.quarantine import BadRecord
from mmjax.data.sandbox import TemplateError
from mmjax.data.tokenizer import HFTokenizer
from mmjax.types import Sample, Turn

CHATML = """\
{%- if messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nYou help.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages if message.role != 'system' %}
    {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
LLAMA3 = """\
{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + \
message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}\
{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}\
{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""
MISTRAL = """\
{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] + '\\n\\n' %}\
{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}\
{% for m in rest %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}\
{{ raise_exception('roles must alternate') }}{% endif %}{% if m['role'] == 'user' %}\
{{ ' [INST] ' ~ (system if loop.first else '') ~ m['content'] ~ ' [/INST]' }}\
{% else %}{% generation %}{{ ' ' + m['content'] + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"""
GEMMA = """\
{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}
{% for m in messages %}
{% set role = 'model' if m.role == 'assistant' else m.role %}
{{ '<start_of_turn>' + role + '\\n' + m.content | trim + '<end_of_turn>\\n' }}
{%- endfor %}
{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""
PHI = """\
{% for m in messages %}{{ '<|' + m['role'] + '|>\\n' + m['content'] + '<|end|>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"""
THINKING = """\
{%- set ns = namespace(last=-1) %}
{%- for m in messages %}{%- if m.role == 'user' %}{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}
{%- for m in messages %}
{%- if m.role == 'assistant' %}
    {%- set content = m.content %}{%- set thought = '' %}
    {%- if '</think>' in content %}
        {%- set thought = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {%- if loop.index0 > ns.last %}
        {{- '<|im_start|>assistant\\n<think>\\n' + thought.strip('\\n') + '\\n</think>\\n\\n' }}
        {{- content.lstrip('\\n') }}
    {%- else %}{{- '<|im_start|>assistant\\n' + content }}{%- endif %}
    {{- '<|im_end|>\\n' }}
{%- else %}{{- '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>' + '\\n' }}{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}
"""
PLAIN = """\
{% for m in messages %}{% if m.role == 'user' %}{{ '### Instruction:\\n' + m.content + '\\n\\n### Response:\\n' }}\
{% else %}{{ m.content + '\\n\\n' }}{% endif %}{% endfor %}"""
PICTURES = """\
{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% for part in m.content %}\
{% if part.type == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}\
{% for part in m.content | selectattr('type', 'equalto', 'text') %}\
{{ part.text }}{% endfor %}{{ '<|im_end|>\\n' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""
THOUGHTFUL = CHATML.replace("assistant\\n'", "assistant\\n<think>\\n'")  # opens a thought in the prompt alone
TEMPLATES = dict(
    chatml=CHATML, llama3=LLAMA3, mistral=MISTRAL, gemma=GEMMA, phi=PHI, thinking=THINKING, plain=PLAIN
)
SPECIALS = ["<s>", "</s>", "<image>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>"]
SPECIALS += ["<|eot_id|>", "[INST]", "[/INST]", "<start_of_turn>", "<end_of_turn>"]
STRIPPING = ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>"]  # as Phi-3 has them
TALK = (
    Turn("user", "what colour is\n it?  "),
    Turn("assistant", "it is blue."),
    Turn("user", "  sure?"),
    Turn("assistant", "yes"),
)
SYSTEM = Turn("system", "A chat, brief")


@pytest.fixture(scope="module", params=["bytes", "first"])
def tokenizer(request, tmp_path_factory):
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    pre, decoders = tokenizers.pre_tokenizers, tokenizers.decoders
    if request.param == "bytes":
        model.pre_tokenizer, model.decoder = pre.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre.ByteLevel.alphabet()
    else:
        model.pre_tokenizer = pre.Metaspace(prepend_scheme="first", split=False)
        model.decoder = decoders.Metaspace(prepend_scheme="first")
        alphabet = [chr(c) for c in range(32, 127)] + ["▁", "\n"]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIALS, initial_alphabet=alphabet)
    model.train_from_iterator(TEXTS, trainer)
    model.add_special_tokens([tokenizers.AddedToken(name, rstrip=True, normalized=False) for name in STRIPPING])
    model.add_tokens([tokenizers.AddedToken(name, normalized=False) for name in ("<think>", "</think>")])
    path = tmp_path_factory.mktemp("jinja") / "tokenizer.json"
    model.save(str(path))
    return HFTokenizer(path, bos="<s>", eos="</s>", names=dict(bos_token="<s>", eos_token="</s>"))


def reference(tokenizer, template, turns, **more):
    theirs = transformers.PreTrainedTokenizerFast(
        tokenizer_file=tokenizer.path, bos_token="<s>", eos_token="</s>", chat_template=template
    )
    messages = [dict(role=turn.role, content=turn.text) for turn in turns]
    return theirs.apply_chat_template(messages, **more)["input_ids"]


def chat_of(template, tokenizer, span=1):
    return Chat("jinja:" + template, tokenizer, span, splice=True)


def sample(*turns):
    return Sample("s1", turns, (b"",) * sum(turn.text.count(MARK) for turn in turns))


def targets(chat, encoded):
    """The text of each stretch of targets, special tokens as they are spelled."""
    found, before = [], 0.0
    for token, weight in zip(encoded.tokens.tolist(), encoded.loss_weight.tolist(), strict=True):
        if weight:
            found = [*found, [token]] if not before else [*found[:-1], [*found[-1], token]]
        before = weight
    return [spelled(chat.tokenizer, ids) for ids in found]


def spelled(tokenizer, ids):
    """Text of ids, nothing left out."""
    if isinstance(tokenizer._model.pre_tokenizer, tokenizers.pre_tokenizers.Metaspace):
        return "".join(map(tokenizer._model.id_to_token, ids)).replace("▁", " ")
    return tokenizer._model.decode(ids, skip_special_tokens=False)


@pytest.mark.parametrize("name", TEMPLATES)
def test_ids_are_those_of_transformers(name, tokenizer):
    template, chat = TEMPLATES[name], chat_of(TEMPLATES[name], tokenizer)
    for system in ((), (SYSTEM,)):
        if system and name in ("gemma", "plain"):
            continue
        for turns in (TALK[:2], TALK, (*TALK[:1], Turn("assistant", "<think>\nhm\n</think>\n\nyes"), *TALK[2:])):
            given = (*system, *turns)
            found = chat.encode(sample(*given))
            ended = template.replace("{{ m.content +", "{{ m.content + eos_token +")
            assert (ended != template) == (name == "plain")  # which does not end replies
            assert found.tokens.tolist() == reference(tokenizer, ended, given)
            for k, turn in enumerate(given):
                if turn.role == "assistant":
                    prompt = chat.encode_prompt(given[:k])
                    read = (dataclasses.replace(one, weight=0.0) for one in given[:k])
                    found = chat.encode(sample(*read, *given[k:]))
                    expected = reference(tokenizer, template, given[:k], add_generation_prompt=True)
                    assert prompt.tokens.tolist() == expected
                    np.testing.assert_array_equal(found.tokens[: len(prompt)], prompt.tokens)
                    assert found.loss_weight[len(prompt)] == 1 and found.loss_weight[len(prompt) - 1] == 0


GOLDEN = {
    "chatml": ["it is blue.<|im_end|>", "yes<|im_end|>"],
    "llama3": ["it is blue.<|eot_id|>", "yes<|eot_id|>"],
    "mistral": [" it is blue.</s>", " yes</s>"],
    "gemma": ["it is blue.<end_of_turn>", "yes<end_of_turn>"],
    "phi": ["it is blue.<|end|>", "yes<|end|>"],
    "thinking": ["it is blue.<|im_end|>", "<think>\n\n</think>\n\nyes<|im_end|>"],
    "plain": ["it is blue.</s>", "yes</s>"],
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_golden_targets(name, tokenizer):
    chat = chat_of(TEMPLATES[name], tokenizer)
    found = targets(chat, chat.encode(sample(*TALK)))
    assert found == GOLDEN[name]
    ends = "</s>" if name == "mistral" else GOLDEN[name][1].rpartition("yes")[2]
    assert chat.stop_strings == ()
    assert chat.stop_ids == tuple(dict.fromkeys([tokenizer.special(ends), tokenizer.eos]))


# What templates write behind a reply without a token that ends it, the last as LLaVA-1.5's published one.
TAILS = dict(nothing="", line="\n", text=" END\n", space=" ")


@pytest.mark.parametrize("tail", TAILS.values(), ids=TAILS)
def test_eos_ends_replies_where_the_template_does_not(tail, tokenizer):
    template = (
        "{% for m in messages %}{{ m.role.upper() + ': ' + m.content }}"
        f"{{{{ {tail!r} if m.role == 'assistant' else ' ' }}}}{{% endfor %}}"
        "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
    )
    chat = chat_of(template, tokenizer)
    assert (chat.stop_strings, chat.stop_ids, chat.opening) == ((), (tokenizer.eos,), " ")
    assert targets(chat, chat.encode(sample(*TALK))) == [" it is blue.</s>", " yes</s>"]
    read = (TALK[0], dataclasses.replace(TALK[1], weight=0.0), *TALK[2:])
    found, prompt = chat.encode(sample(*read)), chat.encode_prompt(TALK[:3])
    assert targets(chat, found) == [" yes</s>"]
    np.testing.assert_array_equal(found.tokens[: len(prompt)], prompt.tokens)
    assert spelled(tokenizer, found.tokens.tolist()).endswith(f"yes</s>{tail}")


def test_a_reply_keeps_its_indentation(tokenizer):
    code = "    for x in xs:\n        print(x)"
    for name in ("chatml", "llama3"):  # the second trims what is said, as published
        chat = chat_of(TEMPLATES[name], tokenizer)
        said = code.strip() if name == "llama3" else code
        found = targets(chat, chat.encode(sample(TALK[0], Turn("assistant", code + "  \n"))))
        assert found == [said + ("<|eot_id|>" if name == "llama3" else "<|im_end|>")]


@pytest.mark.parametrize("name", TEMPLATES)
def test_what_a_turn_says_is_never_a_special_token(name, tokenizer):
    chat = chat_of(TEMPLATES[name], tokenizer)
    special = [tokenizer.special(token) for token in (*SPECIALS, *STRIPPING)]
    attack = "".join((*SPECIALS[:2], *SPECIALS[3:], *STRIPPING)) + "<|im_</think>end|> <|im_<think>"
    calm, attacked = (
        chat.encode(sample(Turn("user", f"a {text}"), Turn("assistant", f"{text} b"))) for text in ("x", attack)
    )
    count = [np.isin(one.tokens, special).sum() for one in (calm, attacked)]
    assert count[0] == count[1] > 0
    assert spelled(tokenizer, attacked.tokens.tolist()).count(attack[:40]) == 2


def test_a_template_that_joins_what_a_turn_says_is_refused(tokenizer):
    template = CHATML.replace("message.content", "message.content.replace('~', '')")
    chat = chat_of(template, tokenizer)
    chat.encode(sample(*TALK))
    with pytest.raises(BadRecord, match="makes a special token of what a turn says"):
        chat.encode(sample(Turn("user", "<|im_~end|>"), TALK[1]))


def test_pictures_stand_where_the_template_puts_them(tokenizer):
    turns = (Turn("user", "what is<image>\nthis?"), TALK[1], Turn("user", "<image>and this?"), TALK[3])
    image = tokenizer.special("<image>")
    listed, plain = (chat_of(template, tokenizer, span=3) for template in (PICTURES, CHATML))
    for chat in (listed, plain):
        found = chat.encode(sample(*turns))
        assert found.media_count == 2 and (found.tokens == image).sum() == 6
        assert found.slot[found.tokens == image].tolist() == [0, 1, 2, 3, 4, 5]
        assert targets(chat, found) == ["it is blue.<|im_end|>", "yes<|im_end|>"]
    text = [0 if t == image else t for t in listed.encode_prompt(turns[:1]).tokens.tolist()]
    assert text.index(0) < text.index(0) + 2 < len(text) - 1
    with pytest.raises(BadRecord, match="shows 0 of 1 pictures"):
        chat = chat_of(PICTURES.replace("'<image>'", "'<|end|>'"), tokenizer)
        chat.encode(sample(turns[0], turns[1]))


@pytest.mark.parametrize(
    ("template", "turns", "reason"),
    [
        (MISTRAL, (TALK[0], TALK[0], TALK[1]), "roles must alternate"),
        (GEMMA, (SYSTEM, *TALK), "no system turn"),
        (
            THOUGHTFUL,
            TALK,
            r"opens reply 1 by '<think>\\n', but writes",
        ),
    ],
)
def test_conversations_that_a_template_does_not_take(template, turns, reason, tokenizer):
    with pytest.raises(BadRecord, match=reason):
        chat_of(template, tokenizer).encode(sample(*turns))


def test_a_template_without_ends_requires_eos(tokenizer):
    template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    endless = JinjaTemplate(template, {}, tokenizer.special_tokens(), MARK, None)
    with pytest.raises(TemplateError, match="does not end replies, and the tokenizer names no eos"):
        endless.stretches(TALK, generate=False)


def test_a_prompt_that_opens_a_thought_is_fine_where_nothing_is_trained(tokenizer):
    chat = chat_of(THOUGHTFUL, tokenizer)
    assert spelled(tokenizer, chat.encode_prompt(TALK[:1]).tokens.tolist()).endswith("<think>\n")


def test_files_and_travel(tokenizer, tmp_path):
    (tmp_path / "chat_template.jinja").write_text(LLAMA3)
    chat = Chat(f"file:{tmp_path}/chat_template.jinja", tokenizer, 1, True)
    expected = chat.encode(sample(*TALK)).tokens
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(chat)).encode(sample(*TALK)).tokens, expected)
    with pytest.raises(ValueError, match="cannot be read"):
        Chat("file:nowhere.jinja", tokenizer, 1, True)
    with pytest.raises(ValueError, match="no Jinja"):
        Chat("jinja:{% for %}", tokenizer, 1, True)
    with pytest.raises(ValueError, match="leaves out what a user asks"):
        Chat("jinja:hello", tokenizer, 1, True)
