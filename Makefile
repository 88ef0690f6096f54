# Everything runs in .venv, made on first use. A fresh Debian or Ubuntu needs python3 (3.11 or newer), python3-venv, make.
PYTHON ?= python3
PIP_FLAGS ?=
THREADS ?= 2
BIN := .venv/bin
INSTALLED := .venv/.installed
DEMO := demo_project
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'not science' -n $(THREADS) --dist loadfile --no-loadscope-reorder

.PHONY: install demo test coverage lint format types bench bench-cryodrgn science science-table docs docs-site clean

install: $(INSTALLED)

$(INSTALLED): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python 3.11 or newer is needed, %s is too old; try make PYTHON=python3.12" % sys.version.split()[0])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --constraint constraints.txt $(PIP_FLAGS) --editable '.[test]'
	touch $@

# a simulated antibody with one moving arm, refined; ends with a table of rigid against flexible. The settings are given,
# to be quick: left out, the data choose them
demo: $(INSTALLED)
	rm -rf $(DEMO)
	$(BIN)/flex-job simulate --o $(DEMO)
	cd $(DEMO) && ../$(BIN)/relion_flex_refine --o External/job003/ --in_parts Refine3D/job001/run_data.star \
		--latent_dims 1 --rigidity 4 --band_end 0.8 --epochs 12 --model_fsc truth/model.cif --j $(THREADS)
	@echo "Open $(DEMO)/External/job003/report.html; or bend the map and pick particles: $(BIN)/flex-job explore $(DEMO)/External/job003"

# whole files at a time in as many processes as there are threads to use, one thread each; in their order, whose first
# files are the longest
test: lint types
	$(PYTEST)

# the same, and which lines ran; a fifth slower
coverage: $(INSTALLED)
	$(PYTEST) --cov --cov-report=term

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(INSTALLED)
	$(BIN)/mypy

# ratios and times on this machine; never part of the tests
bench: $(INSTALLED)
	for file in tests/benchmarks/bench_*.py; do $(BIN)/python $$file || exit 1; done

# side by side with cryoDRGN on the same particles, in an environment of its own; about half an hour
bench-cryodrgn: $(INSTALLED)
	$(BIN)/python tests/benchmarks/against_cryodrgn.py --pip-flags="$(PIP_FLAGS)"

# the figures of README and docs on larger data, other methods beside ours: see docs/science.md. Cases that are done are
# not run again; SCIENCE_PARTICLES=6000 makes them larger, SCIENCE_AUTO=no takes the usual settings, SCIENCE_PEERS=no leaves
# the other methods out
science: $(INSTALLED)
	PIP_FLAGS="$(PIP_FLAGS)" $(BIN)/python -m pytest -m science -s

# the same cases alone, and the tables of docs/science.md from what came out
science-table: $(INSTALLED)
	PIP_FLAGS="$(PIP_FLAGS)" $(BIN)/python -m pytest -m science -s tests/science
	PYTHONPATH=tests $(BIN)/python -m science.table docs/science.md

docs: $(INSTALLED)
	$(BIN)/flex-job docs > docs/parameters.md
	$(BIN)/flex-job docs --names > docs/names.md
	$(BIN)/python docs/extensions/limits_picture.py

# the pages as a site: build/site/docs/index.html; warnings are errors
docs-site: $(INSTALLED)
	$(BIN)/python -m sphinx -W --keep-going -q -b html -c docs . build/site

clean:
	rm -rf .venv $(DEMO) build *.egg-info .coverage .mypy_cache .pytest_cache .ruff_cache
