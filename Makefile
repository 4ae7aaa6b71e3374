# make run, make test: from a fresh clone to a running service or a full test run.
# They need python3 (3.11 or newer, with venv) and nothing else; what they install stays in .venv.

PYTHON ?= python3
UV ?= uv
VENV := .venv
BIN := $(VENV)/bin
# Each has servers of its own; a file's tests stay together, and share what they start. Two cores carry three: they wait a lot.
TEST_PROCESSES ?= 3
PIP := PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip -qq --no-input
# Hashed mode refuses whatever the lock does not name; the project itself follows, with nothing to resolve.
INSTALL_PROJECT := $(PIP) install --no-deps --no-build-isolation --editable .
LOCK := $(UV) pip compile pyproject.toml --quiet --universal --python-version 3.11 --generate-hashes \
        --no-emit-index-url --no-annotate --custom-compile-command "make lock" $(LOCK_ARGS)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test test-faults javascript lint lint-k8s format lock clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

run: $(VENV)/.ready-to-run ## set up and serve on port 8080, with embedded stores
	@exec $(BIN)/authsvc dev

test: $(VENV)/.ready-to-test ## set up and run every test (ARGS="-k login" for some)
	@$(BIN)/python -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder $(ARGS)

test-faults: $(VENV)/.ready-to-test ## break everything, for longer, under load, and print a table (a quarter of an hour)
	@$(BIN)/python -m pytest --faults=all tests/fault $(ARGS)

javascript: $(VENV)/javascript/.ready ## set up what the tests of docs/verify-in-other-languages.md need (npm)

lint: $(VENV)/.ready-to-test ## check style, types and import arrows
	@$(BIN)/ruff check --output-format concise .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@PYTHONPATH=. $(BIN)/lint-imports --no-logo

lint-k8s: $(VENV)/.ready-to-lint-k8s ## check the Kubernetes overlays against the schemas, and the Dockerfile
	@set -e; for overlay in k8s/overlays/*; do \
	  $(BIN)/python -m tests.manifests $$overlay > $(VENV)/manifest.yaml; \
	  echo "$$overlay: $$(grep -c '^kind:' $(VENV)/manifest.yaml) objects"; \
	  $(BIN)/kubernetes-validate --strict --quiet $(VENV)/manifest.yaml; \
	  $(BIN)/authsvc config check --manifest $(VENV)/manifest.yaml; \
	done
	@$(BIN)/hadolint Dockerfile

format: $(VENV)/.ready-to-test ## sort imports and format the code
	@$(BIN)/ruff check --quiet --select I --fix .
	@$(BIN)/ruff format .

# The largest set first: the others take its versions, so that one .venv serves both run and test.
lock: ## renew requirements/*.txt; needs uv (LOCK_ARGS=--upgrade takes newer versions)
	@command -v $(UV) >/dev/null || { echo "make lock needs uv: python3 -m pip install uv" >&2; exit 1; }
	@$(LOCK) --extra test --extra speed --group build --output-file requirements/test.txt
	@$(LOCK) --extra dev --extra speed --group build --constraint requirements/test.txt --output-file requirements/dev.txt
	@$(LOCK) --extra speed --constraint requirements/test.txt --output-file requirements/prod.txt
	@$(LOCK) --extra k8s --constraint requirements/test.txt --output-file requirements/k8s.txt
	@$(LOCK) --extra speed --extra otel --constraint requirements/test.txt --output-file requirements/otel.txt

clean: ## remove what these commands made
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find authsvc tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.ready-to-run: requirements/dev.txt pyproject.toml | $(VENV)/.made
	@echo "Installing what the service needs into $(VENV) ..."
	@$(PIP) install --require-hashes --requirement requirements/dev.txt
	@$(INSTALL_PROJECT)
	@touch $@

$(VENV)/.ready-to-test: requirements/test.txt pyproject.toml | $(VENV)/.made
	@echo "Installing what the service and its tests need into $(VENV) ..."
	@$(PIP) install --require-hashes --requirement requirements/test.txt
	@$(INSTALL_PROJECT)
	@touch $@

$(VENV)/javascript/.ready: tests/javascript/package.json tests/javascript/package-lock.json | $(VENV)/.made
	@mkdir -p $(@D)
	@cp $^ $(@D)
	@npm ci --prefix $(@D) --ignore-scripts --no-audit --no-fund --silent
	@touch $@

# Schemas of 108 MB: not for everybody who runs the tests.
$(VENV)/.ready-to-lint-k8s: requirements/k8s.txt | $(VENV)/.ready-to-test
	@echo "Installing what checks the Kubernetes manifests into $(VENV) ..."
	@$(PIP) install --require-hashes --requirement requirements/k8s.txt
	@touch $@

# Asked before anything is made: without ensurepip, venv fails half-way and leaves a folder that looks complete.
$(VENV)/.made:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "authsvc needs Python 3.11 or newer; there is no $(PYTHON). Debian, Ubuntu: apt install python3 python3-venv" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "authsvc needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) has no venv. Debian, Ubuntu: apt install python3-venv" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@
