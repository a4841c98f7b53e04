# Every target works as the first command on a clean clone: it sets up what it needs.
.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= $(shell for p in python3.12 python3.11 python3.13 python3; do \
	command -v $$p >/dev/null 2>&1 && $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& { echo $$p; break; }; done)
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.set-up
DEMO_ARGS ?=

.PHONY: help
help: ## List every target
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(STAMP) ## Make .venv with the locked dependencies, k2 and faust

# The lock is whole, so nothing is resolved: pip before 24 refuses a package that is asked for with an
# extra as soon as there is a newer release of it than the locked one.
$(STAMP): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "K2 needs Python 3.11 or newer; none was found on PATH" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --no-deps --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation -e .
	@touch $@

.PHONY: demo
demo: setup ## Run the whole platform on this machine: market data in, SQL out
	@$(BIN)/k2 demo $(DEMO_ARGS)

.PHONY: test
test: setup ## Run the tests and print the coverage
	@tools/test.sh -m "not heavy"

.PHONY: test-all
test-all: setup ## Also the slow and heavy tests
	@tools/test.sh

.PHONY: chaos
chaos: setup ## Break a running K2 for 20 minutes, every way there is, and count every record
	$(BIN)/k2 chaos --minutes 20 --seed 1

.PHONY: check
check: setup ## Lint, format check and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

.PHONY: format
format: setup ## Format the code and mend what the linter can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: docs
docs: setup ## Generate the reference pages and dashboards from the code
	$(BIN)/k2 docs docs
	$(BIN)/python tools/dashboards.py

.PHONY: bench
bench: setup ## Run the benchmarks (they need Java for Kafka, or K2_KAFKA_BOOTSTRAP_SERVERS)
	$(BIN)/k2 bench transport
	$(BIN)/k2 bench sink
	$(BIN)/k2 bench pipeline

.PHONY: lock
lock: setup ## Write requirements.lock anew from pyproject.toml
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-header --no-emit-index-url \
		--extra dev --python-version 3.11 --output-file requirements.lock pyproject.toml tools/build.in

.PHONY: clean
clean: ## Remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage*
