# make demo | test | lint | bench | bench-methods | bench-claims. Each makes .venv by itself on a fresh machine; no compiler is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/pip install -q -c constraints.txt
SOURCES := $(shell find src -type f) pyproject.toml constraints.txt README.md LICENSE
.PHONY: demo test lint bench clean

demo: $(VENV)/.installed
	$(BIN)/distillrl distill examples/ppo_lunar.zip --env LunarLander-v3 --student mlp:16x16

test: $(VENV)/.tools
	$(BIN)/python -m pytest --numprocesses=auto --dist=worksteal

lint: $(VENV)/.tools
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.tools
	$(BIN)/python bench/speed.py

# Both go on where they were stopped; QUICK=1 takes about 5 minutes and leaves the pages as they are, WORKERS=4 measures four cells at a time.
WORKERS ?= 1
MEASURE = --workers $(WORKERS) $(if $(QUICK),--quick)

bench-methods: $(VENV)/.tools
	$(BIN)/python bench/methods.py $(MEASURE)

bench-claims: $(VENV)/.tools
	$(PIP) "$$(echo dist/*.whl)[sb3]"
	$(BIN)/python bench/claims.py $(MEASURE)

# bench-auto, bench-kills, …: the docstring of each says what it measures.
bench-%: bench/%.py $(VENV)/.tools
	$(BIN)/python $<

# What is tested is the built wheel, as a user gets it, never the source tree.
$(VENV)/.installed: $(SOURCES) | $(VENV)/bin/hatchling
	rm -rf dist
	$(BIN)/pip wheel -q --no-deps --no-build-isolation -w dist .
	$(PIP) "$$(echo dist/*.whl)[box2d]"
	$(PIP) --no-deps --force-reinstall dist/*.whl
	touch $@

$(VENV)/.tools: $(VENV)/.installed
	$(PIP) "$$(echo dist/*.whl)[test]"
	touch $@

$(VENV)/bin/hatchling:
	$(PYTHON) -m venv $(VENV)
	$(PIP) hatchling

clean:
	rm -rf $(VENV) dist build
