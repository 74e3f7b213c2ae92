# `make demo` and `make test` need make, Python >= 3.10 and a package index, nothing else. Without make: see README.md.
.DEFAULT_GOAL := help
SHELL := /bin/sh
.DELETE_ON_ERROR:

PYTHON ?= python3
VENV ?= .venv
JOBS ?= 2

PY := $(VENV)/bin/python
# newer than whatever decides what has to be installed, once it is installed
STAMP := $(VENV)/.installed
# each of the suite's processes works with one thread: more of them get in each other's way
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.PHONY: help
help: ## show this list
	@echo 'make TARGET [PYTHON=python3] [VENV=.venv] [JOBS=2]'
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1|\2/p' Makefile | while IFS='|' read -r target text; do \
	    printf '%-14s%s\n' "$$target" "$$text"; done

.PHONY: install
install: $(STAMP) ## make the virtual environment and install the project with all it needs

$(STAMP): setup.py pyproject.toml requirements.txt $(wildcard requirements/*.txt mmseg_coop/requirements/*.txt) \
    mmseg_coop/version.py
	@[ -x $(PY) ] || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	    echo "make: found $$($(PYTHON) --version 2>&1), needed is Python >= 3.10: make PYTHON=/path/to/python3" >&2; \
	    exit 1; }
	@[ -x $(PY) ] || $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo 'make: $(PYTHON) cannot make virtual environments: install its venv module' \
	        '(Debian, Ubuntu: apt install python3-venv) or choose another: make PYTHON=/path/to/python3' >&2; \
	    exit 1; }
	@[ -x $(PY) ] || { echo 'make: creating $(VENV)'; $(PYTHON) -m venv $(VENV); }
	@echo "make: installing the project and its requirements into $(VENV) ($$($(PY) --version)), some minutes"
	@$(PY) -m pip install --quiet --upgrade 'pip>=23.1'
	@$(PY) -m pip install --quiet --editable '.[tests,docs]'
	@touch $@

.PHONY: demo
demo: $(STAMP) ## train, test and picture a small model on drawn images (some minutes)
	@echo 'make: running the demo'
	@$(PY) demo/mini_demo.py

.PHONY: test
test: lint ## run all checks, the doctests and the suite
	@echo 'make: running the doctests and the suite in $(JOBS) processes'
	@$(ONE_THREAD) $(PY) -m pytest -n $(JOBS) --dist loadfile --doctest-modules mmseg_coop tests

.PHONY: test-slow
test-slow: $(STAMP) ## run the tests that `make test` leaves out
	@echo 'make: running the slow tests in $(JOBS) processes'
	@$(ONE_THREAD) $(PY) -m pytest -m slow -n $(JOBS) --dist loadfile tests

.PHONY: lint
lint: $(STAMP) ## check style, docstrings, types, spelling and the names of the configs
	@echo 'make: checking style, docstrings, types, spelling and config names'
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(PY) -m codespell_lib
	@$(PY) tools/misc/check_config_names.py

.PHONY: docs
docs: $(STAMP) ## build the documentation into docs/_build/html; a warning is an error
	@echo 'make: building the documentation'
	@$(PY) -m sphinx -E -W --keep-going -n -q -b html docs docs/_build/html
	@echo 'make: open docs/_build/html/index.html'

.PHONY: format
format: $(STAMP) ## bring the code into the project's style
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

.PHONY: clean
clean: ## remove what was built, but not the virtual environment
	rm -rf build dist docs/_build *.egg-info mmseg_coop/.mim .hypothesis .mypy_cache .pytest_cache .ruff_cache
