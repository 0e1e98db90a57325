# make demo | test are all a newcomer needs: each sets up .venv by itself.
PY ?= python3
VENV := .venv
BIN := $(VENV)/bin
PYTEST = $(BIN)/python -m pytest -q -n auto --maxprocesses 4
STAMP := $(VENV)/.installed

# uv does not read pip's configuration: pass on a wheel folder that pip knows.
export UV_FIND_LINKS ?= $(shell echo "$${PIP_FIND_LINKS:-$$($(PY) -m pip config get global.find-links 2>/dev/null)}" | tr ' ' ',')

# Compiled modules are kept in .venv and beside the sources (git ignores them), also where the environment says otherwise:
# the tests start some hundred workers, and each would compile torch and transformers again, 6 s of a core.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: screenshots setup demo test test-servers unit slow check faults bench format clean
setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PY) -m venv $(VENV)
	$(BIN)/python -m pip install -q --disable-pip-version-check uv \
	  && $(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e ".[dev]" \
	  || $(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $(STAMP)

demo: setup
	$(BIN)/tunesmith demo

test: unit slow

unit: setup
	$(PYTEST) -m "not slow and not servers"

slow: setup
	$(PYTEST) -m slow --dist loadfile

# Object stores, whole services over HTTP, and processes killed at random points; CI runs it, too.
test-servers: setup
	$(PYTEST) -m servers --dist loadfile

check: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright
	$(BIN)/lint-imports
	$(BIN)/python scripts/check_docs.py

# FAULTS_ROUNDS kills of server and workers (50 in `make test-servers`); FAULTS_SEED repeats a printed run.
faults: setup
	FAULTS_ROUNDS=$${FAULTS_ROUNDS:-300} $(BIN)/python -m pytest -q tests/faults

format: setup
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: setup
	$(BIN)/uv pip install -q --python $(BIN)/python -c constraints.txt -e ".[dev,bench]"
	$(BIN)/python -m benchmarks

# Pictures of the console for the documentation; needs chromium.
screenshots: setup
	$(BIN)/python scripts/make_screenshots.py
	TUNESMITH_JOURNEY_PICTURES=docs/images $(BIN)/python -m pytest -q -n 0 tests/server/browser/test_journey.py -k test_by_browser

clean:
	rm -rf $(VENV) build dist
