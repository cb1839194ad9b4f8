# Everything from a bare checkout, with nothing but Python 3.11 or newer and make.
PYTHON ?= python3
BIN := .venv/bin
# The files of tests dealt to the cores. A worker that crashes ends the run: after another has taken its
# place, pytest-xdist waits for ever.
PYTEST := python -m pytest --numprocesses auto --maxprocesses 8 --dist loadfile --max-worker-restart 0
# What quick tests compile runs for a moment, and compiles in half of the time like this. Commands that
# they run in processes of their own, and all of test-all, compile what users do.
QUICK := JAX_DISABLE_MOST_OPTIMIZATIONS=1

# For the newest JAX, which asks for a newer Python than the oldest that will do.
NEWEST ?= python3.12

.PHONY: demo docs notebooks test test-all test-oldest test-newest clean

demo: .venv/installed
	$(BIN)/python train.py --config configs/demo.yaml --out runs/demo --overwrite
	$(BIN)/python evaluate.py runs/demo

# The documentation site, in site/; a link that leads nowhere fails.
docs: .venv/docs
	rm -rf site
	$(BIN)/sphinx-build -qEW --keep-going -c docs/site -d build/doctrees . site
	cp site/README.html site/index.html

test: .venv/developer
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(QUICK) $(BIN)/$(PYTEST) -m "not slow"

test-all: .venv/developer
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/$(PYTEST)

# The notebooks in examples/, made from the scripts beside them and executed.
notebooks: .venv/developer
	$(BIN)/pip install --quiet -e ".[notebooks]"
	$(BIN)/python examples/execute.py from_nans_to_rates.py your_recording_judged.py

# The same tests on the oldest version of every package that requirements.txt admits.
test-oldest: .venv-oldest/developer
	$(QUICK) .venv-oldest/bin/$(PYTEST) -m "not slow"

# And on the newest.
test-newest: .venv-newest/developer
	$(QUICK) .venv-newest/bin/$(PYTEST) -m "not slow"

.venv/installed: requirements.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet -r requirements.txt
	touch $@

.venv/developer: .venv/installed pyproject.toml
	$(BIN)/pip install --quiet -e ".[dev]"
	touch $@

.venv/docs: .venv/installed pyproject.toml
	$(BIN)/pip install --quiet -e ".[docs]"
	touch $@

.venv-oldest/developer: requirements.txt requirements-oldest.txt pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet -e ".[dev]" --constraint requirements-oldest.txt
	touch $@

.venv-newest/developer: requirements.txt pyproject.toml
	$(NEWEST) -m venv .venv-newest
	.venv-newest/bin/pip install --quiet --upgrade -e ".[dev]"
	touch $@

clean:
	rm -rf .venv .venv-oldest .venv-newest build runs site
