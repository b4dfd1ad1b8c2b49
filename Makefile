# The commands for developers; `make help` lists them.
PYTHON ?= python3
# The environment. Another folder beside it lets a second Python be tried: make test PYTHON=python3.13 VENV=.venv-3.13
VENV ?= .venv
# What the environment holds; the choice stays until another one is made. CPU=1 leaves NVIDIA's libraries out, 4 GB of
# 6; EXTRAS are those of pyproject.toml.
-include $(VENV)/choice.mk
CPU ?= $(or $(LAST_CPU),$(if $(wildcard /proc/driver/nvidia/version),0,1))
EXTRAS ?= $(or $(LAST_EXTRAS),openvino mqtt)
SECONDS ?=
COUNT ?=
BIN := $(VENV)/bin
TOOLS := .venv-tools
# 20 s of CPU once, instead of at each start of a service that may not write here.
COMPILE ?= --compile-bytecode
UV := $(TOOLS)/bin/uv

.PHONY: help setup setup-dev install demo bench test test-fast stress test-cluster fuzz mutants soak lint lock wheel sbom clean

help:  ## List the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(VENV)/.installed  ## Make the environment in .venv; CPU=0 or 1: with CUDA or without; EXTRAS="openvino mqtt"
setup-dev: $(VENV)/.installed-dev  ## Add all extras, and what tests and checks need

# uv and hatchling as locked; into a folder of their own, which no environment sees.
$(TOOLS)/.installed: requirements-build.txt
	@rm -rf $(TOOLS)
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --root-user-action ignore --require-hashes --no-deps --target $(TOOLS) -r requirements-build.txt
	@touch $@

# Exactly these packages, in the versions and with the hashes of the lock.
INSTALL = $(UV) pip install --quiet --python $(BIN)/python --require-hashes $(COMPILE) -c requirements.txt \
  -r pyproject.toml $(if $(filter 1,$(CPU)),--excludes $(VENV)/nvidia.txt,--extra nvml)

ifneq ($(CPU) $(EXTRAS),$(LAST_CPU) $(LAST_EXTRAS))
.PHONY: $(VENV)/.installed
endif
# The build constraints hold hatchling, which uv fetches for the building of streamdet alone, to the locked files.
$(VENV)/.installed: $(TOOLS)/.installed requirements.txt pyproject.toml torch_without_cuda.py
	@echo "making the environment in $(VENV), $(if $(filter 1,$(CPU)),without CUDA: 1.7 GB (CPU=0: with CUDA),with CUDA: 6 GB (CPU=1: without)); extras: $(EXTRAS)"
	@[ -x $(BIN)/python ] || $(UV) venv --quiet --python $(PYTHON) $(VENV)
	@grep -oE '^(nvidia-|cuda-|triton)[a-z0-9-]*' requirements.txt | grep -v nvidia-ml-py >$(VENV)/nvidia.txt
	@$(INSTALL) --exact $(if $(filter 10,$(LAST_CPU)$(CPU)),--reinstall-package torch --reinstall-package torchvision) $(addprefix --extra ,$(EXTRAS))
	@[ "$(CPU)" != 1 ] || $(BIN)/python torch_without_cuda.py
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --build-constraints requirements-build.txt -e .
	@printf 'LAST_CPU := %s\nLAST_EXTRAS := %s\n' "$(CPU)" "$(EXTRAS)" >$(VENV)/choice.mk
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt
	@$(INSTALL) --all-extras -r requirements-dev.txt
	@touch $@

demo: setup  ## Run a demonstration: real video, detections, events, metrics
	$(BIN)/streamdet demo $(if $(SECONDS),--seconds $(SECONDS))

install:  ## Install the system service, as root; INSTALL_ARGS=--dry-run prints what it would do
	@[ -x $(BIN)/streamdet ] || { echo "make setup first: the service runs in a copy of the environment"; exit 1; }
	$(BIN)/streamdet install-service $(INSTALL_ARGS)

bench: setup  ## Measure the detector, the daemon and this machine: four to eight minutes
	$(BIN)/streamdet bench $(if $(SECONDS),--seconds $(SECONDS)) $(BENCH_ARGS)

test: setup-dev  ## Run all tests
	$(BIN)/pytest -n auto --maxprocesses 4 --dist worksteal $(PYTEST_ARGS)

test-fast: setup-dev  ## Run the tests that need no server, in about a minute
	$(BIN)/pytest -n auto --maxprocesses 4 --dist worksteal -m "not slow and not network" tests/unit tests/integration/cli tests/integration/config $(PYTEST_ARGS)

stress: setup-dev  ## Run the race tests a thousand times
	STREAMDET_STRESS_ROUNDS=$(or $(COUNT),1000) $(BIN)/pytest -m stress --timeout 3600 -o faulthandler_timeout=4000 -rA $(PYTEST_ARGS)

test-cluster: setup-dev  ## Put a cluster of machines through faults, in network namespaces; as root, many minutes
	$(BIN)/pytest -n 0 -m long -o faulthandler_timeout=2000 -rA tests/faults/test_cluster.py $(PYTEST_ARGS)

fuzz: setup-dev  ## Read a million broken inputs: events, requests, answers, configurations
	$(BIN)/python tests/fuzzing.py --count $(or $(COUNT),1000000)

mutants: setup-dev  ## Change critical lines one at a time and check that a test fails; ONLY=TEXT selects some
	$(BIN)/python tests/mutants.py --only "$(ONLY)"

soak: setup-dev  ## Run the daemon with injected faults for SECONDS (1200), draw a chart, fail if a check fails
	PYTHONPATH=tests $(BIN)/python benchmarks/soak --seconds $(or $(SECONDS),1200) $(SOAK_ARGS)

lint: setup-dev  ## Check style, types, import layers and words
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/typos

lock: $(TOOLS)/.installed  ## Choose the newest versions and pin them with hashes
	$(LOCK) pyproject.toml --all-extras -o requirements.txt
	$(LOCK) --group dev -c requirements.txt -o requirements-dev.txt
	$(LOCK) --group deploy -c requirements.txt -c requirements-dev.txt -o requirements-deploy.txt
	$(LOCK) --group build -o requirements-build.txt

# One version of each package for all Pythons that we support: what works on one works on the others.
LOCK = $(UV) pip compile --upgrade --universal --fork-strategy fewest --python-version 3.11 \
  --generate-hashes --no-emit-index-url --no-header --no-annotate --quiet

wheel: $(TOOLS)/.installed  ## Make the wheel in dist/
	rm -rf dist
	$(UV) build --quiet --wheel --python $(PYTHON) --build-constraints requirements-build.txt --require-hashes --out-dir dist

# It reads licences with packaging, which the build tools have and an environment may lack.
sbom: setup  ## List every package and library of the environment in dist/streamdet.cdx.json (CycloneDX)
	PYTHONPATH=$(TOOLS) $(BIN)/python sbom.py dist/streamdet.cdx.json

clean:  ## Delete everything that make created
	rm -rf .venv .venv-* dist
