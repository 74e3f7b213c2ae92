# `make demo` and `make test` need make, Python >= 3.10 and a package index, nothing else. Without make: see README.md.
.DEFAULT_GOAL := help
SHELL := /bin/sh
.DELETE_ON_ERROR:

PYTHON ?= python3
STACK ?= onedl
VENV ?= $(if $(filter openmmlab,$(STACK)),.venv-openmmlab,.venv)
JOBS ?= 2

PY := $(VENV)/bin/python
PYTHONS := $(if $(filter openmmlab,$(STACK)),>= 3.10 and < 3.12,>= 3.10)
UNFIT := v = sys.version_info; sys.exit(v < (3, 10)$(if $(filter openmmlab,$(STACK)), or v >= (3, 12)))
# newer than whatever decides what has to be installed, once it is installed
STAMP := $(VENV)/.installed
# each of the suite's processes works with one thread: more of them get in each other's way
ONE_THREAD := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1

.PHONY: help
help: ## show this list
	@echo 'make TARGET [PYTHON=python3] [STACK=onedl|openmmlab] [VENV=.venv] [JOBS=2]'
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)/  \1|\2/p' Makefile | while IFS='|' read -r target text; do \
	    printf '%-16s%s\n' "$$target" "$$text"; done

.PHONY: install
install: $(STAMP) ## make the virtual environment and install the project with all it needs

$(STAMP): setup.py pyproject.toml requirements.txt $(wildcard requirements/*.txt mmseg_coop/requirements/*.txt) \
    mmseg_coop/version.py
	@[ -x $(PY) ] || $(PYTHON) -c 'import sys; $(UNFIT)' || { \
	    echo "make: found $$($(PYTHON) --version 2>&1), needed is Python $(PYTHONS): make PYTHON=/path/to/python3" >&2; \
	    exit 1; }
	@[ -x $(PY) ] || $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	    echo 'make: $(PYTHON) cannot make virtual environments: install its venv module' \
	        '(Debian, Ubuntu: apt install python3-venv) or choose another: make PYTHON=/path/to/python3' >&2; \
	    exit 1; }
	@[ -x $(PY) ] || { echo 'make: creating $(VENV)'; $(PYTHON) -m venv $(VENV); }
	@echo "make: installing the project and its requirements into $(VENV) ($$($(PY) --version)), some minutes"
	@$(PY) -m pip install --quiet --upgrade 'pip>=23.1'
ifeq ($(STACK),openmmlab)
	@# mmcv is compiled against the torch that is installed
	@cat requirements/openmmlab.txt mmseg_coop/requirements/openmmlab.txt | grep -E '^(torch|numpy|setuptools)' \
	    | xargs $(PY) -m pip install --quiet wheel
	@grep '^mmcv' mmseg_coop/requirements/openmmlab.txt | xargs $(PY) -m pip install --quiet --no-build-isolation
	@$(PY) -m pip install --quiet -r requirements/openmmlab.txt -r requirements/tests.txt
	@$(PY) -m pip install --quiet --no-deps --editable .
else
	@$(PY) -m pip install --quiet --editable '.[tests,docs]'
endif
	@touch $@

.PHONY: demo
demo: $(STAMP) ## train, test and picture a small model on drawn images (some minutes)
	@echo 'make: running the demo'
	@$(PY) demo/mini_demo.py --force

.PHONY: test
test: style ## run all checks, the doctests and the suite with its coverage, which has a floor in pyproject.toml
	@# types are checked meanwhile, in one process and half a minute; what was found is said in the end
	@mkdir -p build; $(MAKE) --no-print-directory types > build/types.log 2>&1 & types=$$!; \
	    $(MAKE) --no-print-directory suite COV_OPTIONS='--cov --cov-report=html:build/coverage'; code=$$?; \
	    wait $$types || code=$$?; cat build/types.log; exit $$code

.PHONY: suite
suite: $(STAMP) ## run the doctests and the suite
	@echo 'make: running the doctests and the suite in $(JOBS) processes'
	@$(ONE_THREAD) $(PY) -m pytest -n $(JOBS) --dist loadfile $(COV_OPTIONS) --doctest-modules mmseg_coop tests

.PHONY: test-slow
test-slow: $(STAMP) ## run the tests that `make test` leaves out
	@echo 'make: running the slow tests in $(JOBS) processes'
	@# few and long: no process waits for another's last file
	@$(ONE_THREAD) $(PY) -m pytest -m slow -n $(JOBS) --dist worksteal tests

.PHONY: test-cuda
test-cuda: $(STAMP) ## run the tests that are for a GPU; what they measure goes to build/cuda
	@echo 'make: running the tests that are for a GPU'
	@$(PY) -m pytest -m cuda -n $(JOBS) tests/cuda tests/test_configs.py --ignore=tests/cuda/test_costs.py
	@# alone: what else runs would be measured, too
	@MMSEG_COOP_FIGURES=$(abspath build/cuda) $(PY) -m pytest -m cuda tests/cuda/test_costs.py

.PHONY: lint
lint: style types ## check style, docstrings, types, spelling and the names of the configs

.PHONY: types
types: $(STAMP)
	@echo 'make: checking types'
	@$(PY) -m mypy

.PHONY: style
style: $(STAMP)
	@echo 'make: checking style, docstrings, spelling and config names'
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m codespell_lib
	@$(PY) tools/misc/check_config_names.py

.PHONY: docs
docs: $(STAMP) ## build the documentation into docs/_build/html; a warning is an error
	@echo 'make: building the documentation'
	@$(PY) -m sphinx -E -W --keep-going -n -q -b html docs docs/_build/html
	@echo 'make: open docs/_build/html/index.html'

.PHONY: release-tag
release-tag:
	@version="$$(sed -n "s/^__version__ = '\(.*\)'$$/\1/p" mmseg_coop/version.py)"; \
	    [ -z "$(TAG)" ] || [ "$(TAG)" = "v$$version" ] || { \
	        echo "make: TAG is $(TAG), but mmseg_coop/version.py says $$version: change one of them" >&2; exit 1; }; \
	    [ -z "$(TAG)" ] || grep -q "^## \[$$version\] - [0-9]" CHANGELOG.md || { \
	        echo "make: CHANGELOG.md has no '## [$$version] - YEAR-MONTH-DAY': say there what changed" >&2; exit 1; }

.PHONY: release-check
release-check: release-tag $(STAMP) ## build what a release uploads and check it; TAG=v1.2.3 has to fit the version
	@$(PY) -m pip install --quiet -r requirements/release.txt
	@rm -rf dist build/release
	@echo 'make: building the source distribution, and the wheel from it'
	@$(PY) -m build --outdir dist . > /dev/null
	@$(PY) -m twine check --strict dist/*
	@echo 'make: installing the wheel in a clean environment, build/release'
	@$(PY) -m venv build/release
	@build/release/bin/python -m pip install --quiet --no-deps dist/*.whl
	@# from its folder, so that this one is not imported; what the wheel requires is taken from $(VENV)
	@cd build/release && bin/python -c "$$CHECK_WHEEL" \
	    "$$($(abspath $(PY)) -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"

define CHECK_WHEEL
import sys
from importlib.metadata import version
sys.path.append(sys.argv[1])
import mmseg_coop
from mmengine.hub import get_config
assert mmseg_coop.__file__.startswith(sys.prefix), mmseg_coop.__file__
assert version('mmseg-coop') == mmseg_coop.__version__, version('mmseg-coop')
get_config('mmseg_coop::cross_coop/cross-coop_r18-mnv2-d16-mini_1xb8-200_camvid-128x128.py')
print('make: mmseg-coop', mmseg_coop.__version__, 'imports and finds its configs')
endef
export CHECK_WHEEL

.PHONY: format
format: $(STAMP) ## bring the code into the project's style
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

.PHONY: clean
clean: ## remove what was built, but not the virtual environment
	rm -rf build dist docs/_build *.egg-info mmseg_coop/.mim .mypy_cache .pytest_cache .ruff_cache .coverage*
