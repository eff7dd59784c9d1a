# make            this help
# make demo       draw birds, train, evaluate, explain and report: runs/demo/report.html (SEED=0)
# make test       lint, types, import contracts and tests
# make lint       lint, types and import contracts only
# make clean      remove the demo's files and the virtual environment

PYTHON ?= python3
SEED ?= 0
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help demo test lint clean

help:
	@sed -n 's/^# //p' Makefile

$(READY): setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet --editable '.[all]'
	@touch $@

demo: $(READY)
	rm -rf data/birds runs/demo
	$(BIN)/python -m rg prepare birds --out data/birds --birds.size 160 --birds.seed $(SEED)
	$(BIN)/python -m rg train birds_lite0 --data data/birds --out runs/demo --seed $(SEED)
	$(BIN)/python -m rg evaluate runs/demo --data data/birds
	$(BIN)/python -m rg report runs/demo

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: lint
	$(BIN)/python -m pytest

clean:
	rm -rf .venv data/birds runs/demo
