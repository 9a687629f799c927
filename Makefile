.DEFAULT_GOAL := help
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
export RAY_USAGE_STATS_ENABLED := 0
export GX_ANALYTICS_ENABLED := False

export ENGINE ?= podman
# The whole name, by which a cluster knows narrowcast:VERSION.
IMAGE ?= docker.io/library/narrowcast:$(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' narrowcast/__init__.py)
BASE_IMAGE ?= localhost/debian-python:bookworm

.PHONY: help setup setup-torchrec quickstart test lint clean lock image image-base

help: ## Show this help
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(VENV)/.ready ## Install narrowcast and everything it needs into .venv

$(VENV)/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is older than 3.11: run make PYTHON=python3.11 setup"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==0.13.8
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python --requirement requirements.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

setup-torchrec: setup ## Install the extra for tables sharded over workers (CPU build)
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --requirement requirements-torchrec.lock

quickstart: setup ## Run the whole DAG on MovieLens-100K and ask the deployed model
	$(BIN)/narrowcast data get ml_100k
	$(BIN)/narrowcast data snapshot data/raw/ml_100k
	$(BIN)/narrowcast run
	$(BIN)/narrowcast rank --user 196 --candidates 50,100,181,258,286,288,294,300

test: setup ## Run all tests
	$(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST)

lint: setup ## Check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

clean: ## Remove runs, caches and artifacts; keeps the DVC remote, raw data and .venv
	-$(BIN)/narrowcast serve --stop default
	rm -rf .narrowcast/kfp .narrowcast/kfp-cache .narrowcast/runs .narrowcast/reproduced .narrowcast/endpoints artifacts/*/ \
		build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache

lock: ## Write requirements.lock anew from pyproject.toml
	rm -f requirements.lock
	$(BIN)/uv pip compile --quiet --extra dev --no-header --no-annotate --no-emit-index-url --no-emit-find-links \
		--python-version 3.11 pyproject.toml --output-file requirements.lock
	sed -i 's/^\(torch==[0-9.]*\)+cpu/\1/' requirements.lock

image: ## Build the container image; ENGINE=docker where there is no podman
	$(ENGINE) build --tag $(IMAGE) --build-arg COMMIT=$$(git describe --always --exclude '*' --abbrev=40 --dirty=+changes) \
		$(if $(UV_FIND_LINKS),--build-context wheels=$(UV_FIND_LINKS) --build-arg TORCH_BACKEND=) $(BUILD) .

image-base: ## Make a base image from Debian's packages, where no image registry is in reach
	k8s/base-image.sh $(BASE_IMAGE) $(MIRROR)
