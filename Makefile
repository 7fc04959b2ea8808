# Each target does its own set-up and is quick when run again.
.PHONY: help demo play test check format clean
.DEFAULT_GOAL := help

PYTHON_BIN := .venv/bin/python
STAMP := .venv/.installed

help:  ## what there is
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/'

$(STAMP): pyproject.toml scripts/setup.sh
	@scripts/setup.sh
	@touch $@

demo: $(STAMP)  ## the dream beside the real Memory Maze: outputs/demo/{demo.mp4,demo.png,demo.json}
	.venv/bin/wm-gym demo --out outputs/demo

play: $(STAMP)  ## the dream and the real Memory Maze, played in the browser: http://127.0.0.1:8000
	.venv/bin/wm-gym play --real --record-dir outputs/played

test: $(STAMP)  ## the default test suite: no GPU, nothing slow
	$(PYTHON_BIN) -m pytest $(PYTEST_ARGS)

check: $(STAMP)  ## lint, format, types, import direction
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright
	$(PYTHON_BIN) -m pytest -q tests/test_imports.py

format: $(STAMP)  ## fix what ruff can fix
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

clean:  ## remove .venv, caches and outputs
	rm -rf .venv .pytest_cache .ruff_cache outputs build dist *.egg-info
