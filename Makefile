# The few words that everybody types. Everything runs in .venv, made on first use.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test test-all test-gpu check mutants bench bench-peers docs coverage clean

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
	@for layer in audit training analysis ablation data cli; do \
		printf '%s %s %%\n' $$layer $$($(BIN)/coverage report --include="lplr_cli/$$layer/*" --format=total); done

# Every proof with a term less must fail a test; hours.
mutants: $(VENV)/.installed-test
	$(BIN)/python -m tools.mutants

# Half an hour at most; the tables on stdout, in benchmarks.json, and against those of docs/benchmarks.md.
bench: $(VENV)/.installed-test
	$(BIN)/python -m benchmarks

# Other libraries in environments of their own, pinned, and the tables that they stand in.
PEERS := .venv-peers
TANGENTS := .venv-tangents

$(PEERS)/.installed: constraints.txt
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt \
		nngeometry==0.4 curvlinops-for-pytorch==3.0.1 pyhessian==0.1 hessian-eigenthings==1.0.0a5 -e .
	touch $@

$(TANGENTS)/.installed:
	test -x $(TANGENTS)/bin/python || $(PYTHON) -m venv $(TANGENTS)
	$(TANGENTS)/bin/python -m pip install --quiet --disable-pip-version-check \
		jax==0.4.20 jaxlib==0.4.20 neural-tangents==0.6.5 'numpy<2' 'scipy<1.13'
	touch $@

bench-peers: $(VENV)/.installed-test $(PEERS)/.installed $(TANGENTS)/.installed
	LPLR_BENCH_PEERS_PYTHON=$(PEERS)/bin/python LPLR_BENCH_HESSIAN_PYTHON=$(PEERS)/bin/python \
	LPLR_BENCH_NT_PYTHON=$(TANGENTS)/bin/python \
	$(BIN)/python -m benchmarks Kernel Peers "Hessian products" --json benchmarks-peers.json

docs: $(VENV)/.installed-docs
	$(BIN)/mkdocs build

clean:
	rm -rf $(VENV) $(PEERS) $(TANGENTS) build dist site *.egg-info
