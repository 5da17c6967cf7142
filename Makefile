PYTHON ?= python3
BIN := .venv/bin
READY := .venv/.ready
export PROMPT ?= a frog on stilts
.PHONY: draw test bench lint wheel clean

draw: $(READY)
	@$(BIN)/unspeckle draw "$$PROMPT" --out drawn

test: .venv/.ready-dev
	$(BIN)/ruff check src tests recipes benchmarks notebooks
	$(BIN)/ruff format --check src tests recipes benchmarks notebooks
	$(BIN)/mypy
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses=4 --dist worksteal

bench: .venv/.ready-dev
	$(BIN)/python -m pytest -m slow
	$(BIN)/python benchmarks/training_step.py

lint: .venv/.ready-dev
	$(BIN)/ruff format src tests recipes benchmarks notebooks
	$(BIN)/ruff check --fix src tests recipes benchmarks notebooks

wheel: .venv/.ready-dev
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .

# The core alone is what drawing needs; the tools of the tests come on top of it.
INSTALL := $(BIN)/pip install -qq --disable-pip-version-check -c constraints.txt
$(READY): pyproject.toml constraints.txt
	@echo "setting up .venv, once: torch and what else drawing needs …"
	@$(PYTHON) -m venv .venv
	@$(INSTALL) -e .
	@touch $@

.venv/.ready-dev: $(READY)
	@echo "setting up the tools of the tests, once …"
	@$(INSTALL) -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv dist build drawn
