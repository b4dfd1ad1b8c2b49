# What a person types; `make help` lists it.
PYTHON ?= python3
SECONDS ?=
COUNT ?=
BIN := .venv/bin

.PHONY: help setup install demo bench test stress fuzz soak lint lock clean

help:  ## Say what there is
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: .venv/.installed  ## Make the environment in .venv

# uv comes from the registry into its own small environment when the machine has none.
.venv/.installed: requirements.txt pyproject.toml
	@echo "making the environment in .venv, once: torch and all the rest, 6.5 GB on disk"
	@set -e; \
	if command -v uv >/dev/null 2>&1; then UV=uv; else \
	  $(PYTHON) -m venv .venv-uv >/dev/null 2>&1 || { $(PYTHON) -m pip install --user --quiet --break-system-packages uv; }; \
	  if [ -x .venv-uv/bin/pip ]; then .venv-uv/bin/pip install --quiet uv; UV=.venv-uv/bin/uv; else UV="$$($(PYTHON) -m site --user-base)/bin/uv"; fi; \
	fi; \
	[ -x $(BIN)/python ] || $$UV venv --quiet --python $(PYTHON) .venv; \
	$$UV pip install --quiet --python $(BIN)/python --require-hashes --compile-bytecode -r requirements.txt; \
	$$UV pip install --quiet --python $(BIN)/python --no-deps -e .
	@touch $@

demo: setup  ## See it work: real video, detections, events, metrics
	$(BIN)/streamdet demo $(if $(SECONDS),--seconds $(SECONDS))

install:  ## Install the system service, as root; INSTALL_ARGS=--dry-run says what it would do
	@[ -x $(BIN)/streamdet ] || { echo "make setup first: it makes the environment that the service runs in"; exit 1; }
	$(BIN)/streamdet install-service $(INSTALL_ARGS)

bench: setup  ## Measure the detector, the daemon and this machine: three minutes
	$(BIN)/streamdet bench $(if $(SECONDS),--seconds $(SECONDS)) $(BENCH_ARGS)

test: setup  ## Pass the tests
	$(BIN)/pytest -n auto --maxprocesses 4 $(PYTEST_ARGS)

stress: setup  ## Run the races of the tests a thousand times
	STREAMDET_STRESS_ROUNDS=$(or $(COUNT),1000) $(BIN)/pytest -m stress --timeout 3600 -rA $(PYTEST_ARGS)

fuzz: setup  ## Read a million broken inputs: events, requests, answers, configurations
	$(BIN)/python tests/fuzzing.py --count $(or $(COUNT),1000000)

soak: setup  ## Let the daemon run among faults for SECONDS (1200), draw how it went, fail where it did not hold
	PYTHONPATH=tests $(BIN)/python benchmarks/soak --seconds $(or $(SECONDS),1200) $(SOAK_ARGS)

lint: setup  ## Style, types and import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

lock:  ## Choose the newest versions and pin them with hashes
	uv pip compile pyproject.toml --all-extras --group dev --universal --python-version 3.11 \
	  --generate-hashes --no-emit-index-url --no-header --no-annotate --upgrade --quiet -o requirements.txt

clean:  ## Delete what make made
	rm -rf .venv .venv-uv
