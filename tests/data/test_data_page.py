"""docs/data.md: every record that it shows is taken or refused, as it says."""

import re
from pathlib import Path

import pytest
from materials import picture

from mmjax.data.quarantine import BadRecord
from mmjax.data.records import ROLES, read_record

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
BLOCKS = re.findall(r"^```jsonl( refused)?\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
TAKEN = [line for kind, block in BLOCKS if not kind for line in block.splitlines()]
REFUSED = [line for kind, block in BLOCKS if kind for line in block.splitlines()]


@pytest.fixture
def root(tmp_path):
    for name in ("cat.png", "dog.png"):
        (tmp_path / name).write_bytes(picture())
    return tmp_path.resolve()


@pytest.mark.parametrize("line", TAKEN)
def test_what_the_page_shows_is_read(line, root):
    sample = read_record(line.encode(), "data.md:1", root)
    assert sample.turns and not sample.unread
    assert len(sample.images) >= bool("image" in line and "null" not in line)


@pytest.mark.parametrize("line", REFUSED)
def test_what_the_page_refuses_is_refused(line, root):
    with pytest.raises(BadRecord):
        read_record(line.encode(), "data.md:1", root)


def test_the_page_names_every_role_and_has_examples():
    assert len(TAKEN) == 11 and len(REFUSED) == 12
    assert all(f"`{role}`" in PAGE for role in ROLES)
