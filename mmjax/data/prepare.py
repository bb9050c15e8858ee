"""What `mmjax prepare` does with a data spec: build its corpora, and give its texts to train a tokenizer on."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mmjax.data import corpora
from mmjax.data.marks import split_marks, without_marks
from mmjax.data.quarantine import BadRecord
from mmjax.data.sources import open_source
from mmjax.data.spec import DataSpec
from mmjax.data.templates import Template, open_template


def prepare(spec: DataSpec, data_dir: str) -> None:
    """Builds the corpora of a data spec in `data_dir`, those that are not there yet."""
    corpora.prepare([source.path for source in spec.sources.values()], data_dir)


def texts(spec: DataSpec, data_dir: str) -> Iterator[str]:
    """The texts of a data spec as the model will read them, without special tokens and picture marks: a word
    that a template puts before each turn is worth a token of its own."""
    for part in spec.sources.values():
        template = open_template(part.template or spec.template)
        around = {role: _around(template, role) for role in ("system", "user", "assistant")}
        source = open_source(part.path, part.root, data_dir)
        for index in range(len(source)):
            try:
                sample = source[index]
            except BadRecord:
                continue  # is reported when the source is measured
            turns = sample.turns if sample.images else without_marks(sample.turns)
            for turn in turns:
                before, after = around[turn.role]
                yield before + "".join(split_marks(turn.text)) + after


def _around(template: Template | str, role: str) -> tuple[str, str]:
    """A template's text before and after a turn; of one in Jinja nothing, since it comes with its tokenizer."""
    if isinstance(template, str):
        return "", ""
    if role == "assistant":
        strings = (template.assistant_open + template.reply_open, template.reply_close + template.after_reply)
    elif not template.prompt_text:
        strings = ("", "")
    elif role == "user":
        strings = (template.user_open, template.user_close)
    else:
        strings = (template.system_open, template.system_close)
    special = "|".join(map(re.escape, ("{bos}", "{eos}", *template.specials)))
    before, after = (re.sub(special, "", string) for string in strings)
    return before, after
