# `make quickstart` runs all steps of the main job, `make test` the checks. Both first install into .venv what is missing.
BIN := .venv/bin
DONE := .venv/.done
PYTEST := $(BIN)/pytest --numprocesses=auto --maxprocesses=8 --dist=loadfile --no-loadscope-reorder -rs --no-fold-skipped

# OpenMP threads that spin while they wait starve every other process: a 470 ms step took 3,300 ms beside one on two cores.
export OMP_WAIT_POLICY := PASSIVE
export GOMP_SPINCOUNT := 0
# Tests start many processes. Without bytecode on disk each of them compiles every module again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: install test test-processes test-long quickstart docs wheel clean
.NOTPARALLEL:
.DEFAULT_GOAL := install

install: $(DONE)/packages $(DONE)/ffcv $(DONE)/dali

test: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@echo "$(BIN)/mypy, beside the tests"; $(BIN)/mypy >.venv/mypy.log 2>&1 & types=$$!; \
	$(PYTEST) --durations=15; tests=$$?; wait $$types; types=$$?; cat .venv/mypy.log; exit $$((tests | types))

# The long tests of several processes: every kind of step, kills, lost machines, SLURM. 20 minutes on two quiet cores.
test-processes: install
	UDKD_LONG_TESTS=1 $(PYTEST) -m long --durations=15 tests/benchmarks/test_ranks.py tests/study/test_submit.py \
		$(addprefix tests/training/test_,processes.py slices.py torchrun.py with_processes.py)

# Adds the variants that `make test` skips as long, and new random examples, for as long as that takes.
test-long: install
	UDKD_LONG_TESTS=1 $(PYTEST) --hypothesis-profile=long

quickstart: install
	$(BIN)/udkd quickstart

# The documentation as a site: site/index.html.
docs: $(DONE)/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html; with search: $(BIN)/python -m http.server --directory site"

# The sdist, and the wheel made from it: dist/.
wheel: $(DONE)/packages
	rm -rf dist
	$(BIN)/python -m build --no-isolation >.venv/wheel.log 2>&1 || { cat .venv/wheel.log; exit 1; }
	$(BIN)/twine check --strict dist/*

clean:
	rm -rf .venv build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find udkd data_prep benchmarks tests -name __pycache__ -prune -exec rm -rf {} +

$(DONE)/venv:
	@scripts/install.sh venv

$(DONE)/packages: $(DONE)/venv pyproject.toml constraints.txt
	@scripts/install.sh packages

$(DONE)/docs $(DONE)/ffcv $(DONE)/dali: $(DONE)/packages
	@scripts/install.sh $(@F)
