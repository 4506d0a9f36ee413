# Leadwire in a few words: install, demo, up, test, check, docs, bench, chaos. Everything else is `.venv/bin/leadwire --help`.
# `install` needs Python 3.11 or later and nothing else; it runs by itself before the others, and once.

VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
BENCH_STAMP := $(VENV)/.bench-installed
# The first of these that is 3.11 or later makes the environment; name another with `make PYTHON=/path/to/python`.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && echo $$python && break; done)

.DEFAULT_GOAL := help
.PHONY: help install demo up test test-long check docs bench chaos

help: ## Show this list.
	@sed -n 's/^\([a-z]*\):[^#]*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 16

install: $(STAMP) ## Make .venv with every run and test dependency, from the hashed lock file.

$(STAMP): worker/requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { \
		echo "leadwire needs Python 3.11 or later: install it, or name one: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$(PYTHON) is older than Python 3.11: name another: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "$(PYTHON) cannot make virtual environments: install its venv package (Debian: python3-venv)" >&2; exit 1; }
	@echo "Installing into $(VENV) (once, about a minute) ..."
	@"$(PYTHON)" -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r worker/requirements.lock
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(STAMP)

demo: $(STAMP) ## Start it all with sandbox providers and example rules, post signed samples, show what became of them.
	@$(BIN)/leadwire demo

up: $(STAMP) ## Run it: broker, worker, webhook server and Flower under one supervisor (needs LEADWIRE_RULES).
	@$(BIN)/leadwire up

test: $(STAMP) ## Run the tests, several files side by side: most of them wait for processes.
	@$(BIN)/pytest -q -n 5 --dist loadfile --no-loadscope-reorder

test-long: $(STAMP) ## Run the tests that `make test` leaves out.
	@$(BIN)/pytest -q -m long

check: $(STAMP) ## Run the gates: format, lint, types, import contracts, docstrings.
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check --no-cache .
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/interrogate --quiet rules worker ingress console || \
		{ $(BIN)/interrogate -vv rules worker ingress console | grep MISSED >&2; exit 1; }

docs: $(STAMP) ## Write the pages of docs/ that are made from the code: settings, commands, sandbox.
	@$(BIN)/python -m console.reference

# The afternoon's script is served by gunicorn; without a network it is served by waitress, and the table says so.
$(BENCH_STAMP): bench/requirements.txt $(STAMP)
	@if $(BIN)/python -m pip install --quiet --disable-pip-version-check --retries 1 --timeout 10 \
		--require-hashes --no-deps -r bench/requirements.txt; \
		then touch $(BENCH_STAMP); else echo "gunicorn could not be installed: waitress takes its place" >&2; fi

bench: $(BENCH_STAMP) ## Measure it beside a naive Flask and Celery script, in one table: four minutes, or BENCH=--quick.
	@$(BIN)/python -m bench $(BENCH)

chaos: $(STAMP) ## Kill, freeze, fill and empty it for a minute, then prove that nothing was lost or done twice; or CHAOS="--seed 7 --seconds 600".
	@$(BIN)/python -m tests.faults.chaos $(CHAOS)
