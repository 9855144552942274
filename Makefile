# `make help` lists the targets. Everything needed is set up on the way.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := abide agent_api agent_store agent_runtime agent_cli operator/agent_operator

.PHONY: help setup check generate test test-unit test-integration test-e2e up down dev images clean

help: ## List the targets
	@grep -hE '^[a-z][a-z0-9-]*:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  %-18s %s\n", $$1, $$2}'

$(VENV)/.installed: requirements.lock pyproject.toml
	@tools/venv.sh "$(PYTHON)" "$(VENV)"
	@touch $@

setup: $(VENV)/.installed ## Make the Python environment from the lock file

check: setup ## Lint, types, import rules, generated files fresh
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy tools benchmarks tests/cluster
	$(BIN)/lint-imports
	@tools/generate.sh --check

generate: setup ## Rewrite CRDs and everything else that is generated
	@tools/generate.sh

test-unit: setup ## Fast tests (under a minute)
	$(BIN)/pytest tests/unit

test-integration: setup ## Tests on a real Postgres and a real API server
	$(BIN)/pytest tests/integration tests/contract tests/faults

test-e2e: setup ## Tests on a real node
	$(BIN)/pytest tests/e2e

test: check ## All tests, from nothing
	@tools/test.sh

up: setup ## Bring up a cluster, install Abide and an agent that answers
	@$(BIN)/python tools/up.py up

down: setup ## Remove everything `make up` made
	@$(BIN)/python tools/up.py down

dev: setup ## Run the example agent without a cluster
	@$(BIN)/abide dev examples/assistant.yaml

images: setup ## Build the images and load them into the cluster
	@$(BIN)/python -m tests.cluster images

clean: ## Remove the Python environment
	rm -rf $(VENV)
