"""mmjax: multimodal LLMs as compositions, in JAX.

import mmjax
assistant = mmjax.load("runs/quickstart-projector")
assistant("what color is the shape?", image="picture.png")
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mmjax.inference.chat import Assistant


def load(workdir: str | os.PathLike[str], stage: str | None = None) -> Assistant:
    """The assistant that a workdir has trained; see inference/load.py."""
    from mmjax.inference.load import load  # JAX and all else are imported when they are needed

    return load(workdir, stage)
