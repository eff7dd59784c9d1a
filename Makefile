# make            this help
# make demo       draw birds, train, evaluate, report: runs/demo/report.html (SEED=0)
# make check      lint and the fast tests, in two minutes
# make test       lint, types, import contracts, tests and the kernels' gate
# make lint       format, lint, types and import contracts only
# make docs       these pages and the API reference as a site: site/index.html
# make gate       what the kernels compile to, for three architectures; make gate-triton-3.6 with that version
# make bench-gpu  what a GPU is measured for, in parts that can be resumed (ARGS="--dry-run", --smoke on a CPU)
# make clean      remove the demo's files and the virtual environment

PYTHON ?= python3
SEED ?= 0
BIN := .venv/bin
READY := .venv/.ready
# One more than there are cores: tests that launch ranks wait for them.
WORKERS = $(shell $(BIN)/python -c 'import os; print(1 + (os.cpu_count() or 1))')
# Rooms from tensors to explanations, whose tests train nothing and take less than 40 s of one core each.
FAST := $(addprefix tests/,test_config.py test_imports.py kernels model pipelines attribution explain tables)

.PHONY: help demo check test lint docs gate gate-triton-3.6 bench-gpu clean

help:
	@sed -n 's/^# make/make/p' Makefile

# setuptools warns of every editable installation from a folder that holds several packages.
$(READY): pyproject.toml
	@echo "Setting up .venv (7 GB, most of it PyTorch's CUDA libraries)"
	@$(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --upgrade pip
	@PYTHONWARNINGS='ignore:Editable installation.' $(BIN)/pip install --quiet --editable '.[all]'
	@touch $@

demo: $(READY)
	@rm -rf data/birds runs/demo
	@echo "1/4 Drawing birds into shards"
	@$(BIN)/python -m rg prepare birds --out data/birds --birds.size 160 --birds.seed $(SEED)
	@echo "2/4 Training"
	@$(BIN)/python -m rg train birds_lite0 --data data/birds --out runs/demo --seed $(SEED)
	@echo "3/4 Evaluating by the paper's protocols"
	@$(BIN)/python -m rg evaluate runs/demo --data data/birds
	@echo "4/4 Writing the report, a page to open in a browser"
	@$(BIN)/python -m rg report runs/demo

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder $(FAST)

test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(BIN)/python -m pytest -n auto -m gpu tests/kernels tests/model
	$(MAKE) gate

docs: $(READY)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

gate: $(READY)
	$(BIN)/python -m benchmarks.kernel_resources

.triton-3.6: $(READY)
	rm -rf $@
	$(BIN)/pip install --quiet --no-deps --target $@ triton==3.6.0

gate-triton-3.6: .triton-3.6
	PYTHONPATH=.triton-3.6 $(BIN)/python -m benchmarks.kernel_resources

bench-gpu: $(READY)
	$(BIN)/python -m benchmarks.bench_gpu $(ARGS)

clean:
	rm -rf .venv .triton-3.6 data/birds runs/demo site
