# `make serve` and `make test` each set up what they need on a fresh clone, once.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PACKAGES := protos cache_service workers cluster
# How many docstrings may be no sentences.
MAX_CLAUSES := 0
# How many processes share the unit and contract tests.
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
MODEL ?=
ARGS ?=

PARALLEL := -n $(JOBS) --dist worksteal
# $(call run_tests,MARKS) runs the unit and contract tests in parallel, then the others one after the other. pytest exits
# with 5 if ARGS selects none of its tests, which is an error only if both halves do.
define run_tests
	@$(BIN)/pytest $(PARALLEL) -o testpaths="tests/unit tests/contract" -m "not serial$(1)" $(ARGS); parallel=$$?; \
	case $$parallel in 0 | 5) ;; *) exit $$parallel ;; esac; \
	$(BIN)/pytest -o testpaths="tests/e2e tests/faults tests/gpu" -m "serial$(1)" $(ARGS); serial=$$?; \
	[ $$serial -ne 5 ] || exit $$parallel; exit $$serial
endef

.DEFAULT_GOAL := help
.PHONY: help setup serve unit test system mutation lint type protos manifests docs bench charts clean

help: ## Show this help
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

setup: $(VENV)/.ready ## Make the virtual environment (done once; done again when the pins change)

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' || \
		{ echo "Palimpsest needs Python 3.11 or 3.12; name one with: make PYTHON=python3.12 ..."; exit 1; }
	@echo "Installing Palimpsest into $(VENV): about two minutes and 2.5 GB, once."
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch -e '.[dev]'
	@touch $@

serve: setup ## Start the whole system: make serve [MODEL=DIR] [ARGS="--replicas 1"]
	@exec $(BIN)/palimpsest serve $(if $(MODEL),--model $(MODEL)) $(ARGS)

unit: setup ## The unit tests alone, 3 minutes on two cores: make unit [ARGS="-k scheduler"]
	$(BIN)/pytest $(PARALLEL) -o testpaths=tests/unit -m "not serial" $(ARGS)

test: lint type ## Lint, types, unit and contract tests, short system tests: 10 minutes [ARGS="-k scheduler"]
	$(call run_tests, and not system)

system: setup ## Every test, with all of the system tests and injected faults: an hour at most [ARGS="-k e2e"]
	$(call run_tests)

mutation: setup ## Do tests notice changes of the cache service's core? Up to half an hour; continues where it stopped
	$(BIN)/python -m tools.mutation $(ARGS)

lint: setup ## ruff, import contracts, declared dependencies, docstrings that are sentences
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/deptry $(PACKAGES)
	$(BIN)/python -m tools.check_docstrings --max $(MAX_CLAUSES) $(PACKAGES) deploy tools

type: setup ## mypy --strict on the four packages, deploy and tools
	$(BIN)/mypy

protos: setup ## Regenerate the committed gRPC code
	$(BIN)/python -m grpc_tools.protoc -I. --python_out=. --pyi_out=. --grpc_python_out=. protos/*.proto

manifests: setup ## Regenerate each overlay's serveConfigV2 from deploy/palimpsest.yaml
	$(BIN)/python -m deploy.manifests

docs: setup ## Generate docs/configuration.md from the code
	$(BIN)/python -m tools.configuration

bench: setup ## Quick benchmarks, as tables
	$(BIN)/python -m benchmarks.fidelity --quick
	$(BIN)/python -m benchmarks.engine --quick
	$(BIN)/python -m benchmarks.step_profile --quick
	$(BIN)/python -m benchmarks.cache_service --quick
	$(BIN)/python -m benchmarks.transfer --quick
	$(BIN)/python -m benchmarks.stack --quick

charts: setup ## Draw docs/charts again from benchmarks/results
	$(BIN)/python -m benchmarks.charts

clean: ## Remove everything that make made
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
