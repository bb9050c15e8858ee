"""`pytest tests/golden --make-golden` writes the golden files anew (see golden_files.py)."""

import functools
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "hub"))  # small checkpoints as they are published

from entries import train, write_tokenizer
from golden_files import check, write
from made import texts, write_data
from small_runs import RUNS


def pytest_addoption(parser):
    parser.addoption("--make-golden", action="store_true", help="write tests/golden anew instead of comparing")


@pytest.fixture
def golden(request):
    """golden(name, values): compares with the file of that name, or writes it."""
    return write if request.config.getoption("--make-golden", default=False) else check


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """The folder of the made data and their tokenizer."""
    folder = tmp_path_factory.mktemp("made")
    write_data(folder)
    write_tokenizer(texts(), folder / "tokenizer.model")
    return folder


@pytest.fixture(scope="session")
def trained(data, tmp_path_factory):
    """trained(name): the workdir of a small run, trained when it is first asked for."""

    @functools.cache
    def workdir(name):
        folder = tmp_path_factory.mktemp("run")
        train(RUNS[name](data), folder)
        return folder

    return workdir
