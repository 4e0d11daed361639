# The user's interface. `make help` lists the targets.

SUITE ?= bench/configs/nano.yaml
PYTHON := python3
BIN := .venv/bin
ABLATIONS := kl equalizer noise setting decode
CONTROLS := nano_control_gold nano_control_shuffled

# One thread per process: small models run faster, and reductions stay in order.
export OMP_NUM_THREADS := 1
# Nothing of the caller's Python leaks into the environment.
export PYTHONNOUSERSITE := 1
unexport PYTHONPATH PYTHONHOME

.DEFAULT_GOAL := help
.PHONY: faults help setup demo reproduce-table reproduce ablations table figures report plans test test-gpu test-weights fuzz check docs docs-pages departures bench-speed format clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' Makefile

setup: .venv/.ready ## create .venv and install the pinned versions

.venv/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or newer is needed, but '$(PYTHON)' is missing or older. Name another: make setup PYTHON=python3.12" >&2; exit 1; }
	@$(BIN)/python -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install "$$(grep '^torch==' requirements.lock)" "$$(grep '^torchvision==' requirements.lock)"
	$(BIN)/python -m pip install -r requirements.lock
	$(BIN)/python -m pip install --no-deps --no-build-isolation -e .
	@touch $@

demo: ## a demonstration in about five minutes on two cores: two rows of nano with one seed, their table and their report
	@$(MAKE) --no-print-directory report SUITE=nano_demo

reproduce-table: setup ## train every row of SUITE (default: the nano suite) and print its table
	@$(BIN)/bench run $(SUITE); status=$$?; \
	  if [ $$status -gt 1 ]; then exit $$status; fi; \
	  $(BIN)/bench table $(SUITE) && exit $$status

ablations: setup ## run the five ablation suites on nano (hours; runs they share are trained once), tables and figures
	@for name in $(ABLATIONS); do suite=bench/configs/nano_$$name.yaml; \
	  $(BIN)/bench run $$suite && $(BIN)/bench table $$suite && $(BIN)/bench figures $$suite || exit $$?; done

reproduce: reproduce-table ## everything on nano: the main suite, its controls, the five ablations (hours), with tables, figures and reports
	$(BIN)/bench gallery nano
	@for name in $(CONTROLS) $(addprefix nano_,$(ABLATIONS)) nano; do \
	  $(BIN)/bench run $$name && $(BIN)/bench table $$name && $(BIN)/bench figures $$name && $(BIN)/bench report $$name || exit $$?; done
	$(BIN)/bench verify

table: setup ## the table of SUITE from the runs that exist
	$(BIN)/bench table $(SUITE)

figures: setup ## the figures of SUITE and their numbers, from the runs that exist
	$(BIN)/bench figures $(SUITE)

plans: setup ## write results/plans.md: what each suite will cost
	$(BIN)/python -m tools.plans_page

report: reproduce-table ## one HTML page about SUITE, whose missing runs are trained first: results/<suite>/report.html
	$(BIN)/bench report $(SUITE)

test: setup ## the tests that need neither a GPU nor downloaded weights
	$(BIN)/python -m pytest -n 2

test-gpu: setup ## the tests of a GPU (of two for NCCL): parity with the CPU, bfloat16, memory, options
	$(BIN)/python -m pytest -n 0 -m gpu tests/gpu

test-weights: setup ## released checkpoints in CHECKPOINTS=FOLDER: files, golden scores, a short video, what the judge prefers
	CHECKPOINTS=$(or $(CHECKPOINTS),checkpoints) $(BIN)/python -m pytest -n 0 -m weights tests/weights

fuzz: setup ## read thousands of damaged files and options (10 minutes; FUZZ_EXAMPLES inputs of each kind): one sentence or acceptance
	FUZZ_EXAMPLES=$${FUZZ_EXAMPLES:-1000} $(BIN)/python -m pytest -n 0 tests/fuzz

faults: setup ## all long tests: kill runs at random moments, fill disks, remove folders (FAULT_KILLS=N sets the kills), compile; 25 minutes
	FAULT_KILLS=$${FAULT_KILLS:-40} $(BIN)/python -m pytest tests/faults -m "" -n 2 --dist=worksteal -s
	$(BIN)/python -m pytest tests/unit -m long -n 2

check: setup ## lint, format, types, import contracts, spelling
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/codespell

docs: .venv/.docs ## build the documentation site into site/; a broken link or reference fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict # not --quiet, which hides the warnings from --strict

.venv/.docs: .venv/.ready
	$(BIN)/python -m pip install --no-build-isolation --constraint requirements.lock -e '.[docs]'
	@touch $@

docs-pages: setup ## write the reference pages that are made from the code: docs/reference/{cli,suite-yaml,api}.md
	$(BIN)/python -m tools.docs_pages

departures: setup ## write methods/DEPARTURES.md: where our code departs from a paper or its released code
	$(BIN)/python -m tools.departures

bench-speed: setup ## measure speed and memory (half an hour; a GPU section where there is a GPU): results/performance.md
	$(BIN)/python -m tools.speed $(SPEED)

format: setup ## apply the formatter and the safe fixes
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean: ## remove caches and build output; results and .venv stay
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find bench methods evaluators tests -name __pycache__ -type d -prune -exec rm -rf {} +
