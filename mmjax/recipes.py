"""Complete sections of a config. A config says what its system is; what it does not say is written out here.

Defaults are those of LLaVA-1.5's published scripts (scripts/v1_5/finetune.sh) where they have the key, else plain
ones. What comes back is plain data, every key of the section in it: a workdir's `config.json` shows them all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mmjax.errors import UserError

Section = dict[str, Any]


def arguments(given: str, **known: str | tuple[str, ...]) -> dict[str, str]:
    """The arguments of a config file, `FILE.py:size=13b,data=DIR`, as a dict.

    Args:
      given: what stands behind the colon.
      known: name -> its default, or all its choices, the default first.

    Raises:
      UserError: an argument that is not known, or none of its choices.
    """
    found = {name: value if isinstance(value, str) else value[0] for name, value in known.items()}
    for pair in filter(None, given.split(",")):
        name, _, value = pair.partition("=")
        if name not in known:
            raise UserError(f"--config: there is no argument {name!r}; this file takes {', '.join(known)}.")
        if not isinstance(known[name], str) and value not in known[name]:
            raise UserError(f"--config: {name}={value!r} is none of {', '.join(known[name])}.")
        found[name] = value
    return found


def run(
    model: Section,
    tokenizer: Section,
    stages: Mapping[str, Section],
    *,
    data_dir: str = "data",
    load: Sequence[tuple[str, str]] = (),
    evaluation: Section | None = None,
    mesh: Mapping[str, int] | None = None,
    compute_dtype: str = "bfloat16",
    frozen_dtype: str = "bfloat16",
    remat: bool = True,
    scan: bool = True,
    max_skipped: int = 10,
    keep: int = 1,
    wandb: Section | None = None,
    seed: int = 0,
) -> Section:
    """A whole config, for a pod or a cluster if nothing else is said (mmjax.config.Config tells its keys).

    Args:
      stages: name -> section, in the order in which they are trained.
      mesh: axis sizes; None shards parameters over all devices.
    """
    return dict(
        seed=seed,
        data_dir=data_dir,
        tokenizer=tokenizer,
        model=model,
        stages=list(stages),
        **stages,
        evaluation=evaluation,
        mesh=dict(mesh or {"fsdp": -1}),
        precision=dict(param_dtype="float32", compute_dtype=compute_dtype, frozen_dtype=frozen_dtype),
        remat=remat,
        scan=scan,
        max_skipped=max_skipped,
        keep=keep,
        load=list(load),
        wandb=wandb,
    )


def stage(
    data: Section,
    optimizer: Section,
    *,
    batch: int,
    steps: int,
    trainable: Sequence[str] = (".",),
    losses: Mapping[str, Section] | None = None,
    lora: Sequence[tuple[str, Section]] = (),
    accumulate: int = 1,
    ema: float = 0.0,
    valid: Section | None = None,
    log_every: int = 10,
    save_every: int = 500,
) -> Section:
    """A stage that learns the next token with all its parameters, if nothing else is said (mmjax.config.Stage)."""
    return dict(
        data=data,
        batch=batch,
        steps=steps,
        losses=dict(losses or {"next_token": loss("language.next_token")}),
        trainable=list(trainable),
        lora=list(lora),
        optimizer=optimizer,
        accumulate=accumulate,
        ema=ema,
        valid=valid,
        log_every=log_every,
        save_every=save_every,
    )


def loss(objective: str, weight: float = 1.0, **options: Any) -> Section:
    """An objective of mmjax.objectives with its weight and options."""
    return dict(type=f"objectives.{objective}", weight=weight, **options)


def adamw(
    lr: float,
    *,
    schedule: str = "cosine",
    warmup: float = 0.03,
    final: float = 0.0,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    clip: float = 1.0,
    lr_factors: Sequence[tuple[str, float]] = ((".*", 1.0),),
    decay: Sequence[tuple[str, bool]] = ((".*", False),),
) -> Section:
    """AdamW with a schedule (mmjax.config.Optimizer)."""
    return dict(
        type="adamw",
        lr=lr,
        schedule=schedule,
        warmup=warmup,
        final=final,
        b1=b1,
        b2=b2,
        eps=eps,
        weight_decay=weight_decay,
        clip=clip,
        lr_factors=list(lr_factors),
        decay=list(decay),
    )


def data(
    sources: Mapping[str, Section],
    pictures: Section,
    *,
    template: str,
    length: int,
    pack: bool = True,
    too_long: str = "truncate",
    bidirectional_images: bool = False,
    max_refused: float = 0.01,
    workers: int = 8,
    threads: int = 4,
) -> Section:
    """What a stage trains on, read by worker processes (mmjax.data.spec.DataSpec)."""
    return dict(
        length=length,
        pack=pack,
        too_long=too_long,
        template=template,
        bidirectional_images=bidirectional_images,
        media=pictures,
        sources=dict(sources),
        max_refused=max_refused,
        workers=workers,
        threads=threads,
    )


def source(path: str, root: str = "", weight: float = 1.0, **more: Any) -> Section:
    """A file or corpus of a mixture (mmjax.data.spec.SourceSpec)."""
    return dict(path=path, root=root, weight=weight, **more)


def pictures(size: int, slots: int, resize: str = "stretch", max_pixels: int = 64_000_000, **more: Any) -> Section:
    """How pictures are read, and how many a row has room for (mmjax.data.spec.MediaSpec)."""
    return dict(slots=slots, size=size, resize=resize, max_pixels=max_pixels, **more)


def benchmark(name: str, stage: str, **options: Any) -> Section:
    """A benchmark of mmjax.evaluation.benchmarks, run on what `stage` has trained."""
    return dict(type=f"evaluation.benchmarks.{name}.evaluate", stage=stage, **options)
