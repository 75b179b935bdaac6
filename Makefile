# Each goal sets up what it needs: clone, `make book` or `make test`, nothing by hand.
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# Any Python >= 3.11 will do: `make book PYTHON=python3.13` names one.
PYTHON ?= $(firstword $(foreach p,python3 python3.13 python3.12 python3.11 python3.14 python,$(shell $(p) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $(p))) python3)
BIN := .venv/bin
READY := .venv/ready
CODE := hitchhiker tests benchmarks book/_ext
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: help book test notebooks lint bench figure course clean

help:  ## this list
	@sed -nE 's/^([a-z]+):.*## (.*)$$/make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

$(READY): requirements.txt pyproject.toml
	@python="$(PYTHON)"; \
	if ! $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	  echo "Python >= 3.11 is needed, and $$python is $$($$python --version 2>&1): run make with PYTHON=python3.x" >&2; exit 2; \
	fi; \
	echo "setting up .venv with $$($$python --version) (once, a minute or two)"; \
	[ -x $(BIN)/python ] || $$python -m venv .venv
	@$(BIN)/python -m pip install -q -r requirements.txt -e '.[all,course]'
	@touch $@

book: $(READY)  ## the executed book in _build/html
	@$(BIN)/python book/_ext/build_book.py

test: lint book  ## everything that CI checks: style, types, module, notebooks, pairing, the built pages
	@HITCHHIKER_SITE=required $(PYTEST) --doctest-modules --nbval-lax --ignore hitchhiker/kernels/triton.py tests hitchhiker $(wildcard book/*.ipynb)

notebooks: $(READY)  ## book/*.ipynb, made and executed from book/*.md (only what has changed)
	@$(BIN)/python book/_ext/notebooks.py

lint: $(READY)  ## ruff and mypy
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/mypy

bench: $(READY)  ## samplers and training steps beside the published algorithms, into data/results/bench (minutes)
	@for name in samplers growth training_step; do $(BIN)/python benchmarks/$$name.py; done

figure: $(READY)  ## the README's figure, drawn again from the chapter that shows it
	@$(BIN)/python book/_ext/readme_figure.py

course: $(READY)  ## the problem sets (student, instructor, autograder) and twelve made-up submissions, into course/
	@$(BIN)/hitchhiker course build --out course --example ps1

clean:  ## remove the environment and everything built
	@rm -rf .venv _build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
