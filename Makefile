# make quickstart   text -> tokens -> a trained model -> a Hugging Face model, in at most 10 minutes
# make test         everything that must hold: lint, format, types, layers, docs, tests
# make docs         write the generated pages of docs/ anew
# make dist         the wheel and the source archive
# make clean        remove what the above made, the environment included
#
# Only Python 3.10 or newer and make are needed. VENV=DIR puts the environment elsewhere.

VENV ?= .venv
PYTHON = $(VENV)/bin/python
WORKERS ?= 2

# One thread for each test worker: torch's threads, when they outnumber the cores, wait for each other.
ONE_THREAD = OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.PHONY: quickstart test lint format types layers docs docs-fresh pytest dist clean environment

quickstart: environment
	@PATH="$(abspath $(VENV))/bin:$$PATH" scripts/quickstart.sh

test: lint types layers docs-fresh pytest

lint: environment
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

format: environment
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

types: environment
	$(PYTHON) -m mypy

layers: environment
	$(VENV)/bin/lint-imports

docs: environment
	$(PYTHON) docs/generate.py

docs-fresh: environment
	$(PYTHON) docs/generate.py --check

# A file's tests stay with one worker: what they share, such as ranks that were started once, is then made once.
pytest: environment
	$(ONE_THREAD) $(PYTHON) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

dist: environment
	$(PYTHON) -m build --no-isolation

clean:
	rm -rf $(VENV) quickstart dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

environment:
	@scripts/install.sh $(VENV)
