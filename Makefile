# make demo          the main job on a synthetic funnel, with a report to look at
# make experiments   all experiments on built-in data: half an hour on 2 cores
#                    (KUAIRAND=folder: on KuaiRand-Pure's files too; QUICK=1: minutes)
# make test          lint, type check and the whole test suite
# make test-long     the tests that take minutes: 20 runs killed and resumed, experiments, signals
# PYTHON=...         another interpreter (3.11 or newer); each gets its own environment

PYTHON ?= python3
TAG := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
ifeq ($(TAG),)
$(error $(PYTHON) does not run; name a Python 3.11 or newer with PYTHON=path)
endif
VENV ?= $(if $(filter file,$(origin PYTHON)),.venv,.venv-$(TAG))
BIN := $(VENV)/bin

.PHONY: demo experiments test test-long lint types format clean

demo: $(VENV)/.runtime
	$(BIN)/python -m experiments.demo

experiments: $(VENV)/.runtime
	$(BIN)/python -m experiments.all --output runs/experiments$(if $(QUICK),_quick --quick) $(if $(KUAIRAND),--kuairand $(KUAIRAND))

test: lint types
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-long: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist worksteal -m long

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/basedpyright --pythonpath $(BIN)/python

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.runtime: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one with PYTHON=path")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/.test: $(VENV)/.runtime pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

clean:
	rm -rf .venv .venv-* build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
