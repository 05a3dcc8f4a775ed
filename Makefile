# Every target sets up what it needs; a fresh machine needs Python 3.11 or 3.12 and make, nothing else.
SHELL := /bin/bash
VENV := .venv
BIN := $(VENV)/bin

# The first interpreter here that runs and is new enough (a pyenv shim may exist and not run).
ifndef PYTHON
PYTHON := $(shell for p in python3.11 python3.12 python3 python; do \
	$$p -c 'import sys; sys.exit((3, 11) > sys.version_info[:2] or sys.version_info[:2] > (3, 12))' 2>/dev/null \
	&& echo $$p && break; done)
endif

.DEFAULT_GOAL := help
.PHONY: help setup setup-tpu demo test test-slow test-processes test-parity test-browser test-tpu-compile bench-setup lint clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

setup: $(VENV)/.ready ## make .venv with everything the package needs

$(VENV)/.ready: requirements.txt pyproject.toml
	@$(or $(PYTHON),false) -c 'import sys; sys.exit((3, 11) > sys.version_info[:2] or sys.version_info[:2] > (3, 12))' \
		|| { echo "isrdpo_jax needs Python 3.11 or 3.12, and finds $(or $(PYTHON),neither here). Install one, or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -e '.[dev]'
	@touch $@

setup-tpu: $(VENV)/.tpu ## the same, and JAX's TPU support: what tpu_scripts/setup.sh runs on every worker

demo: setup ## five iterations of ISR-DPO, the self-rewarding baseline, and one report of both (10 minutes)
	JAX_PLATFORMS=$${JAX_PLATFORMS-cpu} $(BIN)/isrdpo run configs/shapes.yaml
	JAX_PLATFORMS=$${JAX_PLATFORMS-cpu} $(BIN)/isrdpo run configs/shapes.yaml run.name=shapes_self_rewarding judge.context=none
	$(BIN)/isrdpo report runs/shapes runs/shapes_self_rewarding

test: setup ## all tests that need nothing more, but for those that take minutes each
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -q -m "not slow" -n 2 --dist loadfile

test-slow: setup ## those: runs and sweeps killed at many moments
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -q -m slow

test-processes: setup ## runs of several processes: joined, killed, stopped, resumed
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -q tests/multiprocess

test-parity: $(VENV)/.bench ## against torch and transformers
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -q tests/parity

test-browser: $(VENV)/.browser ## the report, opened from disk in headless Chromium
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -q tests/browser

# Any Chromium will do; CHROMIUM names one that is not on the PATH. Without one, root gets Debian's.
$(VENV)/.browser: $(VENV)/.ready
	@test -n "$$CHROMIUM" || command -v chromium chromium-browser google-chrome google-chrome-stable >/dev/null \
		|| { test "$$(id -u)" = 0 && command -v apt-get >/dev/null \
			&& apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } \
		|| { echo "make test-browser needs Chromium or Chrome. Install one (Debian: sudo apt-get install chromium), or name it: make test-browser CHROMIUM=/path/to/chrome" >&2; exit 1; }
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[browser]'
	@touch $@

bench-setup: $(VENV)/.bench ## what the peers of benchmarks/ need: torch and TRL

$(VENV)/.bench: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[bench]'
	@touch $@

test-tpu-compile: $(VENV)/.tpu ## every device program, compiled for a v5e:4x4 that need not be there
	JAX_PLATFORMS=cpu $(BIN)/python -m pytest -q tests/tpu

# With libtpu in it, JAX looks for a TPU first: on a machine without one, set JAX_PLATFORMS=cpu, as all targets here do.
$(VENV)/.tpu: $(VENV)/.ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[tpu]'
	@touch $@

lint: setup ## ruff, mypy and shellcheck
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/shellcheck tpu_scripts/*.sh

clean: ## remove caches and build products; runs, data and .venv stay
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	find isrdpo_jax tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
