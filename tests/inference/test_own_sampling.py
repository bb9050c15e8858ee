"""A converted checkpoint decodes as its generation_config.json says, as `generate` of transformers does."""

import json
import re

import pytest
import transformers

from mmjax.errors import UserError
from mmjax.hub.generation import generation_settings, warn_of_generation
from mmjax.inference.defaults import own_sampling
from mmjax.inference.settings import Sampling

CASES = [
    ({}, dict(max_new=100)),
    (dict(temperature=0.6, top_k=5, top_p=0.9), dict(max_new=100)),  # without do_sample
    (dict(do_sample=False, temperature=0.6), dict(max_new=100)),
    (dict(do_sample=True), dict(max_new=100, temperature=1.0, top_k=50)),
    (
        dict(do_sample=True, temperature=0.6, top_k=0, top_p=0.9),
        dict(max_new=100, temperature=0.6, top_p=0.9),
    ),
    (dict(do_sample=True, top_p=0), dict(max_new=100)),
    (dict(max_new_tokens=150), dict(max_new=150)),
    (dict(max_new_tokens=4096), dict(max_new=200)),
    (dict(num_beams=3, length_penalty=0.5), dict(max_new=100, beams=3, length_penalty=0.5)),
    (dict(num_beams=1, length_penalty=0.5), dict(max_new=100)),
    (dict(stop_strings="END"), dict(max_new=100, stop=("END",))),
    (dict(stop_strings=["A", "B"], temperature=None), dict(max_new=100, stop=("A", "B"))),
]


def write(folder, said):
    (folder / "generation_config.json").write_text(json.dumps(said))
    return folder


@pytest.mark.parametrize(("said", "expected"), CASES)
def test_what_the_file_says_is_the_default(said, expected, tmp_path):
    assert own_sampling(write(tmp_path, said), 400) == Sampling(**expected)
    assert generation_settings(tmp_path)[1] == []


def test_without_a_file_it_is_greedy(tmp_path):
    assert own_sampling(tmp_path, 400) == Sampling(max_new=100)
    assert own_sampling(tmp_path, 4000) == Sampling()


@pytest.mark.parametrize(
    ("said", "named"),
    [
        (dict(repetition_penalty=1.05, no_repeat_ngram_size=3), "repetition_penalty, no_repeat_ngram_size"),
        (dict(suppress_tokens=[3], max_time=1.0), "suppress_tokens, max_time"),
        (dict(min_p=0.1, typical_p=0.5), ""),
        (dict(do_sample=True, min_p=0.1, typical_p=0.5), "min_p, typical_p"),
        (dict(num_beams=2, early_stopping=True), "early_stopping"),
        (dict(num_beams=2, do_sample=True), "do_sample (there are beams, and they draw nothing here)"),
        (dict(max_length=50), "max_length (max_new counts the answer's tokens alone)"),
        (dict(max_length=50, max_new_tokens=20), ""),
    ],
)  # fmt: skip
def test_what_would_change_answers_and_has_no_counterpart_is_named_once(said, named, tmp_path, caplog):
    warn_of_generation(write(tmp_path, said))
    assert [re.sub(r".*: ", "", record.getMessage()) for record in caplog.records] == (
        [f"{named}."] if named else []
    )


def test_the_defaults_of_transformers_itself_change_nothing(tmp_path):
    config = transformers.GenerationConfig()
    said = config.to_dict() | config._get_default_generation_params()
    del said["max_length"]
    for more in (dict(do_sample=True), dict(num_beams=2), {}):
        assert generation_settings(write(tmp_path, said | more))[1] == []


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (dict(do_sample=True, temperature="hot"), r"temperature: 'hot' is not of type float"),
        (dict(do_sample=True, top_p=2), "top_p: 2 is above 1"),
        (dict(do_sample="yes"), "do_sample is 'yes'"),
        (dict(max_new_tokens=None, num_beams=0), "beams: 0 is below 1"),
        (dict(max_new_tokens="many"), "max_new: 'many' is not of type int"),
    ],
)
def test_a_damaged_file_is_named(said, message, tmp_path):
    with pytest.raises(UserError, match=rf"generation_config\.json: .*{message}"):
        own_sampling(write(tmp_path, said), 400)
