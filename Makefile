PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/installed
AUDIT := build/audit
TEST_PROCESSES ?= 2
SOAK_SECONDS ?= 600
SOAK_SEED ?= 1
SOAK_KILLS ?= 1000
SOAK_POINTS ?= 10000
# One thread a process, and the tests and all commands that they start may keep their bytecode.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist worksteal

.PHONY: demo test soak docs bench audit wheels clean

demo: $(INSTALLED)  ## Build the demo data, train PUMA on it, print the table, write a page, index the images
	$(BIN)/unimetric demo

test: $(INSTALLED)  ## Lint, types and every test but the soak tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo & floors=$$!; $(BIN)/mypy && wait $$floors
	$(PYTEST)

soak: $(INSTALLED)  ## Random kills and damaged files for SOAK_SECONDS, from the seed SOAK_SEED on, the longest tests, and all examples of properties
	SOAK_SECONDS=$(SOAK_SECONDS) SOAK_SEED=$(SOAK_SEED) SOAK_KILLS=$(SOAK_KILLS) SOAK_POINTS=$(SOAK_POINTS) $(PYTEST) -m 'soak or hypothesis'

docs: $(INSTALLED)  ## Build the documentation's site into build/site
	$(BIN)/mkdocs build

bench: $(INSTALLED)  ## Every benchmark in a short form, at most 15 minutes on two cores, and one table
	$(BIN)/python benchmarks/all.py

audit: $(INSTALLED)  ## Licences and known weaknesses of all that is installed: information, which never fails
	@test -x $(AUDIT)/bin/pip-audit || { $(PYTHON) -m venv $(AUDIT) \
	  && $(AUDIT)/bin/python -m pip install --quiet --disable-pip-version-check pip-licenses pip-audit; } \
	  || echo "the tools could not be installed: is there a network?"
	@$(AUDIT)/bin/pip-licenses --python $(BIN)/python --from=mixed --order=license || echo "no list of licences"
	@$(AUDIT)/bin/pip-audit --progress-spinner off --timeout 10 --path "$$($(BIN)/python -c \
	  'import sysconfig; print(sysconfig.get_path("purelib"))')" || echo "see above: weaknesses, or no answer"

wheels:  ## Build the wheel and the sdist into dist, and run a short demo with the wheel in an empty environment
	rm -rf dist build/wheel build/lib
	$(PYTHON) -m venv build/wheel
	build/wheel/bin/python -m pip install --quiet --disable-pip-version-check build twine
	build/wheel/bin/python -m build --quiet --outdir dist .
	build/wheel/bin/twine check --strict dist/*
	$(PYTHON) tests/try_wheel.py dist/*.whl

$(INSTALLED): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "unimetric needs Python 3.10 or later, this is " + sys.version.split()[0])'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	touch $@

clean:  ## Remove the environment and what tools left behind
	rm -rf .venv build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
