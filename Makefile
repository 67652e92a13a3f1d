# The lessons from one command: `make run` on a fresh clone sets everything up first.
# Needs Python 3.10 or newer, with its venv module, and a network for the first set-up.

# The interpreter that builds .venv: PYTHON=..., else the first of these that is new enough.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3 python3.10; do \
	$$p -c "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))" 2>/dev/null \
	&& echo $$p && break; done)

PY := .venv/bin/python
READY := .venv/.ready
INSTALL := -m pip install --quiet --disable-pip-version-check

RUN = $(PY) -m helpers.run$(if $(MODEL), --model "$(MODEL)")$(if $(LESSON), --lesson $(LESSON))$(if $(DEVICE), --device "$(DEVICE)")

.DEFAULT_GOAL := help
.PHONY: help run test test-versions test-oldest test-newest lab execute compare assignment grade \
	publish site bench scaling lint clean

help:
	@echo "make run                 run every lesson; results go to results/<model>/"
	@echo "make run LESSON=03       run one lesson, or several: LESSON=\"02 03\""
	@echo "make run MODEL=gpt2      run on another model: a name, a hub id or a folder"
	@echo "make run DEVICE=cpu      choose the device: cpu, cuda, mps"
	@echo "make lab                 open the lessons in JupyterLab"
	@echo "make test                test the helpers and every lesson on the packaged model"
	@echo "make test-versions       test the helpers with the oldest and the newest packages allowed"
	@echo "make execute             run the lessons and save their outputs in notebooks/"
	@echo "make compare MODELS=\"smollm2-135m gpt2\"   put models side by side"
	@echo "make assignment LESSON=03               student, instructor and autograder versions"
	@echo "make grade SUBMISSIONS=folder           grade the notebooks of a class, in a box (TRUST=1: without)"
	@echo "make publish REPO=https://...           stamp badges and address into a copy you host"
	@echo "make site                               the series as a static book, in site/"
	@echo "make bench               time the engine beside other tools, half an hour"
	@echo "make scaling             how its cost grows, five minutes"
	@echo "make lint                check the code's style"
	@echo "make clean               remove .venv, results/, site/ and caches"
	@echo "PYTHON=python3.12 with the first of these chooses the interpreter."

run: $(READY)
	@$(RUN)

execute: $(READY)
	@$(RUN) --inplace
	@$(PY) -m helpers.figures

lab: $(READY)
	@$(if $(MODEL),SUBSPACE_ILLUSION_MODEL="$(MODEL)") $(if $(DEVICE),SUBSPACE_ILLUSION_DEVICE="$(DEVICE)") \
	$(PY) -m jupyterlab --notebook-dir=notebooks

# What the lessons record while they are tested goes to a folder that is thrown away.
TEST = results=$$(mktemp -d) && trap 'rm -rf "$$results"' EXIT && \
	env -u SUBSPACE_ILLUSION_MODEL SUBSPACE_ILLUSION_RESULTS="$$results" \
	SUBSPACE_ILLUSION_STATIC=1 TQDM_DISABLE=1

test: $(READY)
	@$(TEST) $(PY) -m pytest tests notebooks --nbval-lax --nbval-current-env --nbval-cell-timeout=900

# The ends of the ranges in pyproject.toml, without the lessons, each in a fresh environment. torch
# stays the tested one: on Linux an open range would fetch a CUDA build of several gigabytes.
test-versions: test-oldest test-newest

test-oldest: PACKAGES = -r requirements-oldest.txt
test-newest: PACKAGES = $(shell grep "^torch==" requirements-tested.txt)
test-oldest test-newest: test-%:
	$(check-python)
	@echo "Setting up .venvs/$* with $(PYTHON) (a few minutes) ..."
	@"$(PYTHON)" -m venv --clear .venvs/$*
	@.venvs/$*/bin/python $(INSTALL) $(PACKAGES) -e ".[lab,test]"
	@$(TEST) .venvs/$*/bin/python -m pytest tests

compare: $(READY)
	$(if $(MODELS),,$(error say which: make compare MODELS="smollm2-135m gpt2"))
	@$(PY) -m helpers.compare $(MODELS)

assignment: $(READY)
	$(if $(LESSON),,$(error say which lesson: make assignment LESSON=03))
	@$(PY) -m tools.classroom.assignment --lesson $(LESSON)$(if $(SEED), --seed $(SEED))$(if $(OUT), --out "$(OUT)")

grade: $(READY)
	$(if $(SUBMISSIONS),,$(error say where the notebooks are: make grade SUBMISSIONS=folder))
	@$(PY) -m tools.classroom.grade --submissions "$(SUBMISSIONS)"$(if $(TRUST), --trust)$(if $(LESSON), --lesson $(LESSON))$(if $(SEED), --seed $(SEED))$(if $(OUT), --out "$(OUT)")

publish: $(READY)
	$(if $(REPO)$(CLEAR),,$(error say where the copy will be: make publish REPO=https://github.com/you/copy))
	@$(PY) -m helpers.publish $(if $(CLEAR),--clear,--repo "$(REPO)"$(if $(BRANCH), --branch "$(BRANCH)"))

# From nothing, since a new lesson enters the sidebar of a fresh build only.
site: $(READY)
	@rm -rf site build/doctrees
	@$(PY) -m sphinx -q -b html -c docs/book -d build/doctrees -W --keep-going . site
	@echo "The book is in site/: open site/index.html"

bench: $(READY)
	@$(PY) -m benchmarks.bench$(if $(QUICK), --quick)$(if $(OUT), --out "$(OUT)")

scaling: $(READY)
	@$(PY) -m benchmarks.scaling

lint: $(READY)
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check --line-length 88 notebooks/*.ipynb

clean:
	rm -rf .venv .venvs benchmarks/.venvs results site build .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

define check-python
	@if [ -z "$(PYTHON)" ]; then \
		echo "No Python 3.10 or newer with its venv module was found." >&2; \
		echo "Install one (Debian, Ubuntu: apt install python3 python3-venv) or name it:" >&2; \
		echo "    make run PYTHON=/path/to/python3" >&2; exit 1; fi
	@"$(PYTHON)" -c "import sys; sys.exit(sys.version_info < (3, 10))" || { \
		echo "$(PYTHON) cannot be used: Python 3.10 or newer is needed. Name one: PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" -c "import venv, ensurepip" 2>/dev/null || { \
		echo "$(PYTHON) has no venv module (Debian, Ubuntu: apt install python3-venv)." >&2; exit 1; }
endef

# Written last, so that an interrupted set-up is done again.
$(READY): requirements-tested.txt pyproject.toml
	$(check-python)
	@echo "Setting up .venv with $(PYTHON) (once, a few minutes) ..."
	@"$(PYTHON)" -m venv .venv
	@echo "  installing the tested packages ..."
	@$(PY) $(INSTALL) -r requirements-tested.txt -e ".[lab,test,dev,classroom,site]"
	@touch $@
	@echo "  ready"
