"""Prompts are written as most of a stage's data is: by the template of its heaviest source."""

import copy

from tiny_run import config, write_data

import mmjax
from mmjax.build import section
from mmjax.data.spec import DataSpec
from mmjax.training.stages import train


def spec(folder, **templates):
    data = copy.deepcopy(config(folder)["sft"]["data"])
    data["sources"] = {
        name: data["sources"]["main"] | dict(weight=weight, template=template)
        for name, (weight, template) in templates.items()
    }
    return data


def test_the_heaviest_source_says_the_template(tmp_path):
    for sources, expected in (
        (dict(a=(0.2, "plain"), b=(0.8, "text")), "text"),
        (dict(a=(0.5, "plain"), b=(0.5, "text")), "plain"),
        (dict(a=(0.2, "plain"), b=(0.8, "")), "bare"),
    ):
        assert section(DataSpec, spec(tmp_path, **sources), "data").prompt_template == expected


def test_an_assistant_asks_as_its_training_did(tmp_path):
    write_data(tmp_path)
    raw = config(tmp_path, steps=2) | dict(stages=["sft"])
    raw.pop("pretrain")
    raw["sft"]["data"] = spec(tmp_path, main=(1.0, "vicuna_v1")) | dict(length=400)
    train(raw, tmp_path / "run")
    encoder = mmjax.load(tmp_path / "run").encoder
    assert "ASSISTANT:" in encoder.template.assistant_open and "USER" in encoder.template.user_open
