"""mmjax: multimodal LLMs as compositions, in JAX.

import mmjax
assistant = mmjax.load("runs/quickstart-projector")
assistant("what color is the shape?", image="picture.png")
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmjax.inference.chat import Assistant


def load(workdir: str | os.PathLike[str], stage: str | None = None, trust: Sequence[str] = ()) -> Assistant:
    """The assistant that a workdir has trained. trust: packages, besides mmjax, that its parts may come from."""
    from mmjax.inference.load import load  # JAX and all else are imported when they are needed

    return load(workdir, stage, trust)
