# `make` alone lists the targets. Every target sets up what it needs in .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: help setup demo test test-fast check golden bench docs clean

help: ## List the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $(STAMP)

setup: $(STAMP) ## Make the virtual environment with everything for development

demo: $(STAMP) ## Compile MiniLM with static INT8; print speed-up, accuracy and verdicts
	$(BIN)/python benchmarks/demo.py

test: $(STAMP) ## All tests, two files at a time: in order, for the long ones come first
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test-fast: $(STAMP) ## Tests without real models
	$(BIN)/python -m pytest -m "not slow"

check: $(STAMP) ## Lint, format, layers, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

golden: $(STAMP) ## Rewrite the golden files from what the passes do now
	$(BIN)/python -m pytest tests/golden --update-golden

bench: $(STAMP) ## Compare with the float model and with peers
	$(BIN)/python benchmarks/run.py

docs: $(STAMP) ## Regenerate docs/diagnostics.md and docs/targets
	$(BIN)/python docs/generate.py

clean: ## Remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis
