# Two commands are enough: `make run` and `make test`. Both set everything up first.
# Other combinations, each with a VENV of its own (docs/reference/combinations.md):
#   make test DATABASE_URL=postgres://...
#   make test VENV=.venv-6 PYTHON=python3.13 DJANGO='>=6,<7'

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
DJANGO ?=
BIN := $(VENV)/bin
STAMP := $(VENV)/requirements.stamp
RUN_STAMP := $(VENV)/requirements-run.stamp
PIP = $(BIN)/python -m pip install --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help run test lint format demo bench faults

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# Installed again only when the list has changed since. What runs needs less than what tests: a first `make run` is short.
$(RUN_STAMP): requirements-run.txt
	@echo "Installing what runs into $(VENV) (once; some 40 MB to download)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) --progress-bar on -r $<
	@$(if $(DJANGO),$(PIP) 'Django$(DJANGO)')
	@touch $@

$(STAMP): requirements.txt $(RUN_STAMP)
	@echo "Installing the tools of the tests into $(VENV) (once)"
	@$(PIP) --progress-bar on -r $<
	@$(if $(DJANGO),$(PIP) 'Django$(DJANGO)')
	@touch $@

run: $(RUN_STAMP) ## start everything: Valkey, database, worker, beat, web (PORT=8000)
	@$(BIN)/python manage.py up

lint: $(STAMP) ## check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy --strict delivery

format: $(STAMP) ## put imports and layout right
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

test: lint ## check style and types, then run every test on real parts
	# Test files side by side: most of their time is waiting for real processes. tests/harness repeats what failed once,
	# alone, and names what passes only then FLAKY; runs the part that depends on the database on PostgreSQL too, where
	# one can be started; and holds the coverage to the floors in pyproject.toml.
	$(BIN)/python -m pytest -p tests.harness -n 3 --dist loadfile --cov=delivery --cov-branch --cov-report=

demo: $(RUN_STAMP) ## move FILE=path (64 MiB are generated where none is given) through cut connections, checked
	@$(BIN)/python -m demo $(if $(FILE),"$(FILE)")

bench: $(STAMP) ## measure against nginx, tus and others (ONLY=part of a row's name, QUICK=1)
	@$(BIN)/python -m bench $(if $(ONLY),--only $(ONLY)) $(if $(QUICK),--quick)

faults: $(STAMP) ## break the stack while transfers run, N times each way (N=5, ONLY=part of a cell's name, SEED=)
	@$(BIN)/python -m faults --trials $(or $(N),5) $(if $(ONLY),--only "$(ONLY)") $(if $(SEED),--seed $(SEED))
