"""From a workdir to an assistant."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax

from mmjax.config import Config, Stage, build_model
from mmjax.data.pipeline import make_chat
from mmjax.errors import MissingFile
from mmjax.files import require_inside
from mmjax.hub.aside import KEPT
from mmjax.hub.load import load_parts
from mmjax.inference.chat import Assistant
from mmjax.inference.defaults import own_sampling
from mmjax.nn.linear import merge_lora
from mmjax.sharding import one_device, shard_tree
from mmjax.training.checkpoint import Checkpoints
from mmjax.training.trained import last_trained, trained_parameters
from mmjax.workdir import keep_tokenizer, load_config

BATCH = 64  # prompts answered at once


def load(workdir: str | Path, stage: str | None = None, trust: Sequence[str] = ()) -> Assistant:
    """The model that a workdir has trained, at the newest step of its last stage, or of `stage`; where none is
    trained yet, what its `load` names, if that is the whole model and lies in the workdir. It decodes as
    `own_sampling` has it, unless a call says otherwise.

    trust: packages, besides mmjax, that parts of the model may come from: a workdir names them, and is only data.

    Raises:
      UserError: the config is damaged, or names a part that is not of mmjax nor of these packages.
      MissingFile: no run there, or no checkpoint yet.
      CheckpointError: what `load` names cannot be loaded; as for own_sampling.
    """
    workdir = Path(workdir)
    config = load_config(workdir, trust)
    trained = config.stage(stage) if stage else last_trained(config, workdir)
    chosen = trained or _converted(config, workdir)
    tokenizer = keep_tokenizer(config.tokenizer, workdir)
    model = build_model(config, tokenizer.vocab_size)
    if trained:
        with Checkpoints(workdir / trained.name / "checkpoints", keep=config.keep) as checkpoints:
            params = merge_lora(trained_parameters(checkpoints, frozen_dtype=config.precision.frozen_dtype))
    else:
        for _, source in config.load:
            require_inside(source.partition(":")[2], workdir, "load")
        shapes = jax.eval_shape(model.init, jax.random.key(0))
        # Where frozen parameters need not be float32, these stay as they came: all are frozen here.
        as_saved = config.precision.frozen_dtype != "float32"
        params = load_parts(config.load, shapes, shard_tree(shapes, one_device()), as_saved)
    data = chosen.data
    views, span = data.media.make_views().unlimited(model.text_span)
    chat = make_chat(data, tokenizer, span, model.splices, data.prompt_template, model.backbone.vocab)
    window = max(data.length, tokenizer.model_max_length)
    sampling = own_sampling(workdir / KEPT, window)
    return Assistant(model, params, chat, views, length=window, batch=BATCH, sampling=sampling)


def _converted(config: Config, workdir: Path) -> Stage:
    """The last stage, if `load` names a whole model."""
    if [part for part, _ in config.load] == [""]:
        return config.stages[-1]
    raise MissingFile(f"{workdir}: no stage has a checkpoint yet; `mmjax train` makes them.")
