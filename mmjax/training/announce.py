"""Shows what a stage trains and what its steps are fed, in the terminal."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmjax import tree
from mmjax.data import show
from mmjax.data.pipeline import Dataset
from mmjax.training.run import Run, prepare
from mmjax.training.setup import Setup

SHOWN = 2000  # characters of the first row


def announce(run: Run, setup: Setup, data: Dataset) -> None:
    """Prints what a stage trains and what a step is fed: shapes, and the first row as text; its pictures go beside
    the stage's metrics. To the terminal, where the progress is shown: no log need be turned on for it."""
    stage, total, trained = setup.stage, tree.count(setup.shapes), tree.count(setup.trainable)
    row, file = data.row(0), run.workdir / stage.name / "first_row.png"
    text = show.row_text(row, run.tokenizer)
    shortened = text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."
    seen = f"\nIts pictures: {file}" if show.write_pictures(row, file) else ""
    print(
        f"Stage {stage.name}: {stage.steps:,} steps of {stage.batch} rows; {trained:,} of {total:,} parameters "
        f"trained ({100 * trained / total:.2f} %); rows {100 * data.fill:.0f} % full.\n"
        f"A step takes {show.shapes(setup.batch)}. The first row, its targets in {' '.join(show.TARGET)}:\n"
        f"{shortened}{seen}",
        file=sys.stderr,
    )


def show_rows(raw: Mapping[str, Any], count: int, only: str | None = None, into: str | Path | None = None) -> None:
    """Prints the first rows of a config's stages, or of the stage named `only`, as a model is fed them.

    Args:
      into: a folder for the rows' pictures, a PNG for each row that has any.

    Raises:
      UserError: as for `train`.
    """
    with tempfile.TemporaryDirectory() as scratch:
        run = prepare(raw, Path(scratch))
        for stage in [run.config.stage(only)] if only else run.config.stages:
            data = run.data(stage, "train")
            shapes = show.shapes(data.row(0))
            print(f"# {stage.name}: {len(data):,} rows, {100 * data.fill:.0f} % full; each {shapes}")
            for r in range(min(count, len(data))):
                row = data.row(r)
                file = Path(into) / f"{stage.name}-{r}.png" if into else None
                seen = f"\n{file}" if file and show.write_pictures(row, file) else ""
                print(f"## row {r}: {', '.join(data.ids([r]))}\n{show.row_text(row, run.tokenizer)}{seen}\n")
