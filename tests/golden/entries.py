"""All that the golden tests call of mmjax, in one place."""

import hashlib
import importlib.util
import itertools
import json
from pathlib import Path

import jax
import numpy as np

import mmjax
from mmjax.config import build_model, read_config
from mmjax.convert import convert
from mmjax.data.pipeline import make_dataset
from mmjax.data.tokenizer import train_sentencepiece
from mmjax.training.stages import train
from mmjax.workdir import open_tokenizer, read_raw, tokenizer_path

__all__ = ["convert", "get_config", "hashes", "metrics", "prompts", "read_raw", "rows", "train", "write_tokenizer"]
CONFIGS = Path(__file__).parents[2] / "configs"
CLOCK = {"time", "seconds", "loader_wait"}  # of a line of metrics, beside all that is counted per second
PASSING = {*CLOCK, "step", "compilations"}


def get_config(name):
    """The resolved config of a name such as `llava.py:size=7b`, as a dict."""
    file, _, argument = name.partition(":")
    spec = importlib.util.spec_from_file_location(file.removesuffix(".py"), CONFIGS / file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.get_config(argument).to_dict()


def write_tokenizer(texts, path):
    train_sentencepiece(texts, path, vocab_size=300, specials=["<image>"])


def rows(raw, stage, folder, most=200):
    """(data, batches of one row each): the first rows of what a stage of a config trains on."""
    config = read_config(raw)
    tokenizer = open_tokenizer(config.tokenizer, tokenizer_path(config.tokenizer))
    model, chosen = build_model(config, tokenizer.vocab_size), config.stage(stage)
    splice = model.fusion == "splice"
    data = make_dataset(
        chosen.data,
        tokenizer,
        span=model.tokens_per_medium()["image"] if splice else 1,
        splice=splice,
        rows=most,
        seed=config.seed,
        data_dir=config.data_dir,
        quarantine=folder / "quarantine.jsonl",
        vocab=model.backbone.vocab,
    )
    assert not any(data.quarantine.counts().values()), "made data was refused"
    return data, itertools.islice(data.batches(1), most)


def prompts(workdir, batches):
    """What the assistant of a workdir makes of lists of prompts: a Batch for each."""
    assistant = mmjax.load(workdir)
    for asked in batches:
        encoded = [assistant._encode(prompt, 0) for prompt in asked]
        yield assistant._collate(encoded, asked, len(asked))


def hashes(batches):
    """{field of Batch: 'dtype, shape of the first batch, sha256 of all'}; the shapes of all are in the sum."""
    first, sums = {}, {}
    for batch in batches:
        for path, leaf in jax.tree_util.tree_flatten_with_path(batch)[0]:
            name, leaf = jax.tree_util.keystr(path, simple=True, separator="/"), np.ascontiguousarray(leaf)
            first.setdefault(name, f"{leaf.dtype}{list(leaf.shape)}")
            one = sums.setdefault(name, hashlib.sha256())
            one.update(f"{leaf.dtype}{leaf.shape}".encode())
            one.update(leaf.tobytes())
    return {name: f"{first[name]} {one.hexdigest()}" for name, one in sums.items()}


def metrics(workdir, stage):
    """{name: its values over the steps} of a stage's metrics.jsonl, without what a clock has measured."""
    found = {}
    for line in (Path(workdir) / stage / "metrics.jsonl").read_text().splitlines():
        for name, value in json.loads(line).items():
            if name not in PASSING and not name.endswith("_per_second"):
                found.setdefault(name, []).append(value)
    return found
