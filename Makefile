# One command each. SDK work happens in .venv; the model pipeline, which needs torch, in .venv-build.
PYTHON ?= python3
VENV := .venv
BUILD := .venv-build
OPTIMUM := .venv-optimum
BENCH := .venv-bench
# What the benchmark compares with; what can't be installed is a row that says so.
PEERS := "onnxruntime-genai>=0.18" "openvino>=2026.4" "llama-cpp-python>=0.3.36"
SOURCES := src tests examples model_build integrations

INTEGRATIONS := $(patsubst integrations/%/pyproject.toml,%,$(wildcard integrations/*/pyproject.toml))

.PHONY: help install format lint typecheck test docs check bench \
	install-build typecheck-build test-build check-build test-optimum \
	check-integrations $(INTEGRATIONS:%=check-%)

help:  ## list the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 18

install: $(VENV)/installed  ## make .venv with the SDK and all tools
install-build: $(BUILD)/installed  ## make .venv-build with the model pipeline and torch

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --upgrade "pip>=25.1"
	$(VENV)/bin/pip install --quiet --editable . --group dev
	touch $@

$(BUILD)/installed: pyproject.toml model_build/pyproject.toml
	$(PYTHON) -m venv $(BUILD)
	$(BUILD)/bin/pip install --quiet --upgrade "pip>=25.1"
	$(BUILD)/bin/pip install --quiet torch==2.13.0
	$(BUILD)/bin/pip install --quiet --editable . --editable model_build \
		--group dev --group model_build/pyproject.toml:test
	touch $@

$(OPTIMUM)/installed: pyproject.toml model_build/pyproject.toml
	$(PYTHON) -m venv $(OPTIMUM)
	$(OPTIMUM)/bin/pip install --quiet --upgrade "pip>=25.1"
	$(OPTIMUM)/bin/pip install --quiet torch==2.13.0
	$(OPTIMUM)/bin/pip install --quiet --editable . --editable "model_build[optimum]" \
		--group model_build/pyproject.toml:test
	touch $@

$(BENCH)/installed: pyproject.toml model_build/pyproject.toml
	$(PYTHON) -m venv $(BENCH)
	$(BENCH)/bin/pip install --quiet --upgrade "pip>=25.1"
	$(BENCH)/bin/pip install --quiet torch==2.13.0
	$(BENCH)/bin/pip install --quiet --editable . --editable model_build
	for peer in $(PEERS); do \
		CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF" $(BENCH)/bin/pip install --quiet $$peer \
			|| echo "$$peer can't be installed: the benchmark will say so."; \
	done
	touch $@

format: install  ## rewrite the sources in the house format
	$(VENV)/bin/ruff check --fix-only --quiet $(SOURCES)
	$(VENV)/bin/ruff format $(SOURCES)

lint: install  ## ruff, and the import layers
	$(VENV)/bin/ruff format --check $(SOURCES)
	$(VENV)/bin/ruff check $(SOURCES)
	$(VENV)/bin/lint-imports --no-cache

typecheck: install  ## pyright, strict, on the SDK, its tests and the examples
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

test: install  ## the SDK's tests
	$(VENV)/bin/pytest

docs: install  ## build the documentation into site/
	$(VENV)/bin/pip install --quiet --group docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --strict --quiet --config-file docs/config/mkdocs.yml

check: lint typecheck test  ## everything a change must pass, but for the pipeline

bench: $(BENCH)/installed  ## measure against other runtimes; ARGS=--quick, ARGS=--help
	$(BENCH)/bin/python tests/bench $(ARGS)

typecheck-build: install-build  ## pyright, strict, on the pipeline
	$(BUILD)/bin/pyright --project model_build --pythonpath $(BUILD)/bin/python

test-build: install-build  ## the pipeline's tests, on tiny random models
	cd model_build && ../$(BUILD)/bin/pytest

check-build: typecheck-build test-build  ## everything a change of the pipeline must pass

test-optimum: $(OPTIMUM)/installed  ## optimum loads the exported file: an environment of its own
	cd model_build && ../$(OPTIMUM)/bin/pytest -m optimum

# Each integration has an environment of its own: frameworks disagree about what they need.
.venv-%/installed: pyproject.toml integrations/%/pyproject.toml
	$(PYTHON) -m venv .venv-$*
	.venv-$*/bin/pip install --quiet --upgrade "pip>=25.1"
	.venv-$*/bin/pip install --quiet --editable . --editable integrations/$* \
		--group dev --group integrations/$*/pyproject.toml:test
	touch $@

$(INTEGRATIONS:%=check-%): check-%: .venv-%/installed
	.venv-$*/bin/pyright --project integrations/$* --pythonpath .venv-$*/bin/python
	cd integrations/$* && ../../.venv-$*/bin/pytest

check-integrations: $(INTEGRATIONS:%=check-%)  ## types and tests of every integration
