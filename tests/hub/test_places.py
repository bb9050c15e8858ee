"""Where a conversion reads and writes: nobody else's files are deleted, no link leads out of a workdir."""

import multiprocessing
import signal

import pytest
from parity import save
from small_models import small_model

import mmjax
from mmjax.convert import convert
from mmjax.errors import UserError
from mmjax.hub.places import new_folder
from mmjax.workdir import locked


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save(small_model("llama"), tmp_path_factory.mktemp("places") / "hf")


@pytest.fixture
def run(folder, tmp_path):
    convert(folder, tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("there", [True, False])
def test_of_two_conversions_to_one_folder_the_second_is_refused(folder, tmp_path, there):
    target = tmp_path / "run"
    if there:
        target.mkdir()
    with new_folder(target):
        with pytest.raises(UserError, match="run: another process is training or writing there"):
            convert(folder, target)
        (target / "config.json").write_text("of the first")
        with pytest.raises(UserError, match="run: another process is training or writing there"):
            convert(folder, target)
        with pytest.raises(UserError, match="another process"), locked(target, writes=True):
            pass
    assert [file.read_text() for file in target.iterdir()] == ["of the first"]


def test_a_conversion_that_fails_leaves_the_folder_to_the_next(folder, tmp_path):
    with pytest.raises(KeyError), new_folder(tmp_path / "run") as target:
        (target / "weights").mkdir()
        (target / "link").symlink_to(folder)
        raise KeyError
    assert not target.exists() and (folder / "config.json").exists()
    convert(folder, target)
    assert (target / "config.json").exists()


def _hold(target, began):
    with new_folder(target):
        began.set()
        signal.pause()


def test_a_killed_conversion_leaves_no_lock(folder, tmp_path):
    context = multiprocessing.get_context("spawn")
    began = context.Event()
    process = context.Process(target=_hold, args=(tmp_path / "run", began))
    process.start()
    assert began.wait(60)
    with pytest.raises(UserError, match="another process is training or writing there"):
        convert(folder, tmp_path / "run")
    process.kill()
    process.join()
    convert(folder, tmp_path / "run")
    assert (tmp_path / "run" / "config.json").exists()


@pytest.mark.parametrize("name", ["hub/notes.txt", "hub/nested/deeper/notes.json", "hub/aside", "weights/more"])
def test_no_link_of_a_workdir_is_followed_out_of_it(run, tmp_path, name):
    secret = tmp_path / "secret"
    secret.write_text("a private key")
    (run / name).parent.mkdir(parents=True, exist_ok=True)
    (run / name).symlink_to(secret)
    with pytest.raises(UserError, match=f"{name}: .*lies outside the workdir"):
        convert(run, tmp_path / "out")
    with pytest.raises(UserError, match=f"{name}: .*lies outside the workdir"):
        mmjax.load(run)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["weights/model.safetensors", "weights", "hub"])
def test_tensors_and_folders_that_are_links_are_refused(run, tmp_path, name):
    (run / name).rename(tmp_path / "elsewhere")
    (run / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="lies outside the workdir"):
        convert(run, tmp_path / "out")


def test_a_link_within_the_workdir_is_no_harm(run, tmp_path):
    (run / "hub" / "tokenizer.json").rename(run / "kept.json")
    (run / "hub" / "tokenizer.json").symlink_to("../kept.json")
    convert(run, tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == (run / "kept.json").read_bytes()
    assert not (tmp_path / "out" / "tokenizer.json").is_symlink()
