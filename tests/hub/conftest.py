"""`pytest tests/hub --parity-table docs/parity.md` writes down the largest error that each comparison saw."""

from pathlib import Path

import parity
import transformers

HEADER = """# Parity

Every family against its reference implementation: the same random weights and inputs, float32, on the CPU. An
error is the largest difference of a comparison, relative to the largest value of the reference; the tests, of the
same names, allow {tolerance:g}. Made by `make parity` with transformers {transformers}.

| compared | comparisons | largest error |
|---|---|---|
"""


def pytest_addoption(parser):
    parser.addoption("--parity-table", metavar="FILE", help="write the table of largest errors there")


def pytest_sessionfinish(session, exitstatus):
    file = session.config.getoption("--parity-table")
    if not file or exitstatus:
        return
    lines = [f"| {name} | {len(errors)} | {max(errors):.1e} |" for name, errors in sorted(parity.ERRORS.items())]
    header = HEADER.format(tolerance=parity.TOLERANCE, transformers=transformers.__version__)
    tables = [_table(heading, rows) for heading, rows in parity.TABLES.items()]
    Path(file).write_text("\n".join([header + "\n".join(lines) + "\n", *tables]))


def _table(heading, rows):
    """Markdown under a heading, whose text is all that `heading` says; a cell that no test has filled is empty."""
    columns = list(dict.fromkeys(column for cells in rows.values() for column in cells))
    lines = [["", *columns], ["---"] * (len(columns) + 1)]
    lines += [[row, *(cells.get(column, "") for column in columns)] for row, cells in rows.items()]
    return f"{heading}\n\n" + "".join(f"| {' | '.join(line)} |\n" for line in lines)
