"""The command line: `mmjax train | data | evaluate | compare | generate | chat | prepare | convert`."""

from __future__ import annotations

import functools
import sys
import traceback
from collections.abc import Callable
from typing import TYPE_CHECKING

from absl import flags, logging
from ml_collections import ConfigDict, config_flags

from mmjax.errors import UserError
from mmjax.files import FORBIDDEN, FULL
from mmjax.typed import suggest

if TYPE_CHECKING:
    from mmjax.inference.settings import Sampling

FLAGS = flags.FLAGS


def _config_flag() -> None:
    config_flags.DEFINE_config_file("config", None, "Config file, perhaps with arguments: configs/x.py:arg=value")
    flags.mark_flag_as_required("config")


def _workdir_flag() -> None:
    flags.DEFINE_string("workdir", None, "Folder of the run: config, checkpoints, metrics, results")
    flags.mark_flag_as_required("workdir")


def _trust_flag() -> None:
    flags.DEFINE_multi_string(
        "trust", [], "Package that the workdir's parts may come from, besides mmjax; may be given several times"
    )


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
        from mmjax.training.loop import Stopped
        from mmjax.training.stages import train

        try:
            train(_raw_config(), FLAGS.workdir, only=FLAGS.stage, profile=FLAGS.profile)
        except Stopped as stopped:
            print(f"{stopped} The same command goes on from there.", file=sys.stderr)

    _start(run)


def data() -> None:
    """Shows rows of a config's stages as a model is fed them: text, targets in ⟦ ⟧, places of pictures."""
    _config_flag()
    flags.DEFINE_string("stage", None, "Show this stage alone")
    flags.DEFINE_integer("show", 3, "How many rows of each stage", lower_bound=1)
    flags.DEFINE_string("into", None, "Folder for the rows' pictures, which are not shown otherwise")

    def run() -> None:
        from mmjax.training.announce import show_rows

        show_rows(_raw_config(), FLAGS.show, FLAGS.stage, FLAGS.into)

    _start(run)


def evaluate() -> None:
    """Runs the config's benchmarks on what a workdir has trained; writes eval.json and report.html there."""
    _workdir_flag()
    _trust_flag()

    def run() -> None:
        from mmjax.evaluation.run import evaluate, table

        results = evaluate(FLAGS.workdir, FLAGS.trust)
        print(f"\n{table(results)}\n\nReport: {results['report']}")

    _start(run)


def compare() -> None:
    """Sets evaluated workdirs side by side as Markdown, seeds as mean ± deviation: mmjax compare RUN [RUN ...]."""
    flags.DEFINE_string(
        "into",
        None,
        "Write into this Markdown file instead, between its lines `<!-- mmjax compare -->` and `<!-- end -->`, "
        "with curves.svg and examples.svg in a folder of its name beside it",
    )

    def run(*workdirs: str) -> None:
        from mmjax.evaluation.compare import compare, compare_into

        if FLAGS.into:
            print("Written: " + ", ".join(map(str, compare_into(FLAGS.into, workdirs))))
        else:
            print(compare(workdirs))

    _start(run, ("RUN", MORE))


SAMPLING = dict(
    max_new="Most tokens of the answer; if not given, as many as leave room for the prompt",
    temperature="0 for the likeliest answer, more for variety",
    top_k="Draw from the k likeliest tokens alone; 0: from all",
    top_p="Draw from the likeliest tokens that make up this probability",
    seed="Of the randomness",
    stop="String before which the answer ends; may be given several times",
    beams="Beam search of this width instead of sampling",
    length_penalty="Of a beam search: above 0 favours longer answers",
    special_tokens="Show the special tokens in an answer, such as marks of places or tools",
)


def _sampling_flags() -> None:
    """A flag for each field of Sampling, of its type and range; what is not given is the assistant's own."""
    from mmjax.inference.settings import HINTS, check_setting
    from mmjax.typed import plain, range_of

    def checked(name: str, value: object) -> bool:
        try:
            if value is not None:
                check_setting(name, value)
        except UserError as error:
            raise flags.ValidationError(str(error)) from None
        return True

    define = {int: flags.DEFINE_integer, float: flags.DEFINE_float, bool: flags.DEFINE_bool}
    for name, text in SAMPLING.items():
        allowed = range_of(HINTS[name])
        define.get(plain(HINTS[name]), flags.DEFINE_multi_string)(
            name, None, f"{text} ({allowed})" if allowed else text
        )
        flags.register_validator(name, functools.partial(checked, name))


def _sampling(own: Sampling) -> Sampling:
    """An assistant's own settings with those given as flags."""
    given = {name: FLAGS[name].value for name in SAMPLING if FLAGS[name].value is not None}
    return own.but(**given)


def generate() -> None:
    """Answers a prompt, perhaps about pictures, with what a workdir has trained."""
    _workdir_flag()
    _trust_flag()
    flags.DEFINE_string("prompt", None, "The question; <image> may mark where a picture stands")
    flags.mark_flag_as_required("prompt")
    flags.DEFINE_multi_string("image", [], "Path of a picture; may be given several times")
    flags.DEFINE_string("stage", None, "Use this stage's model instead of the last one's")
    _sampling_flags()

    def run() -> None:
        from mmjax.inference.load import load

        assistant = load(FLAGS.workdir, FLAGS.stage, FLAGS.trust)
        sampling = _sampling(assistant.sampling)
        print(assistant(FLAGS.prompt, images=FLAGS.image, sampling=sampling))

    _start(run)


def chat() -> None:
    """Talks in the terminal with what a workdir has trained; pictures are attached by their path."""
    _workdir_flag()
    _trust_flag()
    flags.DEFINE_string("stage", None, "Use this stage's model instead of the last one's")
    _sampling_flags()

    def run() -> None:
        from mmjax.inference.load import load
        from mmjax.inference.terminal import chat_loop

        assistant = load(FLAGS.workdir, FLAGS.stage, FLAGS.trust)
        assistant.sampling = _sampling(assistant.sampling)
        chat_loop(assistant)

    _start(run)


def convert() -> None:
    """Converts a Hugging Face folder to a workdir, or a workdir to such a folder: mmjax convert SRC DST."""
    flags.DEFINE_string(
        "family", "", "Family to write, where the workdir did not come from one: llava, llama, ..."
    )
    _trust_flag()
    flags.DEFINE_bool("adapter", False, "Write the LoRA adapters alone, as a folder for peft")
    flags.DEFINE_string("base", "", "With --adapter: name or path of the checkpoint that they belong on")

    def run(source: str, target: str) -> None:
        from mmjax.convert import convert, export_adapter

        if FLAGS.adapter:
            export_adapter(source, target, FLAGS.family, FLAGS.base, FLAGS.trust)
        else:
            convert(source, target, FLAGS.family, FLAGS.trust)

    _start(run, ("SRC", "DST"))


COMMANDS: dict[str, Callable[[], None]] = {
    "prepare": prepare,
    "data": data,
    "train": train,
    "evaluate": evaluate,
    "compare": compare,
    "generate": generate,
    "chat": chat,
    "convert": convert,
}

MORE = "..."  # behind a positional argument: as many of it as one likes


def _start(run: Callable[..., None], positional: tuple[str, ...] = ()) -> None:
    """Parses the flags that a command has defined, then runs it with its positional arguments.

    What a user can mend ends as its message alone; anything else with its traceback.
    """
    if {"-h", "--help"} & set(sys.argv[1:]):
        more = CONFIG_HELP if "config" in FLAGS else ""
        print(f"{' '.join((sys.argv[0], *positional))}\n{FLAGS.module_help(__name__)}\n{more}")
        return
    logging.use_absl_handler()
    try:
        given = _parse_config(sys.argv) if "config" in FLAGS else FLAGS(sys.argv)[1:]
        least, more = len(positional) - positional.count(MORE), MORE in positional
        if len(given) < least or (len(given) > least and not more):
            wanted = f"wants {' '.join(positional)}" if positional else "takes options alone, which begin with --"
            raise UserError(f"got the arguments {given}; {sys.argv[0].split()[-1]} {wanted}.")
        run(*given)
    except (UserError, flags.Error) as error:
        logging.debug("%s", error, exc_info=True)
        sys.exit(f"mmjax: {error}\n(--verbosity=1 shows where.)")
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (*FULL, *FORBIDDEN) and error.filename:
            file = error.filename2 or error.filename
            sys.exit(f"mmjax: {file}: {error.strerror}. Make room there or get the right to, then run it again.")
        traceback.print_exc()
        sys.exit(FAULT)


FAULT = (
    "mmjax: this is a fault of mmjax, unless the machine ran out of memory or disk. Please report it to the "
    "project's issue tracker, with the command and the traceback above."
)


CONFIG_HELP = """  --config.KEY=VALUE: Sets a key of the config: --config.sft.steps=100"""


def _parse_config(argv: list[str]) -> list[str]:
    """Parses the flags of a command with --config; returns its positional arguments.

    Raises:
      UserError: a config file that cannot be read or that fails, whose traceback is printed, as it is the user's
        code; or a `--config.KEY` that the config does not have, with the nearest one, or that it cannot take.
    """
    overrides = [argument for argument in argv if argument.startswith("--config.")]
    sys.argv = [argument for argument in argv if argument not in overrides]  # ml_collections reads it there
    try:
        FLAGS(sys.argv)
        config = FLAGS.config
        usable = hasattr(config, "to_dict")  # where no file was read, ml_collections says so here
    except (UserError, flags.Error):
        raise
    except OSError as error:
        reason = str(error).partition(" to load: ")[2] or str(error)  # with white space over many lines
        raise UserError(f"--config: {' '.join(reason.split())}") from error
    except Exception as error:
        traceback.print_exc()
        raise UserError(f"--config: the config file fails with {type(error).__name__}, shown above.") from error
    finally:
        sys.argv = argv
    if not usable:
        raise UserError(f"--config: get_config() returns a {type(config).__name__}, and not a ConfigDict.")
    FLAGS.unparse_flags()
    for override in overrides:
        _check_override(override, config)
    try:
        return FLAGS(argv)[1:]
    except flags.Error:
        raise
    except Exception as error:  # ml_collections raises almost anything for a value that does not parse
        raise UserError(f"{' '.join(overrides)}: cannot be set: {error}") from error


def _check_override(override: str, config: ConfigDict) -> None:
    """Raises UserError for a `--config.KEY` that the config does not have, or that no flag can set."""
    node = config
    for key in override.partition("=")[0].removeprefix("--config.").partition("[")[0].split("."):
        if not isinstance(node, ConfigDict):
            break
        if key not in node:
            raise UserError(f"{override}: the config has no key {key!r} there{suggest(key, node.keys())}")
        node = node[key]
    if "[" not in override.partition("=")[0] and (node is None or isinstance(node, list)):
        kind = "None" if node is None else "a list"
        raise UserError(
            f"{override}: its value is {kind}, which no flag can change; a config file of your own can: it calls "
            "get_config() of this one and sets the key."
        )


def _usage() -> str:
    lines = [f"  {name:10}{command.__doc__.splitlines()[0]}" for name, command in COMMANDS.items()]
    return "\n".join(
        ["usage: mmjax COMMAND --flag=value ...\n", *lines, "\n`mmjax COMMAND --help` lists its flags."]
    )


def main() -> None:
    """Entry point of `mmjax` and `python -m mmjax`."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help", "help"):
        print(_usage())
        return
    if name not in COMMANDS:
        sys.exit(f"mmjax: no command {name!r}{suggest(name, COMMANDS)}\n\n{_usage()}")
    sys.argv = [f"mmjax {name}", *sys.argv[2:]]
    COMMANDS[name]()
