"""`mmjax convert`: a Hugging Face folder or GGUF file to a workdir that trains, generates and chats; and back."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import logging
from tqdm import tqdm

from mmjax import tree
from mmjax.config import Config, build_model, read_config
from mmjax.errors import UserError
from mmjax.hub.aside import KEPT, Origin, aside, find_origin, keep, listed
from mmjax.hub.beside import copy_files, over, write_beside, write_images
from mmjax.hub.card import model_card
from mmjax.hub.chat_template import Prompts
from mmjax.hub.family import FAMILIES, Family, config_of, family, find_family
from mmjax.hub.fit import fit
from mmjax.hub.folder import HubFolder, read_json
from mmjax.hub.gguf_model import GGUFModel
from mmjax.hub.load import WEIGHTS, specs_of
from mmjax.hub.peft import write_adapter
from mmjax.hub.places import find_source, new_folder, require_own_files
from mmjax.hub.recipe import CONFIG, model_section, workdir_config
from mmjax.hub.table import Move, check, moves, ours_dtypes, rows_under, theirs_specs, to_ours, to_theirs
from mmjax.hub.tensors import (
    CheckpointError,
    SafetensorsFolder,
    SafetensorsWriter,
    Spec,
    Tensors,
    common_dtype,
    shown,
)
from mmjax.hub.tokenizer_files import check_tokenizer
from mmjax.training.checkpoint import Checkpoints
from mmjax.training.trained import TrainedTensors, last_trained
from mmjax.workdir import Saved, kept_tokenizer, load_config, open_tokenizer, tokenizer_path


def convert(source: str | Path, target: str | Path, model_type: str = "", trust: Sequence[str] = ()) -> None:
    """Converts whichever way `source` asks for: a workdir to a Hugging Face folder, such a folder to a workdir.

    Args:
      source: a workdir, a Hugging Face folder, a GGUF file, or the name of a packaged model (hub/packaged.py).
      model_type: the family to write, where the workdir did not come from one.
      trust: packages, besides mmjax, that a workdir's parts may come from.

    Raises:
      CheckpointError: what `source` holds cannot be converted, and why; or `target` cannot be written to. Then
        nothing is left there.
    """
    source = find_source(source)
    with new_folder(target) as target:
        config = source / "config.json"
        if config.exists() and "stages" in read_json(config):
            export_workdir(source, target, model_type, trust)
        else:
            import_folder(source, target)


def import_folder(source: Path, target: Path) -> None:
    """A Hugging Face folder, or a GGUF file, to a workdir, one tensor at a time; config.json is written last."""
    folder = GGUFModel(source) if source.is_file() else HubFolder(source)
    section = model_section(folder)
    with tempfile.TemporaryDirectory() as scratch:
        beside = Path(scratch) / KEPT
        folder.keep(beside)
        raw = workdir_config(folder, section, beside, target.absolute())
        shapes = parameter_shapes(read_config(raw))
        chosen = fit(raw, shapes)
        part = f"{folder.family.part}/" if folder.family.part else ""
        plan = moves(rows_under(part, "", folder.family.rows(folder.spec)), shapes)
        check(plan, shapes, folder.tensors.specs, folder.family.ignored + folder.family.aside, str(source))
        dtypes = ours_dtypes(plan, folder.tensors.specs)  # weights keep the dtype they came in
        specs = {path: Spec(spec.shape, dtypes[path]) for path, spec in specs_of(shapes).items()}
        with SafetensorsWriter(target / WEIGHTS, specs) as writer:
            for move in _progress(plan, "import"):
                for path, array in to_ours(move, folder.tensors):
                    writer.put(path, array, move.index)
        shutil.copytree(beside, target / KEPT)
    used = {name for move in plan for name in move.theirs}
    left = aside(folder.family, used, folder.tensors.specs)
    if left:
        keep(folder.tensors, left, target)
        logging.info("%s: kept aside, no parameter stands for them: %s.", source, listed(left))
    if buffers := [name for name in folder.tensors.specs if name not in used and name not in left]:
        logging.info("%s: left out, buffers that are computed here: %s.", source, listed(buffers))
    (target / "config.py").write_text(CONFIG)
    Saved.of(chosen.raw, target).write()
    logging.info("%s: %s", target, chosen.reason())


def export_workdir(source: Path, target: Path, model_type: str = "", trust: Sequence[str] = ()) -> None:
    """What a workdir has trained, or was made from, to a folder that `transformers` loads; config.json is written
    behind what it speaks of."""
    config = load_config(source, trust)
    origin = _origin(source, config)
    chosen = _family(origin, model_type)
    spec = _part(config.model, chosen)
    parameters = newest_parameters(config, source)
    target.mkdir(parents=True, exist_ok=True)
    copy_files(origin, target)
    made_from = find_origin(config.load, origin, chosen)
    prompts = _prompts(config, source, required=not chosen.part and not made_from.config)
    media = (last_trained(config, source) or config.stages[-1]).data.media
    write_images(target, chosen, config.model, config.tokenizer, media)
    if prompts and chosen.part in ("", "backbone"):
        made_from = write_beside(target, chosen, spec, prompts, made_from)
    specs = write_folder(chosen, spec, parameters, made_from, target)
    if prompts and (target / "tokenizer.json").exists():
        check_tokenizer(target, prompts)
    (target / "README.md").write_text(model_card(config.model, chosen, source.name, specs, target))
    logging.info("%s: %s, %d tensors.", target, chosen.architecture, len(specs))


def export_adapter(
    source: str | Path, target: str | Path, model_type: str = "", base: str = "", trust: Sequence[str] = ()
) -> None:
    """The LoRA adapters that a workdir has trained, with the modules trained in full beside them, to a folder that
    `peft` puts onto the checkpoint below them.

    Args:
      base: that checkpoint's name or path, for adapter_config.json.

    Raises:
      CheckpointError: there are none, or not such as `peft` could put there, or nor what was trained beside them.
    """
    source = Path(source).expanduser()
    config = load_config(source, trust)
    chosen = _family(_origin(source, config), model_type)
    parameters = newest_parameters(config, source, merged=False)
    params = tree.unflatten({name: parameters.read(name) for name in parameters.specs})
    spec = _part(config.model, chosen)
    prefix = f"{chosen.part}/" if chosen.part else ""
    trained = [p.removeprefix(prefix) for p in trained_paths(config, source, params) if p.startswith(prefix)]
    with new_folder(target) as target:
        count = write_adapter(target, chosen, spec, _part(params, chosen), base, trained)
    logging.info("%s: adapters of %d modules.", target, count)


def trained_paths(config: Config, workdir: Path, params: tree.Tree) -> list[str]:
    """Paths of the parameters that any stage up to the last trained one has changed, without adapters."""
    stage = last_trained(config, workdir)
    if stage is None:
        return []
    patterns = [p for one in config.stages[: config.stages.index(stage) + 1] for p in one.trainable]
    regex = re.compile("|".join(f"(?:{pattern})" for pattern in patterns))
    return [path for path in tree.flatten(params) if regex.search(path) and "/lora_" not in path]


def _prompts(config: Config, source: Path, required: bool) -> Prompts | None:
    """How the last stage that has trained writes prompts; None, with a warning, where it cannot: its tokenizer is
    missing, or has no end for replies.

    Raises:
      UserError: the same, where config.json has its ids from nowhere else (`required`).
    """
    stage = last_trained(config, source) or config.stages[-1]
    kept = kept_tokenizer(config.tokenizer, source)
    file = kept if kept.exists() else tokenizer_path(config.tokenizer)
    try:
        tokenizer = open_tokenizer(config.tokenizer, file)
        model = build_model(config, tokenizer.vocab_size)
        return Prompts(stage.data, tokenizer, model, config.tokenizer, file)
    except UserError as error:
        if required:
            raise
        logging.warning("%s: no prompts can be made (%s): tokenizer and template are as they came.", source, error)
        return None


def write_folder(
    family: Family, spec: Mapping[str, Any], parameters: Tensors, origin: Origin, target: Path
) -> dict[str, Spec]:
    """config.json and the tensors of a family's model, or part of one; returns the tensors' shapes.

    Args:
      spec: of that model or part. parameters: of the whole model. origin: what they were made from.

    Raises:
      CheckpointError: parameters that the family has no tensor for, or a part that is not enough.
    """
    part = f"{family.part}/" if family.part else ""
    flat = {p.removeprefix(part): one for p, one in parameters.specs.items() if p.startswith(part)}
    plan = moves(family.rows(spec), tree.unflatten(flat))
    if unnamed := sorted(set(flat) - {path for move in plan for path in move.ours}):
        raise CheckpointError(f"{target}: the family {family.model_type} has no tensor for {shown(unnamed)}.")
    specs = theirs_specs(plan, flat)
    dtype = str(common_dtype(spec.dtype for spec in specs.values()))
    rest = origin.aside(family, specs)
    if family.partial and not rest:
        raise CheckpointError(
            f"{target}: {family.architecture} is more than {family.part}, and no such checkpoint is named in "
            "`load` to take the rest from."
        )
    with SafetensorsWriter(target, specs | rest) as writer:
        for move in _progress(plan, "export"):
            prefixed = Move(tuple(part + path for path in move.ours), move.theirs, move.index, move.op)
            for name, array in to_theirs(prefixed, parameters):
                writer.put(name, array)
        for name in rest:
            writer.put(name, origin.tensors.read(name))
    made = {**config_of(spec, family), "architectures": [family.architecture]}
    config = over(origin.config, made, leave=family.unwritten if rest else ()) | {"dtype": dtype}
    config.pop("transformers_weights", None)  # names the files that the model came in
    (target / "config.json").write_text(json.dumps(config, indent=2))
    return specs | rest


def parameter_shapes(config: Config) -> dict[str, Any]:
    """Shapes and dtypes of the parameters of a config's model. No computation runs."""
    return jax.eval_shape(build_model(config, 0).init, jax.random.key(0))


def newest_parameters(config: Config, workdir: Path, merged: bool = True) -> Tensors:
    """The parameters of the last stage that has any, adapters merged or not; else those the workdir came with."""
    require_own_files(workdir, WEIGHTS)
    if stage := last_trained(config, workdir):
        with Checkpoints(workdir / stage.name / "checkpoints", keep=config.keep) as checkpoints:
            return TrainedTensors(checkpoints, merged)
    return SafetensorsFolder(workdir / WEIGHTS)


def _origin(source: Path, config: Config) -> Path:
    """The converted workdir that a run began with: itself, or the one that it loads all of its weights from.

    Raises:
      UserError: a file that came with its weights is a link out of it.
    """
    found = source
    if not (source / KEPT).exists():
        for part, place in config.load:
            kind, _, path = place.partition(":")
            if not part and kind == "mmjax" and (Path(path).expanduser() / KEPT).exists():
                found = Path(path).expanduser()
                break
    require_own_files(found, KEPT)
    return found


def _part(whole: Mapping[str, Any], chosen: Family) -> Mapping[str, Any]:
    """What of a model section, or of its parameters, the family is."""
    for key in chosen.part.split("/") if chosen.part else ():
        whole = whole[key]
    return whole


def _family(source: Path, model_type: str) -> Family:
    came = source / KEPT / "config.json"
    if model_type or not came.exists():
        if model_type not in FAMILIES:
            raise CheckpointError(
                f"{source}: --family={model_type!r}: say which to write, of {shown(list(FAMILIES))}."
            )
        return family(model_type)
    return find_family(read_json(came), str(came))


def _progress(plan: list[Move], what: str) -> Iterable[Move]:
    return tqdm(plan, desc=what, unit=" tensors", mininterval=1)
