# Each target does all the set-up it needs, in a virtual environment inside this folder.
PYTHON ?= python3
VENV ?= .venv
READY = $(VENV)/.fggp-installed

.PHONY: demo test lint format benchmark clean

demo: $(READY)
	$(VENV)/bin/fggp demo

test: $(READY)
	$(VENV)/bin/pytest

lint: $(READY)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

format: $(READY)
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

benchmark: $(READY)
	$(VENV)/bin/python benchmarks/update.py

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@echo "installing fggp with everything needed to run and test it (PyTorch is large: a few minutes)"
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --editable '.[all]'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
