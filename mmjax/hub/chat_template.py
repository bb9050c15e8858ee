"""The chat template of an export: the one that its model was trained with, in Jinja for `transformers`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging

from mmjax.data.chat import Chat
from mmjax.data.marks import MARK
from mmjax.data.pipeline import make_chat
from mmjax.data.spec import DataSpec
from mmjax.data.templates import Template
from mmjax.data.tokenizer import Tokenizer
from mmjax.errors import UserError
from mmjax.hub.auto_tokenizer import optional
from mmjax.hub.family import Family
from mmjax.hub.tokenizer import MORE_TEMPLATES, SINGLE_TEMPLATE, template_of
from mmjax.model import MultimodalLM
from mmjax.types import Turn

_LEGACY = "chat_template.json"  # a processor of `transformers` prefers it to chat_template.jinja
_KEYED = ("tokenizer_config.json", "processor_config.json", "preprocessor_config.json")  # may have `chat_template`
_PICTURE = (448, 448)  # pixels of a picture to try prompts with
# Conversations that a template in Jinja must write as the one of ours that it stands for.
_PROBES = {
    "one question": (Turn("user", "Hi, you."),),
    "a second question": (Turn("user", "Hi"), Turn("assistant", "Good day."), Turn("user", "And?")),
    "a system turn": (Turn("system", "Be brief."), Turn("user", "Hi")),
    "a picture": (Turn("user", f"{MARK}\nWhat is it?"),),
}
# What follows lines such as {%- set user_open = "USER: " -%}, one for each string of data.templates.Template. Of a
# list of parts, a line's end stands between a picture and what is beside it.
_BODY = """
{{- start -}}
{%- set now = namespace(system=false, text='', before='') -%}
{%- for message in messages if message['role'] == 'system' -%}{%- set now.system = true -%}{%- endfor -%}
{%- if not now.system -%}{{- system -}}{%- endif -%}
{%- for message in messages -%}
  {%- if message['content'] is string -%}
    {%- set now.text = message['content'] -%}
  {%- else -%}
    {%- set now.text = '' -%}
    {%- set now.before = '' -%}
    {%- for part in message['content'] -%}
      {%- if part['type'] == 'image' -%}
        {%- set now.text = now.text + ('\\n' if now.before else '') + picture -%}
      {%- else -%}
        {%- set now.text = now.text + ('\\n' if now.before == 'image' else '') + part['text'] -%}
      {%- endif -%}
      {%- set now.before = part['type'] -%}
    {%- endfor -%}
  {%- endif -%}
  {%- if strip -%}{%- set now.text = now.text | trim -%}{%- endif -%}
  {%- if message['role'] == 'assistant' -%}
    {{- assistant_open + reply_open + now.text.rstrip() + reply_close + after_reply -}}
  {%- elif not prompt_text -%}
    {%- for _ in now.text.split(picture)[1:] -%}{{- picture -}}{%- endfor -%}
  {%- elif message['role'] == 'system' -%}
    {{- system_open + now.text + system_close -}}
  {%- else -%}
    {{- user_open + now.text + user_close -}}
  {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- assistant_open -}}{%- endif -%}
"""


def to_jinja(template: Template, bos: str, eos: str, picture: str) -> str:
    """A template of ours in Jinja; '' for one whose rules about pictures Jinja's contents cannot say.

    Args:
      bos, eos: names of the tokens, '' for none. picture: what the text has for a picture.
    """
    if template.text_open or template.picture_ends or not template.begins:
        return ""
    system = template.system_open + template.system + template.system_close
    strings = dict(
        start=template.start,
        system=system if template.system and template.prompt_text else "",
        system_open=template.system_open,
        system_close=template.system_close,
        user_open=template.user_open,
        user_close=template.user_close,
        assistant_open=template.assistant_open,
        reply_open=template.reply_open,
        reply_close=template.reply_close,
        after_reply=template.after_reply,
    )
    values = {key: text.replace("{bos}", bos).replace("{eos}", eos) for key, text in strings.items()}
    values |= dict(picture=picture, strip=template.strip, prompt_text=template.prompt_text)
    lines = [f"{{%- set {key} = {json.dumps(value, ensure_ascii=False)} -%}}" for key, value in values.items()]
    return "\n".join(lines) + _BODY.rstrip()


class Prompts:
    """How a stage's data writes conversations down. template: of its spec. image_token: name of the token that
    stands where projected ones come. layouts: of one picture, as for chat.Chat.encode. chat: makes the prompts.
    media: of the spec."""

    def __init__(
        self, data: DataSpec, tokenizer: Tokenizer, model: MultimodalLM, section: Mapping[str, Any], file: Path
    ):
        """
        Args:
          section: the config's `tokenizer`. file: the tokenizer's.

        Raises:
          UserError: as for chat.Chat.
        """
        self._data, self.tokenizer, self._vocab = data, tokenizer, model.backbone.vocab
        self.section, self.file, self.media = section, file, data.media
        self._splice, span = model.splices, model.text_span
        views, self._span = data.media.make_views().unlimited(span)
        self.template = data.prompt_template
        self.image_token = tokenizer.names.get("image_token", data.media.token)
        self.layouts = (views.layout(_PICTURE, self._span),) if views.sized and model.encoders else ()
        self.chat = self.by(data.prompt_template)

    def by(self, template: str) -> Chat:
        """The same prompts by another template."""
        return make_chat(self._data, self.tokenizer, self._span, self._splice, template, self._vocab)

    def role(self, role: str) -> tuple[str, int | None]:
        """(name, id) of the token with a role such as 'bos', whether or not texts have it; ('', None) for none."""
        number, specials = getattr(self.tokenizer, role), self.tokenizer.special_tokens()
        name = self.name_of(number) or self.tokenizer.names.get(f"{role}_token", "")
        return (name, specials[name][0]) if name in specials else ("", number)

    def name_of(self, number: int | None) -> str:
        """The name of a special token, '' for none."""
        names = {found[0]: name for name, found in self.tokenizer.special_tokens().items()}
        return names.get(number, "")


def write_template(target: Path, prompts: Prompts, family: Family) -> bool:
    """Gives an exported folder the template that its model was trained with -> whether it is another than it had.

    A template that cannot be written, or that prompts otherwise in Jinja, is named in a warning.
    """
    name, chat = prompts.template, prompts.chat
    if name in (template_of(target, processor=family.part == ""), family.template):
        return False
    if chat.jinja:
        _replace(target, chat.jinja.source)
        return True
    pieces = prompts.layouts[0].pieces if prompts.layouts and prompts.layouts[0].grid else ()
    picture = "".join([*pieces[:1], prompts.image_token, *pieces[2:]])  # grids stand between two special tokens
    bos, eos = (prompts.name_of(number) for number in (prompts.tokenizer.bos, prompts.tokenizer.eos))
    source = to_jinja(chat.template, bos, eos, picture)
    _replace(target, source)
    if not source:
        logging.warning(
            "%s: data.template=%r has no form in Jinja, and no chat template is written: prompts as mmjax "
            "writes them cannot be had by apply_chat_template of transformers.",
            *(target, name),
        )
    elif differing := _differing(prompts, source):
        logging.warning(
            "%s: by data.template=%r in Jinja transformers writes other prompts than mmjax, for: %s.",
            *(target, name, ", ".join(differing)),
        )
    return True


def _differing(prompts: Prompts, source: str) -> list[str]:
    """What sort of prompt a template and its form in Jinja write differently."""
    found = []
    for what, turns in _PROBES.items():
        shown = MARK in turns[0].text
        if shown and prompts.image_token not in prompts.tokenizer.special_tokens():
            continue
        layouts = prompts.layouts if shown else ()
        try:
            ours, theirs = (c.encode_prompt(turns, layouts) for c in (prompts.chat, prompts.by(f"jinja:{source}")))
            if ours.tokens.tolist() != theirs.tokens.tolist():
                found.append(what)
        except UserError as error:
            found.append(f"{what} ({error})")
    return found


def _replace(target: Path, source: str) -> None:
    """Leaves `source`, '' for none, as the folder's only chat template."""
    for name in (SINGLE_TEMPLATE, _LEGACY):
        (target / name).unlink(missing_ok=True)
    if (target / MORE_TEMPLATES).exists():
        shutil.rmtree(target / MORE_TEMPLATES)
    for name in _KEYED:
        found = optional(target / name)
        if found.pop("chat_template", None) is not None:
            (target / name).write_text(json.dumps(found, indent=2, ensure_ascii=False))
    if source:
        (target / SINGLE_TEMPLATE).write_text(source)
