# make demo    the whole pipeline on synthetic data, from scratch to a report
# make test    linters and all tests but the slow ones; what CI runs
# make help    the rest

PYTHON ?= python3.11
VENV ?= .venv
BENCH_VENV ?= .venv-bench
READERS_VENV ?= .venv-readers
BIN := $(VENV)/bin
DEMO ?= demo
DEMO_ROWS ?= 12000
DEMO_SEED ?= 1
# A waiting thread must not occupy the core that another needs (1.9 to 4.9 times, two cores).
export OMP_WAIT_POLICY ?= PASSIVE
# What is installed: what the demo needs, or everything.
DEMO_STAMP := $(VENV)/.installed-demo
STAMP := $(VENV)/.installed
# pip compiles modules on one processor alone: they are compiled afterwards, on all.
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c constraints.txt
# An index of PyTorch wheels, for a lighter PyTorch.
TORCH_INDEX ?=
# A machine with a GPU may have no network: there the Python that has PyTorch will do.
PY ?= $(firstword $(wildcard $(BIN)/python) python3)
GPU_DAY ?= gpu_day

.PHONY: help env demo test lint format docs test-slow test-gpu gpu-day faults coverage sins bench-peers test-readers release clean

help:
	@grep -E '^# make' Makefile | sed 's/^# //'

# An environment is brought up to date when the declaration of its contents changes.
$(STAMP): EXTRAS = train,synth,test,docs,dev
$(DEMO_STAMP): EXTRAS = train,synth
$(STAMP) $(DEMO_STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) is not installed; name another: make PYTHON=python3.12 ..."; exit 1; }
	@echo "Installing into $(VENV): PyTorch and the rest, up to 4 GB to download. Minutes pass without a word."
	$(PYTHON) -m venv $(VENV)
	$(if $(TORCH_INDEX),$(PIP) --no-deps --index-url $(TORCH_INDEX) torch torchvision)
	$(PIP) -e ".[$(EXTRAS)]"
	@$(BIN)/python -m compileall -qq -j 0 $(VENV)/lib || true  # a few packages hold files for other Pythons
	@touch $(DEMO_STAMP) $@

# make env     everything, for developers, in .venv; `make demo` installs what it needs alone
env: $(STAMP)

demo: $(DEMO_STAMP)
	rm -rf $(DEMO)
	$(BIN)/lensprep synth $(DEMO)/phase4c --rows $(DEMO_ROWS) --seed $(DEMO_SEED)
	$(BIN)/lensprep counterfactual $(DEMO)/phase4c $(DEMO)/counterfactuals --share 0.5
	$(BIN)/lensprep check $(DEMO)/phase4c $(DEMO)/counterfactuals
	$(BIN)/lensprep convert $(DEMO)/phase4c $(DEMO)/counterfactuals $(DEMO)/dataset
	$(BIN)/lensprep verify $(DEMO)/dataset --against $(DEMO)/phase4c --against $(DEMO)/counterfactuals
	$(BIN)/lensprep inspect $(DEMO)/dataset --split test --montage $(DEMO)/stamps.png
	$(BIN)/lenstrain train $(DEMO)/dataset --config demo --out $(DEMO)/run \
		--set data.counterfactual_share=0.9 --set train.epochs=2 --set train.monitor=pair_auroc \
		--set 'data.where=label == 0 or theta_e_arcsec >= 0.5 * psfsize_r'
	$(BIN)/lenstrain infer $(DEMO)/run/checkpoints/best.pt $(DEMO)/dataset --split val --out $(DEMO)/val.parquet
	$(BIN)/lenstrain infer $(DEMO)/run/checkpoints/best.pt $(DEMO)/dataset --split test --out $(DEMO)/test.parquet
	$(BIN)/lenstrain evaluate $(DEMO)/test.parquet --calibrate-on $(DEMO)/val.parquet --out $(DEMO)/report
	@echo
	@echo "The stamps:  $(abspath $(DEMO))/stamps.png"
	@echo "The report:  $(abspath $(DEMO))/report/report.html   <- open this in a browser"
	@echo "How to read it, and what comes next: docs/tutorials/first-run.md. The programs: source $(VENV)/bin/activate"

# One thread per worker: two OpenBLAS threads per process make small algebra take 2.7 times as long.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -m "not slow and not gpu and not faults" -n auto --maxprocesses 4 --dist loadfile

# make lint    ruff and mypy --strict
lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# make format  format the code
format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# make docs    generate the reference pages from the code, and the site in site/
docs: $(STAMP)
	$(BIN)/python docs/generate_reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo "The site:  $(CURDIR)/site/index.html. Its search needs a server: python3 -m http.server --directory site"

# make test-slow  the tests that take minutes: kills, long runs, memory
test-slow: $(STAMP)
	$(BIN)/python -m pytest -q -m "slow and not gpu and not faults" --timeout 1800

# make test-gpu  the tests that need a GPU: AMP, compile, transfers, NCCL, waits, memory, scores, bench
test-gpu:
	@$(PY) -c "import sys, torch; sys.exit(not torch.cuda.is_available())" || { echo "$(PY) has no PyTorch that finds a GPU. Check nvidia-smi, or name another: make test-gpu PY=python3."; exit 1; }
	$(PY) -m pytest -q -m gpu tests/gpu -o timeout=1800

# make gpu-day  all that is to be measured on a GPU, in nine minutes, as one table; DRY=1: on a CPU
gpu-day:
	$(PY) -m tests.benchmarks.gpu_day --out $(GPU_DAY) $(if $(WHEELS),--wheels $(WHEELS)) $(if $(DRY),--dry)

# make faults  the long tests of hostile input, unreliable connections and weak machines (45 minutes)
faults: $(STAMP)
	$(BIN)/python -m pytest -q -m faults --timeout 5400

# make coverage  how often intervals, promises and alarms are right on simulated surveys (30 minutes)
coverage: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.study.coverage
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.study.false_alarms --runs 25

# make sins    which faults planted in a run the audit finds (15 minutes)
sins: $(STAMP)
	$(BIN)/python -m tests.study.sins

# make bench-peers  compare other loaders with ours on the same stamps; see docs/benchmarks.md
bench-peers:
	$(PYTHON) -m venv $(BENCH_VENV)
	$(BENCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c tests/benchmarks/constraints.txt -e ".[train,test,bench]"
	$(BENCH_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -c tests/benchmarks/constraints.txt ffcv \
		|| echo "FFCV is left out: building it needs g++, pkg-config, libopencv-dev and libturbojpeg0-dev."
	$(BENCH_VENV)/bin/python -m tests.benchmarks.peers

# make test-readers  read shards with webdataset, tarfile, GNU tar, Hugging Face datasets and Daft
test-readers:  # apart, since Daft wants an older pyarrow than constraints.txt names
	$(PYTHON) -m venv $(READERS_VENV)
	$(READERS_VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e . "daft>=0.7.20" datasets hypothesis pytest pytest-timeout
	$(READERS_VENV)/bin/python -m pytest -q tests/lensprep/dataset/test_readers.py

# make release  wheel, sdist and notes of a commit in dist/, proved with each Python; DRY=1: before it has a date
PYTHONS ?= python3.11 python3.12 python3.13
release: $(STAMP)
	$(BIN)/python -u -m tests.release $(if $(DRY),--dry) $(PYTHONS)

# make clean   remove everything that was built here
clean:
	rm -rf $(VENV) $(BENCH_VENV) $(READERS_VENV) build dist site $(DEMO) .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
