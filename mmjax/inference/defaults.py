"""How a model decodes where nobody says otherwise."""

from __future__ import annotations

from pathlib import Path

from mmjax.errors import UserError
from mmjax.hub.generation import GENERATION, generation_settings
from mmjax.hub.tensors import CheckpointError
from mmjax.inference.settings import Sampling


def own_sampling(folder: Path, window: int) -> Sampling:
    """As generation_config.json says, if the checkpoint that a model came from has left one in `folder`; else
    greedily. Answers leave at least half of the window to the prompt.

    Raises:
      CheckpointError: the file is damaged, or has a value outside its range.
    """
    found, _ = generation_settings(folder)
    try:
        made = Sampling(**{"max_new": min(Sampling.max_new, window // 4)} | found)
        return made.but(max_new=min(made.max_new, max(1, window // 2)))
    except UserError as error:
        raise CheckpointError(f"{folder / GENERATION}: {error}") from error
