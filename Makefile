# Superlink. `make help` says what there is; `make demo` and `make test` need nothing but Python 3.11.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
PROFILE ?= tiny

.PHONY: help setup demo up test test-all bench chaos lint format proto sprites

help: ## Say what each target does
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## Create .venv with everything at the versions of constraints.txt (again: does nothing)
	@echo "Environment ready: $(VENV) (activate it with: source $(BIN)/activate)"

$(INSTALLED): pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
		|| { echo "Superlink needs Python 3.11; '$(PYTHON)' is another version. Try: make setup PYTHON=/path/to/python3.11"; exit 1; }
	@test -x $(BIN)/python || { echo "==> Creating $(VENV)"; "$(PYTHON)" -m venv $(VENV); }
	@echo "==> Installing torch (the largest download; a CPU build is enough)"
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt torch
	@echo "==> Installing Superlink with all its processes and the development tools"
	@$(BIN)/python -m pip install --disable-pip-version-check -c constraints.txt -e ".[all,dev]"
	@touch $@

demo: setup ## Start the stack, ask every tool one question about a sample image, write demo/tour.png, stop
	@$(BIN)/superlink demo --start --profile $(PROFILE) --out demo/tour.png --json demo/answers.json

up: setup ## Start the stack and leave it running until Ctrl-C
	@$(BIN)/superlink up --profile $(PROFILE)

test: setup ## Run the tests, without those marked slow (some eighteen minutes on two cores)
	@echo "==> Running the tests"
	@$(BIN)/python -m pytest -m "not slow and not public_checkpoints"

test-all: setup ## Run every test
	@$(BIN)/python -m pytest

bench: setup ## Measure latency through a running gateway and where the time goes; writes tests/benchmarks/results
	@mkdir -p tests/benchmarks/results
	@$(BIN)/superlink bench latency --profile $(PROFILE) --json tests/benchmarks/results/latency.json

chaos: setup ## Kill, flood, cut off and starve running stacks; prints what held (50 minutes; one: SCENARIO=network)
	@$(BIN)/python -m tests.chaos $(if $(SCENARIO),--scenario $(SCENARIO)) --json runs/chaos.json

lint: setup ## Check style, format and types
	@echo "==> ruff"; $(BIN)/ruff check . && $(BIN)/ruff format --check .
	@echo "==> mypy"; $(BIN)/mypy

format: setup ## Rewrite the code in the project's format
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

proto: setup ## Generate superlink/v1 from protos/
	@PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -Iprotos --python_out=. --grpc_python_out=. \
		--mypy_out=. --mypy_grpc_out=. protos/superlink/v1/*.proto
	@echo "superlink/v1 is generated anew"

sprites: setup ## Fetch the emoji art that training scenes are composed of (not needed to serve)
	@$(BIN)/superlink scenes sprites
