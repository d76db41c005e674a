# graphopt: make demo, make test. Needs nothing but make and Python 3.10 to 3.13 with venv.
#
#   PYTHON=python3.12 make test      another interpreter
#   PIP_ARGS="--index-url ..." make  another package index

PYTHON ?= python3
PIP_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
RUN_INSTALLED := $(VENV)/.stamp-run
DEV_INSTALLED := $(VENV)/.stamp-dev
DEMO_MODEL := ppocrv4-rec
# Two test processes: the kernels that are tested take further cores.
JOBS ?= 2

# What make test-pythons runs, each in an environment of its own.
PYTHONS ?= python3.10 python3.11 python3.12 python3.13

.PHONY: help venv demo test test-fast test-pythons lint format docs bench clean

help:
	@echo "make demo       fetch a real model, compile it, print the report"
	@echo "make test       lint, type check and all tests but those that need a GPU"
	@echo "make test-fast  the same without slow tests and real models"
	@echo "make test-pythons  the same as make test with each of PYTHONS=\"$(PYTHONS)\""
	@echo "make lint       ruff and mypy"
	@echo "make format     let ruff format and sort"
	@echo "make docs       write docs/passes.md and docs/cli.md from the code"
	@echo "make bench      every zoo model against ONNX Runtime, onnxsim and onnxslim"
	@echo "make clean      remove what these commands made"

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "graphopt needs Python 3.10 to 3.13; this is $$($(PYTHON) --version 2>&1). Name another: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# What running graphopt takes; enough for the demo.
$(RUN_INSTALLED): $(BIN)/python pyproject.toml constraints.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[cpu]'
	@touch $@

# What testing it takes as well.
$(DEV_INSTALLED): $(RUN_INSTALLED)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -c constraints.txt -e '.[cpu,openvino,tvm-cuda,torch,zoo,dev]'
	@touch $@

venv: $(DEV_INSTALLED)

demo: $(RUN_INSTALLED)
	@mkdir -p build/demo
	@test -f build/demo/rec.onnx || $(BIN)/graphopt zoo fetch $(DEMO_MODEL) -o build/demo/rec.onnx
	cd build/demo && ../../$(BIN)/graphopt compile rec.onnx -o rec.gopt
	@echo "the whole report: build/demo/rec.gopt/report.html"

lint: $(DEV_INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(DEV_INSTALLED)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

test: lint
	$(BIN)/python -m pytest -n $(JOBS) -m 'not cuda'

test-fast: lint
	$(BIN)/python -m pytest -n $(JOBS) -m 'not cuda and not slow and not zoo'

test-pythons:
	@for python in $(PYTHONS); do \
	  $(MAKE) test PYTHON=$$python VENV=build/venv-$${python##*/} || exit 1; \
	  echo "passed with $$($$python --version)"; \
	done

docs: $(DEV_INSTALLED)
	$(BIN)/python scripts/make_docs.py

bench: $(DEV_INSTALLED)
	$(BIN)/python benchmarks/zoo.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
