# The lessons from one command: `make run` on a fresh clone sets everything up first.
# Needs Python 3.11 or newer, with its venv module, and a network for the first set-up.

# The interpreter that builds .venv: PYTHON=..., else the first of these that is new enough.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))" 2>/dev/null \
	&& echo $$p && break; done)

PY := .venv/bin/python
INSTALL := -m pip install --quiet --disable-pip-version-check
JOBS_OPTION = $(if $(JOBS), --jobs $(JOBS))

# What each set-up installs: the extras of pyproject.toml. It is done once, when a target needs it.
EXTRAS_run := run
EXTRAS_lab := run,lab
EXTRAS_test := run,lab,test,cluster,classroom,site,pictures
EXTRAS_classroom := run,classroom
EXTRAS_site := run,site
EXTRAS_dev := dev

RUN = $(PY) -m tools.run$(if $(MODEL), --model "$(MODEL)")$(if $(LESSON), --lesson $(LESSON))$(if $(DEVICE), --device "$(DEVICE)")$(JOBS_OPTION)

.DEFAULT_GOAL := help
.PHONY: help run test test-long test-versions test-oldest test-newest lab execute compare student assignment grade \
	publish site bench scaling gpu-check lint clean

help:
	@echo "make run                 run every lesson; results go to results/<model>/"
	@echo "make run LESSON=03       run one lesson, or several: LESSON=\"02 03\""
	@echo "make run MODEL=gpt2      run on another model: a name, a hub id or a folder"
	@echo "make run DEVICE=cpu      choose the device: cpu, cuda, mps"
	@echo "make run JOBS=1          one lesson after the other, not side by side"
	@echo "make lab                 open the lessons in JupyterLab; FOLDER=. opens the whole project"
	@echo "make student             your own copy of the lessons, exercises empty, in student/"
	@echo "make test                test the helpers and every lesson on the packaged model"
	@echo "make test-long           what takes too long for make test: more architectures and examples"
	@echo "make test-versions       test the helpers with the oldest and the newest packages allowed"
	@echo "make execute             run the lessons and save their outputs in notebooks/"
	@echo "make compare MODELS=\"smollm2-135m gpt2\"   put models side by side"
	@echo "make assignment LESSON=03               student, instructor and autograder versions"
	@echo "make grade SUBMISSIONS=folder           grade the notebooks of a class, in a box (TRUST=1: without)"
	@echo "make publish REPO=https://...           stamp badges and address into a copy you host"
	@echo "make site                               the series as a static book, in site/"
	@echo "make bench               time the engine beside other tools, half an hour (QUICK=1: try it)"
	@echo "make scaling             how its cost grows, five minutes"
	@echo "make gpu-check           does a GPU give what the CPU gives, and how fast: eight minutes"
	@echo "make lint                check the code's style"
	@echo "make clean               remove .venv, results/, site/ and what tests leave; the model stays"
	@echo "PYTHON=python3.12 with the first of these chooses the interpreter."

run: .venv/.ready-run
	@$(RUN)

execute: .venv/.ready-run
	@$(RUN) --inplace
	@$(PY) -m tools.figures

lab: .venv/.ready-lab
	@$(if $(MODEL),SUBSPACE_ILLUSION_MODEL="$(MODEL)") $(if $(DEVICE),SUBSPACE_ILLUSION_DEVICE="$(DEVICE)") \
	$(PY) -m jupyterlab --notebook-dir="$(or $(FOLDER),notebooks)"

test: .venv/.ready-test
	@$(PY) -m tools.testing$(JOBS_OPTION)

test-long: .venv/.ready-test
	@$(PY) -m tools.testing --long$(JOBS_OPTION)

# The ends of the ranges in pyproject.toml, without the lessons, each in a fresh environment. torch
# stays the tested one: on Linux an open range would fetch a CUDA build of several gigabytes.
test-versions: test-oldest test-newest

test-oldest: PACKAGES = -r requirements-oldest.txt
test-newest: PACKAGES = $(shell grep "^torch==" requirements-tested.txt)
test-oldest test-newest: test-%:
	$(check-python)
	@echo "Setting up .venvs/$* with $(PYTHON) (a few minutes) ..."
	@"$(PYTHON)" -m venv --clear .venvs/$*
	@.venvs/$*/bin/python $(INSTALL) $(PACKAGES) -e ".[run,lab,test]"
	@.venvs/$*/bin/python -m tools.testing tests$(JOBS_OPTION)

compare: .venv/.ready-run
	$(if $(MODELS),,$(error say which: make compare MODELS="smollm2-135m gpt2"))
	@$(PY) -m tools.compare $(MODELS)

student: .venv/.ready-run
	@$(PY) -m tools.classroom.student$(if $(OUT), --out "$(OUT)")

assignment: .venv/.ready-classroom
	$(if $(LESSON),,$(error say which lesson: make assignment LESSON=03))
	@$(PY) -m tools.classroom.assignment --lesson $(LESSON)$(if $(SEED), --seed $(SEED))$(if $(OUT), --out "$(OUT)")

grade: .venv/.ready-classroom
	$(if $(SUBMISSIONS),,$(error say where the notebooks are: make grade SUBMISSIONS=folder))
	@$(PY) -m tools.classroom.grade --submissions "$(SUBMISSIONS)"$(if $(TRUST), --trust)$(if $(LESSON), --lesson $(LESSON))$(if $(SEED), --seed $(SEED))$(if $(OUT), --out "$(OUT)")

publish: .venv/.ready-run
	$(if $(REPO)$(CLEAR),,$(error say where the copy will be: make publish REPO=https://github.com/you/copy))
	@$(PY) -m tools.publish $(if $(CLEAR),--clear,--repo "$(REPO)"$(if $(BRANCH), --branch "$(BRANCH)"))

# From nothing, since a new lesson enters the sidebar of a fresh build only.
site: .venv/.ready-site
	@rm -rf site build/doctrees
	@$(PY) -m sphinx -q -b html -c docs/book -d build/doctrees -W --keep-going . site
	@echo "The book is in site/: open site/index.html"

bench: .venv/.ready-run
	@$(PY) -m benchmarks.bench$(if $(QUICK), --quick)$(if $(OUT), --out "$(OUT)")

scaling: .venv/.ready-run
	@$(PY) -m benchmarks.scaling

gpu-check: .venv/.ready-run
	@$(PY) -m benchmarks.gpu$(if $(DEVICE), --device "$(DEVICE)")$(if $(OUT), --out "$(OUT)")

lint: .venv/.ready-dev
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m ruff check --line-length 100 notebooks/*.ipynb

clean:
	rm -rf .venv .venvs benchmarks/.venvs results site build .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

define check-python
	@if [ -z "$(PYTHON)" ]; then \
		echo "No Python 3.11 or newer with its venv module was found." >&2; \
		echo "Install one (Debian, Ubuntu: apt install python3 python3-venv) or name it:" >&2; \
		echo "    make run PYTHON=/path/to/python3" >&2; exit 1; fi
	@"$(PYTHON)" -c "import sys; sys.exit(sys.version_info < (3, 11))" || { \
		echo "$(PYTHON) cannot be used: Python 3.11 or newer is needed. Name one: PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" -c "import venv, ensurepip" 2>/dev/null || { \
		echo "$(PYTHON) has no venv module (Debian, Ubuntu: apt install python3-venv)." >&2; exit 1; }
endef

# One stamp for each set-up, written last, so that an interrupted one is done again.
.PRECIOUS: .venv/.ready-%
.venv/.ready-%: requirements-tested.txt pyproject.toml
	$(check-python)
	@echo "Setting up .venv with $(PYTHON) for: $(EXTRAS_$*) (once, a few minutes) ..."
	@"$(PYTHON)" -m venv .venv
	@$(PY) $(INSTALL) -c requirements-tested.txt -e ".[$(EXTRAS_$*)]"
	@touch $@
	@echo "  ready"
