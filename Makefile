# The commands a person types. Each installs what it needs first; what else there is: `.venv/bin/nox --list`.
PYTHON ?= python3
VENV = .venv
INSTALL = $(VENV)/bin/pip install --constraint constraints.txt
PYTEST = OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest
# Of `make fuzz`: how many calls, the most minutes, and what else tests/fuzz/__main__.py takes, such as `--seed 7`.
CALLS ?= 20000
MINUTES ?= 60
ARGS ?=

.PHONY: help demo demo-web test lint docs fuzz test-transformers test-gpu clean

help:  ## List the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 24

demo: $(VENV)/.demo  ## Answer questions about real images with the embedded checkpoint at several budgets
	$(VENV)/bin/python examples/answer_at_budgets.py

demo-web: $(VENV)/.nox  ## Serve a web page to ask about pictures with a slider for the visual tokens
	$(VENV)/bin/nox -s demo_web

test: $(VENV)/.installed  ## Run the test suite
	$(PYTEST) -m "not slow" -n logical --maxprocesses 4

lint: $(VENV)/.installed  ## Check style and types
	$(VENV)/bin/nox -s lint
	$(VENV)/bin/mypy

docs: $(VENV)/.nox  ## Build the documentation as a site, runs/site/index.html
	$(VENV)/bin/nox -s docs

fuzz: $(VENV)/.installed  ## Compare 20,000 random calls with an oracle (a quarter of an hour); CALLS=, MINUTES=, ARGS="--seed 7"
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m tests.fuzz --calls $(CALLS) --minutes $(MINUTES) $(ARGS)

test-transformers: $(VENV)/.installed  ## Run transformers' own suites over LLaVA and our models (minutes); SUITES=FOLDER holds them
	$(VENV)/bin/nox -s transformers_suites -- $(SUITES)

test-gpu: $(VENV)/.installed  ## Run the tests that need a GPU; they skip where there is none, or no FlashAttention
	$(PYTEST) -m gpu

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

# Whoever types `make demo` for a look sees what it waits for, and gets no more than that needs.
$(VENV)/.demo: constraints.txt setup.py | $(VENV)/bin/pip
	@echo "Installing mqt_llava with torch and transformers into $(VENV), this once. Minutes, most of them for torch."
	$(INSTALL) --editable .
	touch $@

$(VENV)/.nox: constraints.txt | $(VENV)/bin/pip
	$(INSTALL) --quiet nox
	touch $@

$(VENV)/.installed: constraints.txt setup.py | $(VENV)/bin/pip
	$(INSTALL) --quiet nox --editable ".[dev]"
	touch $@ $(VENV)/.demo $(VENV)/.nox

clean:
	rm -rf $(VENV) .nox runs build dist src/*.egg-info
