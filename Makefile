# Two commands matter: `make demo` and `make test`. Both set up .venv first and only once.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# The tests are many small processes; more torch threads than cores slow all of them.
TEST_JOBS ?= 2

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("adapterhub needs Python 3.11 or newer, found " + sys.version.split()[0] if sys.version_info < (3, 11) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	# torch first: left to choose, pip takes the CUDA build and gigabytes of libraries. GPU=1 lets it.
	$(if $(GPU),,$(BIN)/pip install --quiet --requirement constraints.txt)
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@

.PHONY: setup demo test check lint types gpu bench measure serve clean help client-adapters client-vllm client-sglang client-openai clients compat kinds methods

setup: $(READY)  ## make .venv and install everything into it

demo: $(READY)  ## train small models, push, merge, port, serve and measure them (under four minutes)
	@$(BIN)/adapterhub demo

test: $(READY)  ## all fast tests; no network, GPU or root needed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadgroup -m "not slow" $(PYTEST_ARGS)

# libraries that cannot live beside our pins, each in an environment of its own; tests that find none skip
CLIENTS := .venv-clients
OLDER := 1.33 0.36
WITHOUT_TORCH := $(OLDER) openai
$(CLIENTS)/%/.ready: tests/clients/environments/%.txt constraints.txt
	$(PYTHON) -m venv --clear $(@D)
	$(@D)/bin/pip install --quiet $(if $(filter $(WITHOUT_TORCH),$(*)),,--requirement constraints.txt) --requirement $<
	$(if $(wildcard $(<:.txt=.alone.txt)),$(@D)/bin/pip install --quiet --no-deps --requirement $(<:.txt=.alone.txt))
	touch $@

client-adapters: $(CLIENTS)/adapters/.ready  ## AdapterHub's library, for its test (1 GB)

client-vllm: $(CLIENTS)/vllm/.ready  ## vLLM's LoRA loader, for its test (3 GB)

client-sglang: $(CLIENTS)/sglang/.ready  ## SGLang's LoRA manager and memory pool, for its test (3 GB)

client-openai: $(CLIENTS)/openai/.ready  ## LangChain, LiteLLM and llm, for their test (450 MB)

clients: $(OLDER:%=$(CLIENTS)/%/.ready)  ## older versions of huggingface_hub, for the matrix of client tests (100 MB)

check: lint types test  ## what every commit must pass

lint: $(READY)  ## style, and which package may import which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache

types: $(READY)  ## mypy, strict
	$(BIN)/mypy src/adapterhub tests

# what folds and runs of every kind came to is written down while the tests run, and the page is made of that
kinds: $(READY)  ## fold and run every kind of patch and write docs/kinds.md (five minutes)
	rm -f build/exactness.jsonl && mkdir -p build
	AHTEST_EXACTNESS=$(CURDIR)/build/exactness.jsonl OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(TEST_JOBS) tests/merging
	$(BIN)/python -m tests.merging.exactness.table build/exactness.jsonl

# what merging whole models came to is written down while the tests run, and the page is made of that
methods: $(READY)  ## merge whole models by every method and write docs/merge-methods.md (ten minutes)
	rm -f build/methods-exactness.jsonl && mkdir -p build
	AHTEST_EXACTNESS=$(CURDIR)/build/methods-exactness.jsonl OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(TEST_JOBS) tests/merging/methods tests/merging/training
	$(BIN)/python -m tests.merging.methods.table build/methods-exactness.jsonl

# what the clients did is written down while the tests run, and the page is made of that
compat: $(READY) clients  ## run every version of the client and write docs/compatibility.md (two minutes)
	rm -f build/methods.jsonl && mkdir -p build
	AHTEST_RECORD=$(CURDIR)/build/methods.jsonl OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n $(TEST_JOBS) -m every_client tests/clients
	$(BIN)/python -m tests.clients.compatibility build/methods.jsonl

gpu: $(READY)  ## the tests that need a CUDA device, and the benchmarks on it
	$(BIN)/python -m pytest -q tests/gpu
	$(BIN)/python benchmarks/gpu_merge.py
	$(BIN)/python benchmarks/gpu_serving.py

bench: $(READY)  ## ratios to a named peer or floor, measured in the same run
	@for b in benchmarks/*.py; do echo "== $$b"; $(BIN)/python $$b || exit 1; done

measure: $(READY)  ## sizes of functions, files and commits beside where we want them
	@$(BIN)/python tests/measure.py

serve: $(READY)  ## start the hub on 127.0.0.1:8000
	@$(BIN)/adapterhub serve

clean:  ## remove what was built, the environment too
	rm -rf $(VENV) $(CLIENTS) build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' Makefile
