"""Chat templates: how each model family writes a conversation down. A template is data.

Those here have names; checkpoints bring theirs in Jinja (jinja.py).
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mmjax.errors import UserError
from mmjax.typed import suggest


@dataclasses.dataclass(frozen=True)
class Template:
    """The strings around the turns of a conversation.

    In them `{bos}` and `{eos}` and the names in `specials` stand for single tokens; everything else, and
    all text of the turns, is ordinary text. A reply is a target from `reply_open` to `reply_close`, so
    `assistant_open` is exactly where generation starts.

    system: the system turn of a conversation that has none; '' for none.
    prompt_text: False leaves only the pictures of user turns and no system turn.
    text_open: what follows the pictures that a user turn begins with, instead of the line's end behind them; ''
      for the text as it is.
    picture_ends: special token before and behind a picture, once between two, instead of the line's end behind it;
      '' for none. It is one of `specials`.
    strip: whether white space around the text of a turn is left out.
    begins: whether the first text behind {bos} is tokenised as the beginning of a text, where that differs.
    prefix: True for a prefix LM: what stands before a reply, text and pictures, is one block whose tokens see one
      another; replies are causal.
    """

    reply_close: str
    start: str = ""
    system: str = ""
    system_open: str = ""
    system_close: str = ""
    user_open: str = ""
    user_close: str = ""
    assistant_open: str = ""
    reply_open: str = ""
    after_reply: str = ""
    specials: tuple[str, ...] = ()
    prompt_text: bool = True
    text_open: str = ""
    picture_ends: str = ""
    strip: bool = True
    begins: bool = True
    prefix: bool = False


TEMPLATES = {
    # LLaVA's pre-training: picture, caption, newline (llava/train/train.py, preprocess_plain).
    "plain": Template(start="{bos}", reply_close="\n", prompt_text=False),
    # Hardly anything between the turns, for small models from scratch.
    "bare": Template(start="{bos}", user_close="\n", reply_close="{eos}"),
    # Nothing at all, for models that were trained to go on with a text.
    "text": Template(start="{bos}", reply_close="{eos}", strip=False),
    # LLaVA-1.5 (llava/conversation.py, conv_vicuna_v1): the space before a reply is part of its first token.
    "vicuna_v1": Template(
        start="{bos}",
        system="A chat between a curious user and an artificial intelligence assistant. "
        "The assistant gives helpful, detailed, and polite answers to the user's questions.",
        system_close=" ",
        user_open="USER: ",
        user_close=" ",
        assistant_open="ASSISTANT:",
        reply_open=" ",
        reply_close="{eos}",
    ),
    # PaliGemma (big_vision/configs/proj/paligemma): pictures, prompt, newline, suffix; one question each.
    "paligemma": Template(text_open="{bos}", user_close="\n", reply_close="{eos}", strip=False, prefix=True),
    # Idefics (transformers, models/idefics/processing_idefics.py): texts and pictures as they come.
    "idefics": Template(
        start="{bos}",
        reply_close="{eos}",
        specials=("<fake_token_around_image>",),
        picture_ends="<fake_token_around_image>",
        strip=False,
        begins=False,
    ),
    # ChatML, as Qwen, SmolLM and others write it.
    "chatml": Template(
        system_open="<|im_start|>system\n",
        system_close="<|im_end|>\n",
        user_open="<|im_start|>user\n",
        user_close="<|im_end|>\n",
        assistant_open="<|im_start|>assistant\n",
        reply_close="<|im_end|>",
        after_reply="\n",
        specials=("<|im_start|>", "<|im_end|>"),
    ),
    # Llama 3 (llama-models, chat_format.py).
    "llama3": Template(
        start="{bos}",
        system_open="<|start_header_id|>system<|end_header_id|>\n\n",
        system_close="<|eot_id|>",
        user_open="<|start_header_id|>user<|end_header_id|>\n\n",
        user_close="<|eot_id|>",
        assistant_open="<|start_header_id|>assistant<|end_header_id|>\n\n",
        reply_close="<|eot_id|>",
        specials=("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    ),
}


def find_template(name: str) -> Template:
    """A template by its name. Raises UserError, with the nearest name, if there is none."""
    if name not in TEMPLATES:
        raise UserError(f"template: there is no {name!r}" + suggest(name, TEMPLATES))
    return TEMPLATES[name]


def open_template(name: str) -> Template | str:
    """A template by its name; or the source of a Jinja template: 'file:PATH', or 'jinja:' and the source itself.

    Raises:
      UserError: there is none, and what would be.
    """
    kind, _, rest = name.partition(":")
    if kind == "jinja":
        return rest
    if kind == "file":
        try:
            return Path(rest).expanduser().read_text()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"template: {rest} cannot be read: {error}") from error
    return find_template(name)
