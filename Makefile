# `make demo`: the whole pipeline on real scans of digits.  `make test`: everything CI checks.  `make docs`: the site, in
# build/site.  Each makes .venv itself.
PYTHON ?= python3
BIN := .venv/bin
PLUGINS := $(wildcard plugins/*/pyproject.toml)
# Its page needs Gradio, which asks for older packages: installed without it, and its tests of the page are skipped.
PAGE := plugins/mpdit-playground/
EXTRAS := dev,plot,onnx,docs

.PHONY: demo test lint types layers docs unit setup clean

setup: .venv/complete

.venv/complete: pyproject.toml $(PLUGINS)
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --editable ".[$(EXTRAS)]" $(foreach p,$(filter-out $(PAGE),$(dir $(PLUGINS))),--editable $(p))
	VIRTUAL_ENV=.venv $(BIN)/uv pip install --quiet --no-deps --editable $(PAGE)
	touch $@

demo: setup
	$(BIN)/mpdit demo

test: lint types layers docs unit

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup
	$(BIN)/pyright

layers: setup
	$(BIN)/lint-imports

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

unit: setup
	$(BIN)/pytest -n 2 --dist loadgroup

clean:
	rm -rf .venv
