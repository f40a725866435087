# ratchet: everything a person or the CI does. `make help` lists it.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# the CPU build of torch: found where pip is configured to look, or in the package index named with TORCH_INDEX=
TORCH  := $(shell grep -E '^torch==' requirements-cpu.txt)
TORCH_INDEX ?=
export RATCHET_DEPLOYMENT_CACHE_DIR ?= $(CURDIR)/build/cache
export HF_HUB_OFFLINE = 1
export TOKENIZERS_PARALLELISM = false
# every process here imports thousands of modules: their bytecode is kept, even where a shell says not to
unexport PYTHONDONTWRITEBYTECODE
# threads that wait for one another sleep instead of spinning: tests start many processes on few cores
export OMP_WAIT_POLICY = PASSIVE

SERVICES := vllm or kafka or browser or postgres
SLOW := slow or $(SERVICES)

.PHONY: help install base demo up unit test check lint types contracts docs bench lock clean

help: ## what can be made
	@grep -hE '^[a-z%-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | awk -F'\t' '{printf "  make %-12s %s\n", $$1, $$2}'

$(VENV)/.installed: requirements-cpu.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "ratchet needs Python 3.11 or 3.12 as '$(PYTHON)' (or make PYTHON=...)" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' || { echo "ratchet needs Python 3.11 or 3.12, $(PYTHON) is $$($(PYTHON) -V)" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing the pinned packages into $(VENV) (two to four minutes, the first time only)"
	@$(BIN)/pip install --disable-pip-version-check --no-deps --no-compile -q $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) $(TORCH) \
		|| { echo "pip finds no $(TORCH) here: take the address of the CPU package index from PyTorch's own installation guide," \
			"and run: make TORCH_INDEX=ADDRESS" >&2; exit 2; }
	@$(BIN)/python .ci/install requirements-cpu.txt
	@$(BIN)/pip install --disable-pip-version-check --no-deps -q --no-build-isolation -e .
	@touch $@

install: $(VENV)/.installed ## the environment, from the pinned CPU lock

base: install ## the embedded base model (once, cached in build/cache)
	@$(BIN)/ratchet learn base

demo: base ## start everything, turn the loop, show that the assistant got better
	@$(BIN)/ratchet demo

up: base ## start the service and stay up
	@$(BIN)/ratchet up

unit: install ## the quick tests: no engine, no broker, no browser
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -q -m "not ($(SLOW))" --timeout 120 -n 2 --dist worksteal

test: unit base ## every test, with real vLLM, Kafka, PostgreSQL and Chromium where they are installed
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests -m "slow and not ($(SERVICES))" -n 2 --dist loadfile
	@$(BIN)/python -m pytest tests -m "$(SERVICES)"

lint: install
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

types: install
	@$(BIN)/mypy

contracts: install
	@$(BIN)/lint-imports

check: lint types contracts test ## exactly what CI runs

docs: install ## write the generated pages (configuration, events, metrics, commands, signals)
	@$(BIN)/python -m tests.reference && $(BIN)/python -m tests.signals_page

bench: install ## every benchmark
	@$(BIN)/python -m tests.benchmarks

bench-%: install ## one benchmark, for example bench-log
	@$(BIN)/python -m tests.benchmarks $*

lock: ## resolve the pinned locks anew
	@.ci/lock

clean: ## remove what was built (build/), but neither the environment nor a service's data
	@rm -rf build
