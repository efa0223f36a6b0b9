# `make demo`: the whole pipeline on real scans of digits.  `make test`: everything CI checks.  Both make .venv themselves.
PYTHON ?= python3
BIN := .venv/bin
PLUGINS := $(wildcard plugins/*/pyproject.toml)
EXTRAS := dev,plot,onnx

.PHONY: demo test lint types layers unit setup clean

setup: .venv/complete

.venv/complete: pyproject.toml $(PLUGINS)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --editable ".[$(EXTRAS)]" $(foreach p,$(dir $(PLUGINS)),--editable $(p))
	touch $@

demo: setup
	$(BIN)/mpdit demo

test: lint types layers unit

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/pyright

layers: setup
	$(BIN)/lint-imports

unit: setup
	$(BIN)/pytest -n 2

clean:
	rm -rf .venv
