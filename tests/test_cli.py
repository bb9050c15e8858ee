"""The command line as a user meets it, each command in a process of its own; and the README's worked example."""

import json
import re

import pytest
from tiny_run import ROOT, config, metrics, mmjax, write_config, write_data

import mmjax as package


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with data, a config file and a trained workdir `run`."""
    folder = tmp_path_factory.mktemp("cli")
    write_data(folder)
    write_config(config(folder, steps=60, log_every=20), folder / "c.py")
    succeed("train", "--config", folder / "c.py", "--workdir", folder / "run")
    return folder


def run(*arguments, **options):
    process = mmjax(*arguments, **options)
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def succeed(*arguments, **options):
    code, output = run(*arguments, **options)
    assert code == 0, output
    return output


def fail(*arguments):
    """The message of a command that must fail, without a traceback."""
    code, output = run(*arguments)
    assert code != 0 and "Traceback" not in output, output
    return output


def test_generate_answers_about_a_picture_in_a_new_process(trained):
    for number, colour in ((0, "red"), (2, "blue")):  # the pictures' own colours, learned by heart
        picture = trained / f"{number}.png"
        answer = succeed(
            "generate", "--workdir", trained / "run", "--image", picture, "--prompt", "What colour is it?"
        )
        assert answer.splitlines()[-1] == f"It is {colour}."


def test_three_lines_in_a_notebook(trained):
    assistant = package.load(trained / "run")
    assert assistant("What colour is it?", image=trained / "1.png") == "It is green."


def test_chat_reads_commands_and_questions(trained):
    process = mmjax("chat", "--workdir", trained / "run", stdin=-1)
    output, _ = process.communicate(f"/image {trained / '0.png'}\nWhat colour is it?\n/quit\n", timeout=120)
    assert process.returncode == 0 and "It is red." in output, output


def test_mistakes_are_answered_with_the_right_name(trained):
    base = ("train", "--config", trained / "c.py", "--workdir", trained / "other")
    assert "did you mean 'steps'?" in fail(*base, "--config.sft.stpes=5")
    assert "did you mean 'sft'?" in fail(*base, "--config.sfd.steps=5")
    assert "did you mean 'sft'?" in fail(*base, "--stage=sfft")
    assert "did you mean 'train'?" in fail("trian")
    assert "workdir" in fail(*base[:3])
    assert "no run there" in fail("generate", "--workdir", trained / "nothing", "--prompt", "Hello?")
    assert not (trained / "other" / "sft").exists()


@pytest.mark.parametrize(("key", "kind"), [("sft.trainable", "a list"), ("sft.valid", "None")])
def test_a_key_that_no_flag_can_change(trained, key, kind):
    base = ("train", "--config", trained / "c.py", "--workdir", trained / "other")
    assert f"--config.{key}=x: its value is {kind}, which no flag can change" in fail(*base, f"--config.{key}=x")


def test_a_key_mistyped_in_a_config_file(trained):
    raw = config(trained)
    raw["sft"]["stpes"] = raw["sft"].pop("steps")
    write_config(raw, trained / "wrong.py")
    message = fail("train", "--config", trained / "wrong.py", "--workdir", trained / "other")
    assert "sft: no key 'stpes'; did you mean 'steps'?" in message


def test_a_checkpoint_of_another_model_is_refused(trained):
    raw = config(trained, steps=60, log_every=20)
    raw["model"]["backbone"]["mlp_width"] = 128
    write_config(raw, trained / "wider.py")
    message = fail("train", "--config", trained / "wider.py", "--workdir", trained / "run")
    assert "model.backbone.mlp_width: 64 before, 128 now" in message and "choose another --workdir" in message


def test_every_command_explains_itself(trained):
    usage = succeed("--help")
    for command in ("train", "evaluate", "compare", "generate", "chat", "prepare"):
        assert command in usage
        assert {"--config:", "--workdir:", "--into:"} & set(succeed(command, "--help").split())


def test_a_profile_is_written(trained, tmp_path):
    write_config(config(trained, steps=9), tmp_path / "c.py")
    succeed("train", "--config", tmp_path / "c.py", "--workdir", tmp_path / "run", "--stage=pretrain", "--profile")
    assert list((tmp_path / "run" / "pretrain" / "profile").rglob("*.xplane.pb"))


def test_the_worked_example_of_the_readme(trained, tmp_path, monkeypatch):
    """The projector of the README, in a file outside mmjax, named by one line of a config, trains."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    (part,) = (block for block in blocks if block.startswith("# my_parts.py"))
    (line,) = (block for block in blocks if "c.model.projectors.image" in block)
    (tmp_path / "my_parts.py").write_text(part)
    text = (trained / "c.py").read_text()
    (tmp_path / "c.py").write_text(
        text.replace("    return ConfigDict(", "    c = ConfigDict(")
        + "\n".join("    " + each for each in line.splitlines() if not each.startswith("#"))
        + "\n    return c\n"
    )
    succeed("train", "--config", tmp_path / "c.py", "--workdir", tmp_path / "run", cwd=tmp_path)
    lines = metrics(tmp_path / "run", "sft")
    assert lines[-1]["loss"] < 0.5 * lines[0]["loss"]
    saved = json.loads((tmp_path / "run" / "config.json").read_text())
    assert saved["model"]["projectors"]["image"] == {"type": "my_parts.Mean"}
