"""Rows as people look at them: text with targets and places of pictures, and the pictures."""

import dataclasses

import numpy as np
import pytest
from PIL import Image
from tiny_run import config, mmjax, write_config, write_data

from mmjax.data import show
from mmjax.training.run import prepare


@pytest.fixture(scope="module", params=["splice", "xattn"])
def opened(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("squares")
    write_data(folder)
    run = prepare(config(folder, request.param), folder / "run")
    return request.param, run, run.data(run.config.stage("sft"), "train")


def test_a_row_is_shown_with_its_targets_and_pictures(opened):
    fusion, run, data = opened
    r = next(r for r in range(len(data)) if data.ids([r])[0].endswith("square-4"))
    row = data.row(r)
    first = show.row_text(row, run.tokenizer).splitlines()[:3]
    place = "<image 0: 4 tokens>" if fusion == "splice" else "<image>"
    assert first == [f"1. <s>{place}", "What colour is it?", "⟦It is red.⟧⟦</s>⟧"]
    half = row.replace(loss_weight=row.loss_weight * np.float32(0.5))
    assert "⟦0.5: It is red.⟧" in show.row_text(half, run.tokenizer)
    values = row.media["image"].values
    sheet = np.asarray(show.pictures(row))
    np.testing.assert_array_equal(sheet[:, :16], values[0])
    empty = dataclasses.replace(row.media["image"], valid=np.zeros_like(row.media["image"].valid))
    assert show.pictures(row.replace(media={"image": empty})) is None


def test_shapes_are_named(opened):
    _, _, data = opened
    shown = show.shapes(data.row(0))
    assert shown.startswith("tokens int32[48], ") and "media.image.values uint8[2, 16, 16, 3]" in shown


def test_the_command_shows_rows_and_writes_nothing_but_pictures(tmp_path):
    write_data(tmp_path)
    write_config(config(tmp_path), tmp_path / "config.py")
    before = {file.name for file in tmp_path.iterdir()}
    command = ("data", "--config", "config.py", "--show=2", "--stage=sft", "--into=pictures")
    output, _ = mmjax(*command, cwd=tmp_path).communicate(timeout=300)
    assert output.count("## row") == 2 and "⟦" in output and "# sft: 24 rows" in output, output
    assert {file.name for file in tmp_path.iterdir()} - before <= {"pictures", "__pycache__"}
    for file in (tmp_path / "pictures").iterdir():
        assert Image.open(file).size[1] == 16
