"""Both sides of a comparison: a tiny random model of `transformers`, and what `mmjax convert` makes of it."""

import os

import jax
import numpy as np
import tokenizers
import torch

from mmjax import tree
from mmjax.config import build_model
from mmjax.convert import import_folder
from mmjax.hub.load import load_parts, specs_of
from mmjax.sharding import make_mesh, shard_tree
from mmjax.types import Batch, Media
from mmjax.workdir import load_config

TOLERANCE = 1e-4
VOCAB = 120
ERRORS = {}  # of each test, for the table (conftest.py)
TABLES = {}  # of tests with a table of their own: heading -> row -> column -> cell


class Arrays:
    """Parameters in memory, with the interface of Tensors."""

    def __init__(self, params):
        self._arrays = tree.flatten(params)
        self.specs = specs_of(params)

    def read(self, name, index=None):
        return np.asarray(self._arrays[name] if index is None else self._arrays[name][index])


def randomise(model, seed=0):
    """Redraws all parameters of a torch model: a start of ones or zeros would hide a mistake."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim > 1:
                parameter.copy_(noise / parameter[0].numel() ** 0.5)
            else:
                parameter.copy_(noise * 0.2 + (1.0 if "norm" in name and name.endswith("weight") else 0.0))
    return model.eval()


def save(model, folder):
    """A torch model with a tokenizer of VOCAB words, `w0 w1 ...`."""
    model.save_pretrained(folder)
    words = {f"w{i}": i for i in range(VOCAB)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="w0"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


def imported(folder, workdir):
    """(model, params) of what `mmjax convert` makes of a folder."""
    import_folder(folder, workdir)
    config = load_config(workdir)
    model = build_model(config, VOCAB)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    return model, load_parts(config.load, shapes, shard_tree(shapes, make_mesh({"data": 1})))


def batch_of(rows, length, span=0, size=0, slots=0):
    """A Batch of packed rows, each a list of examples, each a list of token ids and of pictures uint8
    [size, size, 3], which take `span` tokens each."""
    tokens, segments, positions = (np.zeros((len(rows), length), np.int32) for _ in range(3))
    slot, visible = (np.full((len(rows), length), -1, np.int32) for _ in range(2))
    values = np.zeros((len(rows), slots, size, size, 3), np.uint8)
    valid = np.zeros((len(rows), slots), bool)
    for r, examples in enumerate(rows):
        end = medium = 0
        for segment, parts in enumerate(examples, 1):
            begin = end
            for part in parts:
                if isinstance(part, np.ndarray):
                    values[r, medium], valid[r, medium] = part, True
                    slot[r, end : end + span] = medium * span + np.arange(span)
                    visible[r, end:] = medium
                    end, medium = end + span, medium + 1
                else:
                    tokens[r, end] = part
                    end += 1
            segments[r, begin:end], positions[r, begin:end] = segment, np.arange(end - begin)
            visible[r, end:] = -1
    media = {"image": Media(values, valid, slot, visible)} if slots else {}
    return Batch(tokens, segments, positions, np.ones_like(tokens), np.zeros(tokens.shape, np.float32), media)


def logits(model, params, batch):
    """float32 [B, T, V]."""
    return np.asarray(jax.jit(lambda p, b: model.logits(p, model.apply(p, b).hidden))(params, batch))


def error(ours, theirs):
    """Largest difference, relative to the largest value of the reference."""
    theirs = np.asarray(theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else theirs)
    assert ours.shape == theirs.shape
    found = float(np.abs(ours - theirs).max() / np.abs(theirs).max())
    ERRORS.setdefault(_test_name(), []).append(found)
    return found


def tabulate(heading, row, column, cell):
    """Puts a cell into the table of that heading (conftest.py)."""
    TABLES.setdefault(heading, {}).setdefault(row, {})[column] = cell


def _test_name():
    """`test_llava_family.py::test_logits_of[clip]` as `llava family: logits of clip`."""
    file, _, test = os.environ["PYTEST_CURRENT_TEST"].removesuffix(" (call)").rpartition("/")[2].partition("::")
    test = test.replace("[", " ").replace("]", "")
    return f"{file.removeprefix('test_').removesuffix('.py')}: {test.removeprefix('test_')}".replace("_", " ")


def assert_same_weights(first, second):
    """Two torch models hold the same bits under the same names."""
    one, other = first.state_dict(), second.state_dict()
    assert set(one) == set(other)
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name
