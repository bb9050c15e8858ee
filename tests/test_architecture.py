"""The shape of the house: imports point one way, files and functions stay short, no other framework is needed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "mmjax"
MODULES = sorted(PACKAGE.rglob("*.py"))
CONFIGS = sorted((ROOT / "configs").glob("*.py"))

# A room may import from rooms of earlier lines, and from itself.
TIERS = (
    "errors",
    "types tree sharding typed files recipes",
    "build nn data",
    "encoders projectors backbones generators",
    "model hub",
    "config workdir objectives",
    "training",
    "inference",
    "evaluation plan",
    "prepare convert cli __main__",
)
# And from these of its own line: `build` is a tool of all, and what is read from a config lies in a workdir.
NEIGHBOURS = {
    "sharding": {"tree"},
    "nn": {"build"},
    "data": {"build"},
    "hub": {"model"},
    "workdir": {"config"},
    "cli": {"prepare", "convert"},
    "__main__": {"cli"},
}
TIER = {room: i for i, rooms in enumerate(TIERS) for room in rooms.split()}
FORBIDDEN = {"torch", "tensorflow", "pickle"}


def parse(file):
    return ast.parse(file.read_text(), filename=str(file))


def imported(file, top_level_only=False):
    """(line, dotted name) of each import in a file."""
    tree = parse(file)
    for node in tree.body if top_level_only else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: a relative import"
            # `from mmjax import tree` imports mmjax.tree; `from mmjax.types import Batch` a name in mmjax.types.
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def room_of(file):
    return file.relative_to(PACKAGE).with_suffix("").parts[0]


def test_every_room_has_its_place():
    rooms = {room_of(file) for file in MODULES} - {"__init__"}
    assert rooms <= set(TIER), f"give {sorted(rooms - set(TIER))} a place in TIERS"
    assert len(rooms) > 10


@pytest.mark.parametrize("room", sorted({room_of(file) for file in MODULES}))
def test_imports_point_one_way(room):
    """`mmjax/__init__.py` opens the house: it may import anything, but only inside a function."""
    wrong = []
    for file in (file for file in MODULES if room_of(file) == room):
        for line, name in imported(file, top_level_only=room == "__init__"):
            if name.split(".")[0] != "mmjax":
                continue
            other = name.split(".")[1]
            allowed = {room} | NEIGHBOURS.get(room, set())
            if room == "__init__" or (other not in allowed and TIER[other] >= TIER[room]):
                wrong.append(f"{file.relative_to(ROOT)}:{line} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_an_import_the_wrong_way_would_be_seen(tmp_path):
    file = tmp_path / "module.py"
    file.write_text("import os\nfrom mmjax import model\nfrom mmjax.training.loop import Loop\n")
    assert list(imported(file)) == [(1, "os"), (2, "mmjax.model"), (3, "mmjax.training.loop.Loop")]
    assert TIER["training"] > TIER["model"] > TIER["nn"] > TIER["tree"]


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: file.name)
def test_a_config_is_data(file):
    assert {name for _, name in imported(file) if name.split(".")[0] == "mmjax"} <= {"mmjax.recipes"}
    docstring = ast.get_docstring(parse(file)) or ""
    assert f"mmjax train --config configs/{file.name}" in docstring, "its docstring carries its command"


def test_recipes_are_plain_data():
    """A config is read without JAX, whose import takes seconds and holds an accelerator."""
    code = "import sys, mmjax.recipes; assert not {'jax', 'numpy', 'flax'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


@pytest.mark.parametrize("file", MODULES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_files_and_functions_are_short_and_need_no_other_framework(file):
    assert len(file.read_text().splitlines()) <= 350
    for node in ast.walk(parse(file)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= 60, f"{node.name} has {lines} lines"
    found = {name.split(".")[0] for _, name in imported(file)} & FORBIDDEN
    assert not found, found


def test_test_files_have_names_of_their_own():
    """Without packages, pytest tells them apart by their base names."""
    names = [file.name for file in (ROOT / "tests").rglob("*.py") if file.name != "conftest.py"]
    assert sorted(set(names)) == sorted(names)
    assert "test_architecture.py" in names
