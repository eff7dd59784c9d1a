# make            this help
# make demo       draw birds, train, evaluate, report: runs/demo/report.html (SEED=0)
# make test       lint, types, import contracts, tests and the kernels' gate
# make lint       lint, types and import contracts only
# make docs       these pages and the API reference as a site: site/index.html
# make gate       what the kernels compile to, for three architectures; make gate-triton-3.6 with that version
# make bench-gpu  what a GPU is measured for, in parts that can be resumed (ARGS="--dry-run", --smoke on a CPU)
# make clean      remove the demo's files and the virtual environment

PYTHON ?= python3
SEED ?= 0
BIN := .venv/bin
READY := .venv/.ready

.PHONY: help demo test lint docs gate gate-triton-3.6 bench-gpu clean

help:
	@sed -n 's/^# //p' Makefile

$(READY): pyproject.toml
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
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile --no-loadscope-reorder
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(BIN)/python -m pytest -n auto -m gpu
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
