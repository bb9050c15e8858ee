"""A model family of Hugging Face: its config to a model section and back, and its table of names."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

from mmjax.build import resolve
from mmjax.errors import UserError
from mmjax.hub.image_processor import ImageProcessor
from mmjax.hub.table import Row
from mmjax.hub.tensors import CheckpointError, shown
from mmjax.typed import check_types, hints_of

Json = Mapping[str, Any]

# config.json's `model_type` -> where its Family stands.
FAMILIES = {
    "llama": "mmjax.hub.text.LLAMA",
    "mistral": "mmjax.hub.text.MISTRAL",
    "qwen2": "mmjax.hub.text.QWEN2",
    "qwen3": "mmjax.hub.text.QWEN3",
    "gemma": "mmjax.hub.gemma.GEMMA",
    "gemma2": "mmjax.hub.gemma.GEMMA2",
    "gemma3_text": "mmjax.hub.gemma.GEMMA3",
    "phi": "mmjax.hub.phi.PHI",
    "opt": "mmjax.hub.opt.OPT",
    "gpt_neox": "mmjax.hub.neox.NEOX",
    "mpt": "mmjax.hub.mpt.MPT",
    "clip": "mmjax.hub.vision.CLIP",
    "clip_vision_model": "mmjax.hub.vision.CLIP_VISION",
    "siglip": "mmjax.hub.vision.SIGLIP",
    "siglip_vision_model": "mmjax.hub.vision.SIGLIP_VISION",
    "siglip2": "mmjax.hub.vision.SIGLIP2",
    "siglip2_vision_model": "mmjax.hub.vision.SIGLIP2_VISION",
    "dinov2": "mmjax.hub.dino.DINOV2",
    "dinov2_with_registers": "mmjax.hub.dino.DINOV2_REGISTERS",
    "blip_2_vision_model": "mmjax.hub.eva.BLIP2_VISION",
    "llava": "mmjax.hub.llava.LLAVA",
    "llava_next": "mmjax.hub.llava_next.LLAVA_NEXT",
    "idefics3": "mmjax.hub.idefics3.IDEFICS3",
    "idefics3_vision": "mmjax.hub.idefics3.IDEFICS3_VISION",
    "smolvlm": "mmjax.hub.idefics3.SMOLVLM",
    "smolvlm_vision": "mmjax.hub.idefics3.SMOLVLM_VISION",
    "internvl": "mmjax.hub.internvl.INTERNVL",
    "internvl_vision": "mmjax.hub.internvl.INTERNVL_VISION",
    "qwen2_vl": "mmjax.hub.qwen_vl.QWEN2_VL",
    "qwen2_5_vl": "mmjax.hub.qwen_vl.QWEN2_5_VL",
    "idefics": "mmjax.hub.idefics.IDEFICS",
    "paligemma": "mmjax.hub.paligemma.PALIGEMMA",
}


@dataclasses.dataclass(frozen=True)
class Family:
    """model_type, architecture: what config.json calls the family and its class.

    spec: config.json -> our `model` section, or its part (the backbone of a text family, the encoder of a
      vision family), all keys that matter spelled out.
    config: that section or part -> config.json, without what the fields above say.
    rows: (that section or part) -> the table, paths from the part down, names as `transformers` saves them.
    part: where that part stands in the model: 'backbone', 'encoders/image', or '' for a whole model.
    modules: (prefix in the table, prefix in memory): how the loaded model of `transformers` calls modules that
      files call otherwise; the longest prefix counts. Adapters are written for these names, and files that have
      them are read.
    renames: (regex, replacement) applied to a file's names after that: what other files call things.
    ignored: regexes of tensors that may be lost: buffers.
    aside: regexes of tensors that no parameter need stand for, and that an import keeps for the way back: other
      towers, unused heads.
    unwritten: keys of config.json, in any section, that speak of those: an export that has them leaves the keys.
    partial: whether the model is incomplete without them.
    views: (config.json, the image processor) -> `data.media.views`, of a family with pictures in tiles.
    template: the chat template (data/templates.py) that the family wants, '' if the tokenizer's files say it.
    """

    model_type: str
    architecture: str
    spec: Callable[[Json], dict[str, Any]]
    config: Callable[[Json], dict[str, Any]]
    rows: Callable[[Json], list[Row]]
    part: str
    renames: tuple[tuple[str, str], ...] = ()
    modules: tuple[tuple[str, str], ...] = ()
    ignored: tuple[str, ...] = ()
    views: Callable[[Json, ImageProcessor], dict[str, Any]] | None = None
    aside: tuple[str, ...] = ()
    unwritten: tuple[str, ...] = ()
    partial: bool = False
    template: str = ""

    def module(self, name: str) -> str:
        """The name in memory of a tensor of the table."""
        return _moved(name, self.modules)

    def canonical(self, name: str) -> str:
        """The table's name of a tensor of a file."""
        # A level that only the table has is added by `renames`: of two that are one in memory, the shorter counts.
        shortest = sorted(self.modules, key=lambda pair: len(pair[0]))
        back = {memory: table for table, memory in reversed(shortest)}
        return renamed(_moved(name, tuple(back.items())), self.renames)


def _moved(name: str, prefixes: tuple[tuple[str, str], ...]) -> str:
    """A name with the longest of these prefixes replaced."""
    found = max((old for old, _ in prefixes if name.startswith(old)), key=len, default="")
    return dict(prefixes).get(found, "") + name.removeprefix(found)


def renamed(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    """A name after (regex, replacement) rules, one after the other."""
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


PARTS_OF_MODELS = ("backbones", "encoders", "projectors")  # rooms


def find_family(config: Json, where: str) -> Family:
    """The family of a config.json. Raises CheckpointError if there is none here."""
    name = config.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        raise CheckpointError(
            f"{where}: model_type {reprlib.repr(name)} is no family known here; known: {shown(list(FAMILIES))}."
        )
    return family(name)


def section_of(found: Family, config: Json, where: str) -> dict[str, Any]:
    """Our model section, or its part, for a config.json. Raises CheckpointError if it is none of the family."""
    try:
        section = found.spec(config)
        for part in [section] if found.part else _parts_of(section):
            given = {key: value for key, value in part.items() if key not in ("type", "variant")}
            check_types(given, hints_of(resolve(part["type"], room=PARTS_OF_MODELS)), where)
        return section
    except CheckpointError as error:
        if str(error).startswith("config.json"):  # `spec` is not told where that lies
            raise CheckpointError(where + str(error).removeprefix("config.json")) from error
        raise
    except UserError as error:
        raise CheckpointError(str(error)) from error
    except KeyError as error:
        raise CheckpointError(f"{where}: has no key {error}.") from error
    except (TypeError, ValueError, AttributeError, IndexError, ArithmeticError) as error:
        # `spec` depends on that file alone: it holds a value that no such model has.
        raise CheckpointError(f"{where}: a value in it is none of {found.model_type}'s: {error}.") from error


def _parts_of(model: Json) -> list[Json]:
    return [*model["encoders"].values(), *model["projectors"].values(), model["backbone"]]


def family(model_type: str) -> Family:
    """The family of that model_type."""
    module, _, attribute = FAMILIES[model_type].rpartition(".")
    return getattr(importlib.import_module(module), attribute)


# Our (class, variant without its size) -> the family that writes such a part.
PARTS = {
    ("backbones.decoder.Decoder", "llama"): "llama",
    ("backbones.decoder.Decoder", "qwen2"): "qwen2",
    ("backbones.decoder.Decoder", "qwen3"): "qwen3",
    ("backbones.decoder.Decoder", "mistral"): "mistral",
    ("backbones.decoder.Decoder", "gemma"): "gemma",
    ("backbones.decoder.Decoder", "gemma2"): "gemma2",
    ("backbones.decoder.Decoder", "gemma3"): "gemma3_text",
    ("backbones.decoder.Decoder", "phi"): "phi",
    ("backbones.decoder.Decoder", "opt"): "opt",
    ("backbones.decoder.Decoder", "neox"): "gpt_neox",
    ("backbones.decoder.Decoder", "mpt"): "mpt",
    ("encoders.vit.ViT", "clip"): "clip_vision_model",
    ("encoders.vit.ViT", "siglip"): "siglip_vision_model",
    ("encoders.vit.ViT", "internvit"): "internvl_vision",
    ("encoders.vit.ViT", "siglip2"): "siglip2_vision_model",
    ("encoders.vit.ViT", "dinov2"): "dinov2",
    ("encoders.vit.ViT", "dinov2_reg"): "dinov2_with_registers",
    ("encoders.vit.ViT", "eva"): "blip_2_vision_model",
}


def family_of(spec: Json) -> Family:
    """The family that a part of ours is one of. Raises CheckpointError if there is none."""
    key = spec["type"], str(spec.get("variant")).partition("-")[0]
    if key not in PARTS:
        raise CheckpointError(f"{key[0]}, variant {key[1]!r}: no family of Hugging Face that is known here.")
    return family(PARTS[key])


def config_of(spec: Json, found: Family | None = None) -> dict[str, Any]:
    """config.json, or its section, for a spec of ours. found: its family, if it is not the one of `family_of`.

    Raises:
      CheckpointError: a backbone with a setting that this family's config.json has no key for.
    """
    found = found or family_of(spec)
    made = {"model_type": found.model_type, **found.config(spec)}
    if found.part == "backbone":
        ours, read = (_effective(complete(one)) for one in (spec, found.spec(made)))
        if unsaid := [f"{key}={ours[key]!r}" for key in read if key in ours and ours[key] != read[key]]:
            raise CheckpointError(f"{found.model_type}: config.json has no key for {shown(unsaid)}.")
    return made


def _effective(full: dict[str, Any]) -> dict[str, Any]:
    """A backbone's settings, without those that are never looked at; gated cross-attention is not its family's."""
    pattern, depth = full["attention_pattern"], full["depth"]
    full["attention_pattern"] = [pattern[i % len(pattern)] for i in range(depth)]
    unused = ["xattn"]
    if "local" not in full["attention_pattern"]:
        unused += ["sliding_window", "local_rope_theta"]
    if not full["rope_theta"]:
        unused += ["rope_fraction", "rope_scaling"]
    query_scale = full["query_scale"] or full["head_dim"] ** -0.5
    return {**full, "query_scale": query_scale, **dict.fromkeys(unused)}


def complete(spec: Json) -> dict[str, Any]:
    """A part's spec with its variant's keys and its class's defaults spelled out."""
    spec = dict(spec)
    cls = resolve(spec.pop("type"), room=PARTS_OF_MODELS)
    variant = spec.pop("variant", None)
    table = getattr(inspect.getmodule(cls), "VARIANTS", {})
    return {**(table[variant] if variant else {}), **spec}


ACTIVATIONS = {  # ours -> Hugging Face's
    "gelu": "gelu",
    "gelu_tanh": "gelu_pytorch_tanh",
    "quick_gelu": "quick_gelu",
    "relu": "relu",
    "relu2": "relu2",
    "silu": "silu",
}
_ALIASES = {"gelu_new": "gelu_tanh", "gelu_fast": "gelu_tanh", "swish": "silu"}


def activation(theirs: str) -> str:
    """Our name of an activation. Raises CheckpointError if there is none."""
    ours = {value: key for key, value in ACTIVATIONS.items()} | _ALIASES
    if theirs not in ours:
        raise CheckpointError(
            f"config.json: the activation {theirs!r} is not known here; known: {', '.join(ours)}."
        )
    return ours[theirs]
