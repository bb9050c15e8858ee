"""The command line: `mmjax train | evaluate | generate | chat | prepare`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from absl import app, flags, logging
from ml_collections import config_flags

FLAGS = flags.FLAGS


def _config_flag() -> None:
    config_flags.DEFINE_config_file("config", None, "Config file, perhaps with arguments: configs/x.py:arg=value")
    flags.mark_flag_as_required("config")


def _workdir_flag() -> None:
    flags.DEFINE_string("workdir", None, "Folder of the run: config, checkpoints, metrics, results")
    flags.mark_flag_as_required("workdir")


def _raw_config() -> dict:
    return FLAGS.config.to_dict()


def prepare() -> None:
    """Builds the corpora and the tokenizer that a config needs, those that are not there yet."""
    _config_flag()

    def run() -> None:
        from mmjax.config import read_config
        from mmjax.prepare import prepare

        prepare(read_config(_raw_config()))

    _start(run)


def train() -> None:
    """Trains a config's stages in a workdir; the same command resumes a stopped run."""
    _config_flag()
    _workdir_flag()
    flags.DEFINE_string("stage", None, "Train this stage alone")
    flags.DEFINE_bool("profile", False, "Write a profiler trace of a few steps to WORKDIR/STAGE/profile")

    def run() -> None:
        from mmjax.training import loop

        try:
            loop.train(_raw_config(), FLAGS.workdir, only=FLAGS.stage, profile=FLAGS.profile)
        except loop.Stopped as stopped:
            print(f"{stopped} The same command goes on from there.", file=sys.stderr)

    _start(run)


COMMANDS: dict[str, Callable[[], None]] = {"prepare": prepare, "train": train}


def _start(run: Callable[[], None]) -> None:
    def guarded(argv: list[str]) -> None:
        if len(argv) > 1:
            raise app.UsageError(f"Unexpected arguments {argv[1:]}; every option begins with --.")
        run()

    logging.set_verbosity(logging.INFO)
    app.run(guarded)


def _usage() -> str:
    lines = [f"  {name:10}{command.__doc__.splitlines()[0]}" for name, command in COMMANDS.items()]
    return (
        "usage: mmjax COMMAND --flag=value ...\n\n"
        + "\n".join(lines)
        + "\n\n`mmjax COMMAND --help` lists its flags."
    )


def main() -> None:
    """Entry point of `mmjax` and `python -m mmjax`."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help", "help"):
        print(_usage())
        return
    if name not in COMMANDS:
        from mmjax.build import suggest

        sys.exit(f"mmjax: no command {name!r}{suggest(name, COMMANDS)}\n\n{_usage()}")
    sys.argv = [f"{Path(sys.argv[0]).name} {name}", *sys.argv[2:]]
    COMMANDS[name]()
