# `make quickstart` runs the main job, `make test` the checks; both set up .venv first, each part of it once.
VENV := .venv
BIN := $(VENV)/bin
DONE := $(VENV)/.done
PYTEST := $(BIN)/pytest --numprocesses=auto --maxprocesses=8 --dist=loadfile --no-loadscope-reorder -rs --no-fold-skipped
PIP := $(BIN)/python -m pip -qq install --constraint constraints.txt

# OpenMP threads that spin while they wait starve every other process: a 470 ms step took 3,300 ms beside one on two cores.
export OMP_WAIT_POLICY := PASSIVE
export GOMP_SPINCOUNT := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore
export DEBIAN_FRONTEND := noninteractive

# The first Python that every pinned package has a build for, else any newer one. Evaluated only when .venv is made.
PYTHON ?= $(shell for newest in 13 99; do for python in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$python -c "import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, $$newest))" 2>/dev/null && echo $$python && exit; \
	done; done)
# Installs Debian packages where that needs no password, and fails at once where it does.
APT = apt() { \
	command -v apt-get >/dev/null || return 1; \
	if [ "$$(id -u)" = 0 ]; then sudo=; elif sudo -n true 2>/dev/null; then sudo="sudo -n"; else return 1; fi; \
	echo "Installing with apt-get: $$*"; \
	{ $$sudo apt-get -qq install -y --no-install-recommends "$$@" \
		|| { $$sudo apt-get -qq update && $$sudo apt-get -qq install -y --no-install-recommends "$$@"; }; } >/dev/null 2>&1; }
HEADERS := g++ pkg-config libopencv-dev libturbojpeg0-dev

.PHONY: install test test-long quickstart docs clean
.NOTPARALLEL:
.DEFAULT_GOAL := install

install: $(DONE)/packages $(DONE)/ffcv $(DONE)/dali

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@echo "$(BIN)/mypy, beside the tests"; $(BIN)/mypy >$(VENV)/mypy.log 2>&1 & types=$$!; \
	$(PYTEST) --durations=15; tests=$$?; wait $$types; types=$$?; cat $(VENV)/mypy.log; exit $$((tests | types))

# The variants that `make test` names as long, and examples drawn anew, for as long as that takes.
test-long: install
	UDKD_LONG_TESTS=1 $(PYTEST) --hypothesis-profile=long

quickstart: install
	$(BIN)/udkd quickstart

# The documentation as a site: site/index.html.
docs: $(DONE)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html; with search: $(BIN)/python -m http.server --directory site"

clean:
	rm -rf $(VENV) build site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find udkd data_prep benchmarks tests -name __pycache__ -prune -exec rm -rf {} +

$(DONE)/venv:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11 or newer found; install one (Debian, Ubuntu: apt-get install python3 python3-venv) \
	or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(APT); $(PYTHON) -c "import ensurepip, venv" 2>/dev/null || { \
		version=$$($(PYTHON) -c "import sys; print('python%d.%d' % sys.version_info[:2])"); apt $$version-venv || { \
		echo "error: $$version cannot make virtual environments; run: apt-get install $$version-venv" >&2; exit 1; }; }
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) pip
	@mkdir -p $(@D) && touch $@

$(DONE)/packages: $(DONE)/venv pyproject.toml constraints.txt
	@echo "Installing the Python packages into $(VENV) (PyTorch alone is a few gigabytes; minutes, once)"
	@$(PIP) --editable ".[dev,tensorboard]"
	@touch $@

$(DONE)/docs: $(DONE)/packages
	@$(PIP) --editable ".[docs]"
	@touch $@

# FFCV is compiled here. Where it cannot be, everything else works: no mark is left, so that the next call tries again.
$(DONE)/ffcv: $(DONE)/packages
	@$(APT); \
	python_h() { $(BIN)/python -c "import os, sysconfig; raise SystemExit(not os.path.exists(sysconfig.get_path('include') + '/Python.h'))"; }; \
	headers() { command -v g++ >/dev/null && pkg-config --exists opencv4 libturbojpeg 2>/dev/null && python_h; }; \
	needs="$(HEADERS)"; \
	python_h || needs="$$needs $$($(BIN)/python -c "import sys; print('python%d.%d-dev' % sys.version_info[:2])")"; \
	headers || apt $$needs; \
	if ! headers; then echo "The FFCV backend is off, all others work; to have it: apt-get install $$needs; make install"; \
	elif echo "Building FFCV" && $(PIP) --editable ".[ffcv]" >$(VENV)/ffcv.log 2>&1 && $(BIN)/python -c "import ffcv" >>$(VENV)/ffcv.log 2>&1; \
	then touch $@; \
	else echo "The FFCV backend is off, all others work: its build failed (see $(VENV)/ffcv.log)"; fi

# DALI comes as one wheel for each CUDA; both hold the same package, so only one can be installed.
$(DONE)/dali: $(DONE)/packages
	@cuda=$$($(BIN)/python -c "import torch; print('12' if (torch.version.cuda or '').startswith('12.') else '13')"); \
	echo "Installing DALI for CUDA $$cuda"; \
	if $(PIP) --editable ".[dali-cuda$$cuda]" >$(VENV)/dali.log 2>&1; then touch $@; \
	else echo "The DALI backend is off, all others work: it could not be installed (see $(VENV)/dali.log)"; fi
