# make demo    a virtual environment for converting; converts the example recording to speaker 12
# make test    everything that training and the tests need (PyTorch too); runs the tests
# make check   what CI runs: format, lint, types, import contracts, then the tests
#
# Needed on the machine: Python 3.10 or newer, a C++ compiler, make. A second call installs nothing.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

# The base install is stale once the packaging or the sampler's sources change.
PACKAGING := pyproject.toml constraints.txt $(wildcard setup.py MANIFEST.in)
SAMPLER := $(wildcard vconv/native/*.cpp vconv/native/*.h)
BASE := $(VENV)/.stamp-base
DEV := $(VENV)/.stamp-dev

.PHONY: demo test check lint format clean

demo: $(BASE)
	@mkdir -p out
	$(BIN)/vconv convert examples/hello.wav --speaker 12 -o out/hello-12.wav --overwrite
	@echo "Listen to out/hello-12.wav beside examples/hello.wav."

test: $(DEV)
	$(BIN)/python -m pytest

# The tests come last, so that their closing line is the run's.
check: lint
	$(MAKE) --no-print-directory test

lint: $(DEV)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/python .ci/lint_imports.py

format: $(DEV)
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# What building and testing leave behind; the virtual environment, runs and corpora stay.
clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache out
	rm -f vconv/native/*.so vconv/native/*.pyd $(BASE) $(DEV)
	find vconv train export demo tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "vconv needs Python 3.10 or newer; name one with: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# Order-only: the interpreter is a link whose date says nothing about this environment.
$(BASE): $(PACKAGING) $(SAMPLER) | $(BIN)/python
	$(INSTALL) -e .
	@touch $@

# Brings the base along, so a later `make demo` finds it done.
$(DEV): $(PACKAGING) $(SAMPLER) | $(BIN)/python
	$(INSTALL) -e '.[dev]'
	@touch $(BASE) $@
