# Two commands set everything up on a fresh machine with python3 (>= 3.10) and make: `make demo` and `make test`.
VENV ?= .venv
PYTHON ?= python3
# On Linux without a GPU, PIP_FLAGS="--extra-index-url https://download.pytorch.org/whl/cpu" saves gigabytes.
PIP_FLAGS ?=
BIN := $(VENV)/bin

.PHONY: demo test check bench clean

demo: $(VENV)/.installed
	$(BIN)/jemstone demo --out runs/demo-$$(date +%Y%m%d-%H%M%S)

test: $(VENV)/.installed
	$(BIN)/python -m pytest -n 2 --dist loadfile --cov --cov-report=term:skip-covered --cov-fail-under=90

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.installed
	$(BIN)/python benchmarks/demo.py
	$(BIN)/python benchmarks/step.py --memory
	$(BIN)/python benchmarks/step.py --sweep --json benchmarks/results/step_sweep.json
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/ranks.py

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_FLAGS) -c constraints.txt -e '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) runs .pytest_cache .mypy_cache .ruff_cache .coverage .coverage.*
