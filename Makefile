# The commands people use; `make` or `make help` lists them. Everything happens in .venv.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup test slow check pictures quickstart

help: ## what there is
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## .venv with the package and all that development needs
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -e '.[dev]'

test: ## the tests but for the slow ones
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

slow: ## the slow tests
	$(BIN)/python -m pytest -q -n 2 --dist loadfile -m slow

check: ## lint, format, types, and who may import whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

pictures: ## the drawings that are made from the code: rooms, tree
	$(BIN)/python tools/architecture.py
	$(BIN)/python -m benchmarks.drawing

quickstart: ## the whole path on real text, 14.5 minutes on two quiet cores
	$(BIN)/python -m srpo_jax.quickstart
