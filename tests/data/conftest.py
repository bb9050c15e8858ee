"""Tokenizers for the tests of the data room."""

import pytest
from materials import SPECIALS, TEXTS, Words, make_hf

from mmjax.data.tokenizer import train_sentencepiece


@pytest.fixture
def words():
    return Words()


@pytest.fixture(scope="session")
def sentencepiece(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "text.model"
    return train_sentencepiece(TEXTS, path, vocab_size=340, specials=SPECIALS)


@pytest.fixture(scope="session", params=["bytes", "first"])
def hf(request, tmp_path_factory):
    return make_hf(tmp_path_factory.mktemp("hf") / "tokenizer.json", request.param)
