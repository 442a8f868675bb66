# make demo: train on drawn shapes, as a first try.   make test: everything that CI checks.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test readme clean

demo: .venv/installed
	$(BIN)/yolox_demo --out runs/demo

test: .venv/installed-dev
	$(BIN)/nbdev_test --n_workers 2 --timing
	$(BIN)/python -m pytest tests

# README.md from nbs/index.ipynb
readme: .venv/installed-dev
	$(BIN)/python docs/readme.py

clean:
	rm -rf .venv

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, for example: make demo PYTHON=python3.12")'
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/pip settings.ini setup.py
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/installed-dev: .venv/bin/pip settings.ini setup.py
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ .venv/installed
