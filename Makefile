# Everything a clean clone needs, given Python >= 3.11 and make.
# `make PYTHON=/path/to/python3.12 test` picks another interpreter.

SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
BIN := $(VENV)/bin
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3 python; do \
	"$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$p"; break; }; \
	done)
# Hashes are checked, so where a file comes from does not matter; nothing outside the locked files is installed.
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-config --no-emit-index-url --no-emit-find-links --no-header --no-annotate pyproject.toml
# Several tests at once; `make test PYTEST_ARGS=tests/unit` runs some, one after the other.
PYTEST_ARGS ?= -n auto --maxprocesses 4 --dist loadgroup
# `make lock UPGRADE=--upgrade` moves every pin to its newest release.
UPGRADE ?=

.PHONY: help demo test faults check format format-check lint types imports spelling locks docs-check docs bench services services-stop lock clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(BIN)/python:
	@test -n "$(PYTHON)" || { echo "make: no Python >= 3.11 with venv and ensurepip found; install one (on Debian also python3-venv) or say make PYTHON=/path/to/python3" >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) is older than 3.11; say make PYTHON=/path/to/a newer one" >&2; exit 1; }
	"$(PYTHON)" -m venv $(VENV)

# One stamp for each locked file; the development set contains the demo set.
$(VENV)/demo.stamp: requirements/demo.txt pyproject.toml | $(BIN)/python
	$(INSTALL) --require-hashes -r requirements/demo.txt
	$(INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/dev.stamp: requirements/dev.txt pyproject.toml | $(BIN)/python
	$(INSTALL) --require-hashes -r requirements/dev.txt
	$(INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@ $(VENV)/demo.stamp

demo: $(VENV)/demo.stamp ## measure two real servers on this machine and compare them
	$(BIN)/weir demo

test: $(VENV)/dev.stamp ## run the whole test suite
	$(BIN)/python -m pytest $(PYTEST_ARGS)

ROUNDS ?= 100
faults: $(VENV)/dev.stamp ## kill, stop and repeat things a hundred times (ROUNDS=N), and count what was lost or charged twice
	$(BIN)/python -m pytest tests/faults --rounds $(ROUNDS)

bench: $(VENV)/dev.stamp ## measure Tokenweir itself: the figures of docs/performance.md
	$(BIN)/python -m benchmarks $(BENCH_ARGS)

services: $(VENV)/dev.stamp ## start PostgreSQL, Redis, RabbitMQ and Kafka on free ports, and print their URLs
	$(BIN)/python -m deploy.services start $(SERVICES_ARGS)

services-stop: $(VENV)/dev.stamp ## end the services that `make services` started
	$(BIN)/python -m deploy.services stop $(SERVICES_ARGS)

check: lint format-check types imports spelling locks docs-check ## run every check that CI runs

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check

format-check: $(VENV)/dev.stamp
	$(BIN)/ruff format --check

types: $(VENV)/dev.stamp
	$(BIN)/pyright

imports: $(VENV)/dev.stamp
	$(BIN)/lint-imports

spelling: $(VENV)/dev.stamp
	$(BIN)/codespell

# Resolving again with the present pins as preferences changes nothing unless pyproject.toml asks for it.
locks: $(VENV)/dev.stamp
	@scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && \
	cp requirements/bench.txt requirements/demo.txt requirements/dev.txt "$$scratch"/ && \
	$(LOCK) --extra bench --extra studio --group build -o "$$scratch/bench.txt" && \
	$(LOCK) --extra demo --group build -o "$$scratch/demo.txt" && \
	$(LOCK) --extra all --group build --group dev -o "$$scratch/dev.txt" && \
	for f in bench demo dev; do diff -u requirements/$$f.txt "$$scratch/$$f.txt" || \
	{ echo "make: requirements/$$f.txt is out of step with pyproject.toml; run make lock" >&2; exit 1; }; done

docs-check: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -q tests/docs

docs: $(VENV)/dev.stamp ## write the reference pages anew from the code
	$(BIN)/python -m tests.docs.reference

format: $(VENV)/dev.stamp ## rewrite the code in the house format
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

# dev.txt first: its pins are preferred by the smaller files, so that all three agree.
lock: | $(BIN)/python ## resolve pyproject.toml into requirements/*.txt
	@test -x $(BIN)/uv || $(INSTALL) uv
	$(LOCK) $(UPGRADE) --extra all --group build --group dev -o requirements/dev.txt
	$(LOCK) --constraint requirements/dev.txt --extra demo --group build -o requirements/demo.txt
	$(LOCK) --constraint requirements/dev.txt --extra bench --extra studio --group build -o requirements/bench.txt

clean: ## remove the virtual environment and caches
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache build dist
