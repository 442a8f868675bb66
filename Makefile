# make demo       train on drawn shapes, as a first try
# make test       style, pages and the fast tests: what to run before a commit
# make test-all   also the slow tests, and builds the site, as CI does every night
# make bench      speed and memory compared with other implementations
# make docs       the site, into _docs/;  make docs-open shows it;  make test-docs checks it in a browser and runs pages in Jupyter
# make test-web   the pages of `yolox_export --format web`, in a browser
PYTHON ?= python3
BROWSERS := chromium chromium-browser google-chrome chrome
BIN := .venv/bin
PIP := pip install --quiet --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest -q -o tmp_path_retention_policy=failed
# Two workers share two cores: one thread each, or they wait for each other
TWO := OMP_NUM_THREADS=1

.PHONY: demo test test-all style pages bench readme docs docs-open browser test-docs test-web build clean

demo: .venv/installed
	$(BIN)/yolox_demo --out runs/demo

test: style pages
	$(TWO) $(PYTEST) -n 2 --dist loadfile -m 'not slow' tests --ignore tests/deploy
	$(PYTEST) -m 'not slow' tests/deploy

# ONNX Runtime, OpenVINO and torch share a process of their own, since one of them once brought down the others'
test-all: style pages docs .venv-web/node_modules
	$(TWO) $(PYTEST) -n 2 --dist loadfile tests --ignore tests/deploy
	$(PYTEST) tests/deploy

style: .venv/installed-dev .venv-style/installed
	$(BIN)/ruff check
	$(BIN)/mypy
	.venv-style/bin/chkstyle nbs

pages: .venv/installed-dev
	$(TWO) $(BIN)/nbdev_test --n_workers 2 --timing

# An hour on an otherwise idle machine; tables go to runs/bench
bench: .venv-bench/installed
	.venv-bench/bin/python -W ignore benchmarks/loss.py --out runs/bench
	.venv-bench/bin/python -W ignore benchmarks/train_step.py --out runs/bench
	.venv-bench/bin/python -W ignore benchmarks/loader.py --out runs/bench
	.venv-bench/bin/python -W ignore benchmarks/trainers.py --out runs/bench
	.venv-bench/bin/python -W ignore benchmarks/inference.py --out runs/bench
	GOMP_SPINCOUNT=10000 .venv-bench/bin/python -W ignore benchmarks/deploy.py --out runs/bench # As in our commands

# README.md from nbs/index.ipynb
readme: .venv/installed-dev
	$(BIN)/python docs/readme.py

# Every page from nbs/ (docs/conf.py), without running a cell; a warning is an error. Pages are built again if they
# changed; `rm -r .venv-docs/build` starts anew
docs: .venv-docs/installed
	mkdir -p .venv-docs/build/pages
	.venv-docs/bin/sphinx-build -qW --keep-going -c docs -d .venv-docs/build/doctrees .venv-docs/build/pages .venv-docs/build/html
	rm -rf _docs
	cp -r .venv-docs/build/html _docs

docs-open: docs
	.venv-docs/bin/python -m http.server --bind 127.0.0.1 --directory _docs

test-docs: browser docs .venv-docs/installed-browser .venv-web/package .venv/installed-dev
	@.venv-docs/bin/python -m pytest -q -rs tests_docs && $(PYTEST) -rs -m slow tests/test_tutorials.py \
		&& echo "The site in _docs/ is fine: every page loads, links lead somewhere, the search finds, and pages run in Jupyter." \
		|| { echo "The site in _docs/, or a page in Jupyter, has faults: the lines above that begin with FAILED say where."; exit 1; }

# Before anything is built
browser:
	@$(PYTHON) -c 'import shutil, sys; sys.exit(not any(map(shutil.which, sys.argv[1:])))' $(BROWSERS) \
		|| { echo "This needs a browser, one of $(BROWSERS): for example apt-get install chromium"; exit 1; }

test-web: browser .venv/installed-browser .venv-web/package
	$(PYTEST) -rs tests_web

# The wheel and the source distribution, into dist/
build: .venv/installed-dev
	rm -rf build dist
	$(BIN)/python -m build

clean:
	rm -rf .venv .venv-style .venv-bench .venv-docs .venv-web _proc _docs build dist

.venv/bin/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or newer is needed, for example: make demo PYTHON=python3.12")'
	$(PYTHON) -m venv .venv

.venv/installed: .venv/bin/pip settings.ini setup.py
	$(BIN)/$(PIP) --editable .
	@touch $@

.venv/installed-dev: .venv/bin/pip settings.ini setup.py
	$(BIN)/$(PIP) --editable '.[dev]'
	@touch $@ .venv/installed

# chkstyle needs fastcore 2, nbdev needs fastcore 1
.venv-style/installed: settings.ini
	$(PYTHON) -m venv .venv-style
	.venv-style/bin/$(PIP) $$(sed -n 's/^style_requirements = //p' settings.ini)
	@touch $@

# Peers are installed one by one; the tables name those that cannot be
.venv-bench/installed: settings.ini setup.py
	$(PYTHON) -m venv .venv-bench
	.venv-bench/bin/$(PIP) --editable '.[export,int8]'
	for peer in $$(sed -n 's/^bench_requirements = //p' settings.ini); do \
		.venv-bench/bin/$(PIP) "$$peer" || echo "$$peer could not be installed"; done
	@touch $@

# Pages are made from notebooks and modules as text, so neither the package nor torch is needed
.venv-docs/installed: settings.ini
	$(PYTHON) -m venv .venv-docs
	.venv-docs/bin/$(PIP) $$(sed -n 's/^docs_requirements = //p' settings.ini)
	@touch $@

.venv-docs/installed-browser: .venv-docs/installed
	.venv-docs/bin/$(PIP) $$(sed -n 's/^browser_requirements = //p' settings.ini)
	@touch $@

.venv/installed-browser: .venv/installed-dev
	$(BIN)/$(PIP) $$(sed -n 's/^browser_requirements = //p' settings.ini)
	@touch $@

# ONNX Runtime as browsers load it; without npm, tests that need it are skipped
.venv-web/package: cjm_yolox_pytorch/deploy/web.py
	mkdir -p .venv-web
	cd .venv-web && rm -rf package && npm pack --silent \
		onnxruntime-web@$$(sed -n "s/^ONNXRUNTIME_WEB = '\(.*\)'/\1/p" ../cjm_yolox_pytorch/deploy/web.py) \
		&& tar xzf onnxruntime-web-*.tgz && rm onnxruntime-web-*.tgz && touch package \
		|| echo "ONNX Runtime Web could not be fetched with npm"

# What nbs/tutorials/elsewhere/detect.mjs imports, without downloads for GPUs; without npm, its tests are skipped
.venv-web/node_modules: cjm_yolox_pytorch/deploy/web.py
	mkdir -p .venv-web
	npm install --silent --no-save --ignore-scripts --prefix .venv-web sharp@0.35 \
		onnxruntime-node@$$(sed -n "s/^ONNXRUNTIME_WEB = '\(.*\)'/\1/p" cjm_yolox_pytorch/deploy/web.py) \
		&& touch .venv-web/node_modules || echo "ONNX Runtime for Node.js could not be fetched with npm"
