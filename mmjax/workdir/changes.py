"""What a run in a workdir may change of what the workdir was trained with: the rule, and its check.

A key may have another value where no step that is taken, and none that follows, would be another for it; or where
it says where something lies, and not what it is. A change of any other is refused:

    mesh, remat, scan                          the same numbers but for their rounding
    max_skipped, keep, wandb, evaluation       no part of a step
    data_dir, data.sources.*.path and .root    places; the data itself is checked by its fingerprint (packing.py)
    tokenizer.path and .train                  a place and a way to make it; the file must be that of the copy kept
    load                                       where a source lies, as long as its kind and name are the same
    STAGE.log_every, .save_every, .valid       no part of a step
    STAGE.data.workers, .threads, .max_refused no part of a step
    STAGE.steps                                of the last stage begun, if its learning rates stay as they were: a
                                               constant schedule, a warm-up counted in steps; not below its step
    stages                                     those after the last stage begun, and all that their sections say
"""

from __future__ import annotations

import filecmp
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmjax.errors import UserError
from mmjax.workdir.kept import kept_tokenizer, tokenizer_path
from mmjax.workdir.saved import Saved

MAY_CHANGE = (
    "mesh", "remat", "scan", "max_skipped", "keep", "wandb", "evaluation", "data_dir", "tokenizer.path",
    "tokenizer.train", "STAGE.log_every", "STAGE.save_every", "STAGE.valid", "STAGE.data.workers",
    "STAGE.data.threads", "STAGE.data.max_refused", "STAGE.data.sources.*.path", "STAGE.data.sources.*.root",
)  # fmt: skip
SHOWN = 100  # characters of a value in a message

KeyPath = tuple[str, ...]


def check_model(before: Saved, now: Saved) -> None:
    """Raises UserError if a config has another model than the converted workdir, whose weights are of that one."""
    _refuse(list(_differences(before.raw["model"], now.raw["model"], ("model",))), now.workdir)


def check_changes(before: Saved, now: Saved, last: str, step: int | None) -> None:
    """Raises UserError if a run cannot go on with another config; names the keys, their values and the remedy.

    Args:
      before: that of the newest checkpoint. last, step: the stage and step it is of.
    """
    old, new, workdir = before.raw, now.raw, now.workdir
    stages = old["stages"][: old["stages"].index(last) + 1]
    if new["stages"][: len(stages)] != stages:
        raise UserError(
            f"stages: {workdir} has trained {stages}, in this order; the config has {new['stages']}. Let it begin "
            "with those, or choose another --workdir."
        )
    changes = [] if _named(old["load"]) == _named(new["load"]) else [(("load",), old["load"], new["load"])]
    for path, was, is_now in _differences(_of_stages(old, stages), _of_stages(new, stages), ()):
        if path == (last, "steps") and _may_go_on(old[last], step, is_now):
            continue
        if not _may_change(path, stages):
            changes.append((path, was, is_now))
    _refuse(changes, workdir)
    _check_tokenizer(now.today["tokenizer"], workdir)


def _of_stages(raw: Mapping[str, Any], stages: list[str]) -> dict[str, Any]:
    """What a config says of those stages: less `stages` and `load`, and the sections of others."""
    others = {name for name in raw["stages"] if name not in stages}
    return {key: value for key, value in raw.items() if key not in ("stages", "load") and key not in others}


def _named(load: Sequence[Sequence[str]]) -> list[tuple[str, str, str]]:
    """(part, kind of source, its name) of each rule: not where a source lies."""
    return [(part, source.partition(":")[0], Path(source).name) for part, source in load]


def _differences(before: Any, now: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Any, Any]]:
    """(path, value before, value now) of each key with another value; a key that is not there counts as None."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys([*before, *now]):
            yield from _differences(before.get(key), now.get(key), (*path, key))
    elif before != now:
        yield path, before, now


def _may_change(path: KeyPath, stages: list[str]) -> bool:
    general = ("STAGE", *path[1:]) if path[0] in stages else path
    for allowed in MAY_CHANGE:
        parts = allowed.split(".")
        if len(parts) <= len(general) and all(a in ("*", b) for a, b in zip(parts, general, strict=False)):
            return True
    return False


def _may_go_on(section: Mapping[str, Any], step: int, steps: int) -> bool:
    """Whether a stage at that step has been trained as one of so many steps would be."""
    optimizer = section["optimizer"]
    level = optimizer["schedule"] == "constant" and (optimizer["warmup"] >= 1 or not optimizer["warmup"])
    return level and step <= steps


def _refuse(changes: list[tuple[KeyPath, Any, Any]], workdir: Path) -> None:
    """Raises UserError, if there are any, with a line for each."""
    if not changes:
        return
    lines = [f"  {'.'.join(path)}: {_shown(old)} before, {_shown(new)} now" for path, old, new in changes[:20]]
    lines += [f"  ... and {len(changes) - 20} more"] if len(changes) > 20 else []
    remedy = "Give these keys their values of before, or choose another --workdir."
    if any(path[1:] == ("steps",) for path, _, _ in changes):
        remedy += (
            " `steps` may change under schedule='constant' with a warm-up in steps, not below the step reached, "
            "until the next stage has begun; to train on in any case, add a stage."
        )
    raise UserError(f"{workdir}: was made with another config:\n" + "\n".join(lines) + f"\n{remedy}")


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= SHOWN else text[:SHOWN] + "..."


def _check_tokenizer(spec: Mapping[str, Any], workdir: Path) -> None:
    """Raises UserError if the file that `spec` names is another than the one that the workdir keeps."""
    path, kept = tokenizer_path(spec), kept_tokenizer(spec, workdir)
    if path.exists() and kept.exists() and not filecmp.cmp(path, kept, shallow=False):
        raise UserError(
            f"tokenizer.path: {path} is not the tokenizer that {workdir} was trained with, which is {kept}. Name "
            "that one, or choose another --workdir."
        )
