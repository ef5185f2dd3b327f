# The front door. Needs Python 3.11 or newer, make and a compiler; everything else is set up here.
#   make demo         trains a policy on the embedded Push-T demonstrations, evaluates it, shows the result
#   make demo-image   the same with a policy that looks at images
#   make test         lint, import contract, types, tests
#   make lint         only the first three
#   make attack       the long form of tests/attack: tries to break the promises, prints a table
#   make bench        speed, as ratios within one run
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
RUN    ?= data/outputs/demo_pusht

# The newest torch wheel that PyPI serves carries CUDA; a CPU build named in the constraints keeps installs small.
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

# Each attack ends when it has tried everything, or after so many seconds.
ATTACK_SECONDS ?= 600

.PHONY: demo demo-image test attack lint bench install install-dev system-packages clean
.DEFAULT_GOAL := help

help:
	@sed -n 's/^#   //p' $(MAKEFILE_LIST)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: $(BIN)/python pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (2-4 minutes the first time) ..."
	$(PIP_INSTALL) torch
	$(PIP_INSTALL) --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP_INSTALL) --editable ".[dev]"
	$(PIP_INSTALL) --no-deps robomimic
	@touch $@

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

demo: install
	$(BIN)/python -m diffusion_policy.scripts.demo --run-dir $(RUN)

demo-image: install
	$(BIN)/python -m diffusion_policy.scripts.render_pusht_images
	$(BIN)/python -m diffusion_policy.scripts.demo --config-name demo_pusht_image --run-dir $(RUN)_image

system-packages:
	@sh tests/install_system_packages.sh

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright

test: lint system-packages
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadgroup

attack: install-dev system-packages
	OMP_NUM_THREADS=1 ATTACK_SECONDS=$(ATTACK_SECONDS) $(BIN)/python -m pytest tests/attack -n auto --dist loadgroup --timeout 0

bench: install-dev
	@for f in benchmarks/bench_*.py; do echo "== $$f"; $(BIN)/python $$f || exit 1; done

clean:
	rm -rf $(VENV)
