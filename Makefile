# make demo | test are all a newcomer needs: each sets up .venv by itself.
PY ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST = $(BIN)/python -m pytest -q -n auto --maxprocesses 4
STAMP := $(VENV)/.installed

# uv does not read pip's configuration: pass on a wheel folder that pip knows.
export UV_FIND_LINKS ?= $(shell echo "$${PIP_FIND_LINKS:-$$($(PY) -m pip config get global.find-links 2>/dev/null)}" | tr ' ' ',')

.PHONY: setup demo test test-servers unit check faults bench format clean
setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PY) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check uv \
	  && $(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e ".[dev]" \
	  || $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(STAMP)

demo: setup
	$(BIN)/tunesmith demo

test: setup
	$(PYTEST) -m "not slow and not servers"
	$(PYTEST) -m slow --dist loadfile

unit: setup
	$(PYTEST) -m "not slow and not servers"

# Object stores, whole services over HTTP, and processes killed at random points; CI runs it, too.
test-servers: setup
	$(PYTEST) -m servers --dist loadfile

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python scripts/check_docs.py

# FAULTS_ROUNDS kills (50 in `make test-servers`); FAULTS_SEED repeats a printed run.
faults: setup
	FAULTS_ROUNDS=$${FAULTS_ROUNDS:-300} $(BIN)/python -m pytest -q tests/faults

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup
	$(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e ".[dev,bench]"
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) build dist
