# make demo: train on drawn shapes, as a first try.   make test: everything that CI checks.   make bench: beside other implementations.
# make docs: the site, into _docs/.   make docs-open: look at it.   make test-docs: look at it in a browser that looks for faults.
PYTHON ?= python3
BIN := .venv/bin
# Gigabytes of weights and pictures that passed are not kept
TIDY := -o tmp_path_retention_policy=failed

.PHONY: demo test bench readme docs docs-open test-docs clean

demo: .venv/installed
	$(BIN)/yolox_demo --out runs/demo

test: .venv/installed-dev
	$(BIN)/nbdev_test --n_workers 2 --timing
	$(BIN)/python -m pytest $(TIDY) tests --ignore tests/test_export.py
# In a process of its own, which OpenVINO once ended in that of all others
	$(BIN)/python -m pytest $(TIDY) tests/test_export.py

# Half an hour on an otherwise idle machine. Tables go to runs/bench
bench: .venv-bench/installed
	.venv-bench/bin/python -W ignore benchmarks/loss.py --out runs/bench
	.venv-bench/bin/python -W ignore benchmarks/train_step.py --out runs/bench
	.venv-bench/bin/python -W ignore benchmarks/loader.py --out runs/bench
	.venv-bench/bin/python -W ignore benchmarks/inference.py --out runs/bench

# README.md from nbs/index.ipynb
readme: .venv/installed-dev
	$(BIN)/python docs/readme.py

# Every page from nbs/ (docs/conf.py), without running a cell. A warning is an error
docs: .venv-docs/installed
	rm -rf _proc _docs .venv-docs/build
	mkdir _proc
	.venv-docs/bin/sphinx-build -qW --keep-going -c docs -d .venv-docs/build/doctrees _proc .venv-docs/build/html
	mv .venv-docs/build/html _docs

docs-open: docs
	.venv-docs/bin/python -m http.server --bind 127.0.0.1 --directory _docs

test-docs: docs .venv-docs/installed-browser
	.venv-docs/bin/python -m pytest -rs tests_docs

clean:
	rm -rf .venv .venv-bench .venv-docs _proc _docs

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, for example: make demo PYTHON=python3.12")'
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/pip settings.ini setup.py
	$(BIN)/pip install --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/installed-dev: .venv/bin/pip settings.ini setup.py
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ .venv/installed

# Peers one by one: the tables name one that cannot be installed, and go on without it
.venv-bench/installed: settings.ini setup.py
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/pip install --quiet --disable-pip-version-check --editable '.[export]'
	for peer in $$(sed -n 's/^bench_requirements = //p' settings.ini); do \
		.venv-bench/bin/pip install --quiet --disable-pip-version-check "$$peer" || echo "$$peer could not be installed"; done
	@touch $@

# Pages are made from notebooks and modules as text, so the package and torch are not needed
.venv-docs/installed: settings.ini
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/pip install --quiet --disable-pip-version-check $$(sed -n 's/^docs_requirements = //p' settings.ini)
	@touch $@

.venv-docs/installed-browser: .venv-docs/installed
	.venv-docs/bin/pip install --quiet --disable-pip-version-check $$(sed -n 's/^browser_requirements = //p' settings.ini)
	@touch $@
