"""What must stay as it is through a change of structure: resolved configs, rows, prompts, losses.

    python -m pytest tests/golden                 compares
    python -m pytest tests/golden --make-golden   writes the files anew; `git diff` shows what has moved
    MMJAX_GOLDEN=exact python -m pytest ...       losses equal to the bit: before and after, on one machine

A change of structure leaves the files untouched, or changes one named line and says why in its commit. Each line
of a file is one key: a config's, with the path to it, a field of Batch, a metric over the steps of a stage. Arrays
have dtype, shape and sha256. Whatever of mmjax is called stands in entries.py: a new name is one line there.
"""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

FOLDER = Path(__file__).parent
RTOL = 1e-6  # of losses and gradient norms: another CPU adds up in another order


def write(name, values):
    """Keeps `values`, a dict of JSON values, as the file `name`.json: a line for each key, in their order."""
    file = FOLDER / f"{name}.json"
    file.parent.mkdir(exist_ok=True)
    lines = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in sorted(lines_of(values).items())]
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def check(name, values):
    """Compares `values` with the file `name`.json; a failure names the keys that differ."""
    kept, found = json.loads((FOLDER / f"{name}.json").read_text()), lines_of(values)
    problems = [f"{key}: is new, {_short(found[key])}" for key in found.keys() - kept.keys()]
    problems += [f"{key}: is gone, was {_short(kept[key])}" for key in kept.keys() - found.keys()]
    for key in kept.keys() & found.keys():
        if where := _difference(kept[key], found[key]):
            problems.append(f"{key}{where}")
    assert not problems, f"tests/golden/{name}.json:\n" + "\n".join(sorted(problems))


def lines_of(values, path=""):
    """{path: value} of all that is no section, each as JSON gives it back."""
    if not isinstance(values, Mapping) or not values:
        return {path: json.loads(json.dumps(values, sort_keys=True))}
    found = {}
    for key, value in values.items():
        found |= lines_of(value, f"{path}/{key}" if path else str(key))
    return found


def _difference(kept, found):
    """'' if the two are the same; else where and what. Lists of floats are measurements."""
    if not _measured(kept) or not _measured(found):
        return "" if _same(kept, found) else f": was {_short(kept)}, is {_short(found)}"
    if len(kept) != len(found):
        return f": has {len(found)} numbers, had {len(kept)}"
    exact = os.environ.get("MMJAX_GOLDEN") == "exact"
    for index, (old, new) in enumerate(zip(kept, found, strict=True)):
        if old != new and (exact or not math.isclose(old, new, rel_tol=RTOL)):
            return f"[{index}]: was {old!r}, is {new!r}, {abs(new - old) / max(abs(old), 1e-30):.1e} off"
    return ""


def _same(kept, found):
    """1 and 1.0 and True are different values of a config."""
    return json.dumps(kept) == json.dumps(found)


def _measured(value):
    return isinstance(value, list) and len(value) > 1 and all(isinstance(number, float) for number in value)


def _short(value):
    text = json.dumps(value)
    return text if len(text) < 200 else f"{text[:200]}..."
