"""From a workdir to an assistant."""

from __future__ import annotations

from pathlib import Path

from mmjax.config import Config, Stage, build_model
from mmjax.data.pipeline import make_chat
from mmjax.data.spec import read_spec
from mmjax.inference.chat import Assistant, Sampling
from mmjax.nn.linear import merge_lora
from mmjax.training.checkpoint import Checkpoints
from mmjax.training.stages import trained_parameters
from mmjax.workdir import keep_tokenizer, load_config

BATCH = 64  # prompts answered at once


def load(workdir: str | Path, stage: str | None = None) -> Assistant:
    """The model that a workdir has trained, at the newest step of its last stage, or of `stage`.

    Raises:
      FileNotFoundError: no run there, or no checkpoint yet.
    """
    workdir = Path(workdir)
    config = load_config(workdir)
    chosen = config.stage(stage) if stage else _last_trained(config, workdir)
    tokenizer = keep_tokenizer(config.tokenizer, workdir)
    model = build_model(config, tokenizer.vocab_size)
    with Checkpoints(workdir / chosen.name / "checkpoints", keep=config.keep) as checkpoints:
        params = merge_lora(trained_parameters(checkpoints))
    data = read_spec(chosen.data)
    splice = model.fusion == "splice"
    span = model.tokens_per_medium().get("image", 1) if splice else 1
    chat = make_chat(data, tokenizer, span, splice, data.template)
    sampling = Sampling(max_new=min(Sampling.max_new, data.length // 4))  # leaves most of the window to the prompt
    views = data.media.make_views()
    return Assistant(model, params, chat, views, length=data.length, batch=BATCH, sampling=sampling)


def _last_trained(config: Config, workdir: Path) -> Stage:
    for stage in reversed(config.stages):
        if (workdir / stage.name / "checkpoints").exists():
            return stage
    raise FileNotFoundError(f"{workdir}: no stage has a checkpoint yet; `mmjax train` makes them.")
