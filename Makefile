# make study   set up and run the quickstart study      make test   set up and pass the tests
# make help    the other targets
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
# The environment is made anew whenever the pinned versions or the package's requirements change.
STAMP  := $(VENV)/.made-$(shell cat constraints.txt pyproject.toml | cksum | cut -d' ' -f1)
STUDY  ?= runs/quickstart.yaml
ARGS   ?=
# Test files are spread over so many processes, each with a Ray of its own.
TESTERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(TESTERS) --dist loadfile --no-loadscope-reorder

export OMP_NUM_THREADS ?= 1
export MLFLOW_DISABLE_TELEMETRY ?= true

.PHONY: help setup study books test test-all bench bench-eval bench-gpu bench-corpus bench-scale lint format ui report clean

help:
	@sed -n 's/^## //p' Makefile

## setup      create the environment in .venv from constraints.txt
setup: $(STAMP)

$(STAMP): constraints.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python %d.%d is too old: infini-study needs 3.11 or newer. Fix: make PYTHON=/path/to/python3.11" % sys.version_info[:2])'
	@echo "setting up $(VENV) (about 2.5 GB; a few minutes)"
	@rm -f $(VENV)/.made-*
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

## study      run STUDY (default runs/quickstart.yaml) end to end; again: only what changed
study: $(STAMP)
	@$(BIN)/infini-study run $(STUDY) $(ARGS)

## books      run runs/small.yaml on your own folder: make books BOOKS=/path/to/folder [MATH=/folder/of/LaTeX]
books: $(STAMP)
	@test -n "$(BOOKS)" || { echo "usage: make books BOOKS=/folder/with/train,validation,test [MATH=/folder/of/LaTeX]"; exit 2; }
	@$(BIN)/infini-study run runs/small.yaml --set corpus.sources.0.url=$(BOOKS) $(if $(MATH),--set corpus.sources.1.url=$(MATH)) $(ARGS)

## test       the tests that every commit passes (under 20 minutes on 2 cores)
test: $(STAMP)
	@$(PYTEST) -m "not slow" $(ARGS)

## test-all   those and the long ones
test-all: $(STAMP)
	@$(PYTEST) $(ARGS)

## bench      speed, side by side in one run: the arms, and what users would take instead
PEERS := $(VENV)/bench-peers
bench: $(STAMP) $(PEERS)/.made
	@env -u OMP_NUM_THREADS PYTHONPATH=$(PEERS) $(BIN)/python -m bench.speed $(ARGS)

$(PEERS)/.made: | $(STAMP)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(PEERS) infini-transformer-pytorch==0.2.1 einops rotary-embedding-torch
	@touch $@

## bench-gpu  every GPU number of docs/performance.md, in ten minutes on one card
bench-gpu: $(STAMP)
	@$(BIN)/python -m bench.gpu $(ARGS)

## bench-eval  speed of an evaluation against transformers' generate, re-reading, and one worker
bench-eval: $(STAMP)
	@env -u OMP_NUM_THREADS $(BIN)/python -m bench.evaluate $(ARGS)

## bench-corpus  the corpus's kernels beside other tools (in an environment of their own) and their accuracy: [TEXTS=/folder]
BENCH := $(VENV)/bench
bench-corpus: $(STAMP) $(BENCH)/.made
	@$(BIN)/python -m bench.matching $(TEXTS) --datatrove $(BENCH)/bin/python
	@$(BIN)/python -m bench.matching_accuracy $(TEXTS)
	@PYTHONPATH=$(BENCH)/beside $(BIN)/python -m bench.dedup $(TEXTS)
	@$(BIN)/python -m bench.dedup_accuracy $(TEXTS)
	@$(BIN)/python -m bench.tokens $(TEXTS)

## bench-scale  driver memory and seconds of the corpus stages against documents (ARGS="10000 100000"), a model of 1 TB
bench-scale: $(STAMP)
	@$(BIN)/python -m bench.scale $(ARGS)

$(BENCH)/.made: pyproject.toml | $(STAMP)
	@echo "setting up $(BENCH) (datatrove, rensa, datasketch: a minute)"
	@test -x $(BENCH)/bin/python || $(PYTHON) -m venv $(BENCH)
	@$(BIN)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["bench"], sep="\n")' > $(BENCH)/requirements.txt
	@$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check -r $(BENCH)/requirements.txt
	@$(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $(BENCH)/beside datasketch==2.0.0 rensa==0.5.0
	@touch $@

## lint       ruff and mypy
lint: $(STAMP)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(STAMP)
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

## ui         MLflow for everything run so far
ui: $(STAMP)
	@$(BIN)/infini-study ui $(ARGS)

## report     print the verdicts of STUDY and where its report lies
report: $(STAMP)
	@$(BIN)/infini-study report $(STUDY) $(ARGS)

## clean      remove the environment (artifacts in runs/store stay)
clean:
	rm -rf $(VENV)
