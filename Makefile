# The few words that everybody types. Everything runs in .venv, made on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all test-gpu check mutants bench docs coverage clean

# One stamp an extra, so that a demo need not wait for the test tools.
$(VENV)/.installed-%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[$*]'
	touch $@

$(VENV)/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

demo: $(VENV)/.installed
	$(BIN)/lplr train mnist --width 64

# A process a core, each with one thread: what most tests do is too small for more.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist worksteal

test: $(VENV)/.installed-test
	$(PYTEST)

# One after another: some of the slow ones measure time and memory.
test-all: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m "slow or not slow"

# What needs a GPU; elsewhere each test says why it is skipped.
test-gpu: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m cuda -rs

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/vulture
	$(PYTEST)

# Branch coverage, processes that the tests start counted.
coverage: $(VENV)/.installed-dev
	rm -f .coverage .coverage.*
	OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

# Every proof with a term less must fail a test; hours.
mutants: $(VENV)/.installed-test
	$(BIN)/python -m tools.mutants

bench: $(VENV)/.installed-test
	$(BIN)/python -m benchmarks

docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs build

clean:
	rm -rf $(VENV) build dist site *.egg-info
