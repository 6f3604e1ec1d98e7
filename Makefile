# make demo          the main comparison on a synthetic funnel, with a report
# make experiments   all experiments on built-in data: 45 minutes on 2 cores
#                    (KUAIRAND=folder: on KuaiRand-Pure's files too; QUICK=1: minutes)
# make test          lint, type check and tests
# make test-newest   the same on the newest Python here, with the newest packages
# make test-long     the tests that take minutes: 20 runs killed and resumed, experiments, signals
# make test-wheel    builds the wheel, and computes a loss from it in a new environment
# make docs          the documentation, into build/docs; warnings are errors
# make lock          rewrites requirements.lock
# PYTHON=...         another interpreter (3.11 or newer); each gets its own environment
#
# Python 3.11 gets the exact versions of requirements.lock, other Pythons the newest
# releases. Lint and type check run with the locked tools, and in test-newest.

PYTHON ?= python3
TAG := $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
ifeq ($(TAG),)
$(error $(PYTHON) does not run; name a Python 3.11 or newer with PYTHON=path)
endif
VENV ?= $(if $(filter file,$(origin PYTHON)),.venv,.venv-$(TAG))
BIN := $(VENV)/bin
CONSTRAINTS := $(if $(filter 3.11,$(TAG)),--constraint requirements.lock)

.PHONY: demo experiments test test-newest test-long test-wheel docs lock lint types format clean

demo: $(VENV)/.runtime
	$(BIN)/python -m experiments.demo

experiments: $(VENV)/.runtime
	$(BIN)/python -m experiments.all --output runs/experiments$(if $(QUICK),_quick --quick) $(if $(KUAIRAND),--kuairand $(KUAIRAND))

test: $(if $(CONSTRAINTS)$(CHECK),lint types) $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-newest:
	@newest=$$(sh .ci/newest_python) && echo "newest Python: $$($$newest --version)" && $(MAKE) test PYTHON="$$newest" CHECK=1

test-long: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 --dist worksteal -m long

test-wheel: $(VENV)/.test
	$(BIN)/python -m pytest -m long tests/test_wheel.py

docs: $(VENV)/.docs
	$(BIN)/python -m sphinx --fail-on-warning --keep-going -q -b html docs build/docs

lock:
	rm -rf build/lock
	$(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet --upgrade pip
	build/lock/bin/python -m pip install --quiet '.[train,cluster,docs,test]'
	(echo "# Made by make lock with Python $(TAG): what make test and make demo install."; \
	 build/lock/bin/python -m pip freeze --exclude pwiser-jax) > requirements.lock

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.test
	$(BIN)/basedpyright --pythonpath $(BIN)/python

format: $(VENV)/.test
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/.runtime: requirements.txt requirements.lock
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed; name one with PYTHON=path")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) -r requirements.txt
	touch $@

$(VENV)/.test: $(VENV)/.runtime pyproject.toml
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) --editable '.[train,cluster,test]'
	touch $@

$(VENV)/.docs: $(VENV)/.runtime pyproject.toml
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) --editable '.[train,docs]'
	touch $@

clean:
	rm -rf .venv .venv-* build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
