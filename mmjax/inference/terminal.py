"""A conversation in the terminal: what `mmjax chat` runs."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Callable
from urllib.parse import unquote, urlsplit

import numpy as np

from mmjax.data.image import ImageError
from mmjax.errors import UserError
from mmjax.inference.chat import BLIND, Assistant
from mmjax.typed import suggest

HELP = """\
Type a question and press Enter. Commands:
  /image PATH         show a picture with the next question (or drag its file into the window)
  /reset              begin anew: forget all turns and pictures
  /temperature 0.7    0 for the likeliest answer, more for variety
  /help               this text
  /quit               leave (or Ctrl-D); Ctrl-C interrupts an answer"""
SUFFIXES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff")


class _Quit(Exception):
    """The user wants to leave."""


def chat_loop(assistant: Assistant, input: Callable = input, output: Callable = print) -> None:
    """Reads questions and commands until /quit or Ctrl-D, and prints answers as they grow.

    Args:
      input: prompt -> line; raises EOFError at the end, KeyboardInterrupt on Ctrl-C.
      output: called like `print`, with `end` and `flush`.
    """
    terminal = _Terminal(assistant, output)
    seeing = "Ask about a picture: /image PATH, then a question."
    output(f"{seeing if assistant.model.encoders else 'Ask a question.'} /help tells more.")
    output(f"(Answers: {assistant.sampling}.)")
    while True:
        try:
            line = input("> ").strip()
            terminal.take(line)
        except KeyboardInterrupt:
            output("\n(Interrupted; /quit or Ctrl-D leaves.)")
        except (EOFError, _Quit):
            output("Bye.")
            return


class _Terminal:
    """The state between two lines: the conversation, and pictures that wait for their question."""

    def __init__(self, assistant: Assistant, output: Callable):
        self.conversation = assistant.chat()
        self.assistant, self.output = assistant, output
        self.waiting: list[np.ndarray] = []
        self.sampling = assistant.sampling
        self.commands = dict(
            image=self.image, reset=self.reset, temperature=self.set_temperature, help=self.help, quit=self.quit
        )

    def take(self, line: str) -> None:
        """Does what one line asks for."""
        if not line:
            return
        name, _, argument = line.removeprefix("/").partition(" ")
        if line.startswith("/") and name in self.commands:
            self.commands[name](argument.strip())
        elif path := dragged_path(line):
            self.image(path)
        elif line.startswith("/"):
            self.output(f"There is no command /{name}" + suggest(name, self.commands))
        else:
            self.ask(line)

    def ask(self, question: str) -> None:
        """Prints the answer; the waiting pictures are used up once there is one."""
        sampling = self.sampling
        said = False
        try:
            answer = self.conversation.stream(question, images=self.waiting, sampling=sampling)
            with contextlib.closing(answer):  # an interrupted answer enters the history at once, not some time
                for piece in answer:
                    self.output(piece, end="", flush=True)
                    said, self.waiting = True, []
        except UserError as error:
            self.output(f"{error} (/reset begins anew.)")
            return
        self.output("" if said else "(The model has nothing to say.)")

    def image(self, path: str) -> None:
        if not path:
            self.output("Which picture? /image PATH")
            return
        if "image" not in self.assistant.model.encoders:
            self.output(f"No picture added: {BLIND}.")
            return
        try:
            self.waiting.append(self.assistant.rgb(_unquoted(path)))
        except ImageError as error:
            self.output(f"No picture added: {error}.")
            return
        self.output(f"Picture {len(self.waiting)} for your next question: {os.path.basename(_unquoted(path))}")

    def reset(self, _: str) -> None:
        self.conversation.reset()
        self.waiting = []
        self.output("A new conversation.")

    def set_temperature(self, argument: str) -> None:
        try:
            self.sampling = self.sampling.but(temperature=float(argument))
        except ValueError:
            now = self.sampling.temperature
            self.output(f"A temperature is a number from 0 on, such as 0.7; it stays {now:g}.")
            return
        self.output(f"Temperature {self.sampling.temperature:g}.")

    def help(self, _: str) -> None:
        self.output(HELP)

    def quit(self, _: str) -> None:
        raise _Quit


def dragged_path(line: str) -> str | None:
    """The path, if the line is that of a picture and nothing else, as terminals paste a file dropped on them."""
    path = _unquoted(line)
    picture = path.lower().endswith(SUFFIXES) and (os.path.isfile(path) or line.startswith("/"))
    return path if picture else None


def _unquoted(path: str) -> str:
    """A path without the quotes, backslashes or file:// that terminals put around it."""
    if path.startswith("file://"):
        return unquote(urlsplit(path).path)
    if os.path.isfile(os.path.expanduser(path)):
        return os.path.expanduser(path)
    try:
        words = shlex.split(path)
    except ValueError:  # a lone quote is part of the name
        return path
    return os.path.expanduser(words[0]) if len(words) == 1 else path
