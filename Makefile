# Needs Python 3.11 or newer with venv, make and a network; everything else comes from the lock files.
PYTHON ?= python3
SOAK_SECONDS ?= 600
FUZZ ?= 10
VENV := .venv
BIN := $(VENV)/bin
FUZZED := tests/api/test_schemathesis.py tests/api/test_hostile_requests.py tests/link/test_people_at_random.py \
	tests/callers/test_user_tokens.py tests/framing/test_property.py
LOCK := $(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url --no-annotate --no-header --python-version 3.11

.DEFAULT_GOAL := help
.PHONY: help setup run test faults fuzz soak mutants bench lint format lock openapi clean

help: ## Show the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(VENV)/.run: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed, this is " + sys.version) if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-build-isolation --no-deps -e .
	@touch $@

$(VENV)/.dev: requirements-dev.lock $(VENV)/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock
	@touch $@

setup: $(VENV)/.dev ## Make .venv from the lock files

run: $(VENV)/.run ## Serve with the embedded store and the sandbox upstream on http://127.0.0.1:8000
	$(BIN)/omniconnect-bff sandbox

lint: $(VENV)/.dev ## Format check, lint, types and import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports

test: lint ## Everything: lint, types, contracts and all tests
	$(BIN)/python -m pytest $(if $(CI),-p tests.no_skips)

faults: $(VENV)/.dev ## Fault tests of full size; RUNS=30 is how many masters are killed in a storm of links
	FAULT_ROUNDS=1600 FAULT_POINTS=all FAULT_RUNS=$(or $(RUNS),30) ROTATION_ROUNDS=10 $(BIN)/python -m pytest -n 0 tests/faults tests/link/test_link_random.py tests/upstream/test_hostile_answers.py

soak: $(VENV)/.dev ## Let people come and go for SOAK_SECONDS (600), and see that nothing grows
	$(BIN)/python -m tests.soak --seconds $(SOAK_SECONDS)

fuzz: $(VENV)/.dev ## Generate so many times more callers than the tests do: FUZZ=10
	FUZZ=$(FUZZ) $(BIN)/python -m pytest -n 0 $(FUZZED)

mutants: $(VENV)/.dev ## Break the code in small ways, and demand that tests see it; MODULE=... for one module, or checks
	$(BIN)/python -m tests.mutants $(MODULE)

bench: $(VENV)/.dev ## Measure beside the peers, and write tests/load/results.json
	$(BIN)/python -m tests.load

format: $(VENV)/.dev ## Format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

openapi: $(VENV)/.dev ## Write openapi/openapi.json anew
	$(BIN)/omniconnect-bff openapi > openapi/openapi.json

lock: $(VENV)/.dev ## Resolve the dependencies anew
	$(LOCK) --upgrade --extra build pyproject.toml -o requirements.lock
	$(LOCK) --upgrade --extra build --extra dev -c requirements.lock pyproject.toml -o requirements-dev.lock

clean: ## Remove what was made
	rm -rf $(VENV) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
