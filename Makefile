# One command each. The first run of any of them makes .venv and installs the pinned set; a later run
# finds it ready. Needs make, Python 3.11 or newer and pip; no root, no GPU, no model hub.
#
#   PYTHON=/path/to/python3     another interpreter than the first suitable one on the PATH
#   TORCH_INDEX=URL             an index that has a smaller torch, such as PyTorch's own CPU-only index;
#                               where it cannot be reached, pip's configured index is used
#   VIDEO=clip.mp4              the video that `make demo` samples, instead of a rendered one

SHELL := /bin/sh
.DEFAULT_GOAL := help
.PHONY: help demo setup test check bench clean

BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
RUN := .venv/.ready-run
DEVELOP := .venv/.ready-develop
SUITABLE := import sys; sys.exit(sys.version_info < (3, 11))

help:
	@echo "make demo     sample 16 motions from a rendered clip, or from VIDEO=clip.mp4, into out/demo"
	@echo "make test     set up, lint, check types and imports, run every test"
	@echo "make check    ruff, pyright, import-linter"
	@echo "make bench    what a hypothesis costs; fails where a ratio falls short of the committed baseline"
	@echo "make setup    only set up .venv for development"
	@echo "make clean    remove .venv and everything that was generated"

# The world is one of those that the packaged model was not trained on.
demo: $(RUN)
ifeq ($(VIDEO),)
	$(BIN)/python -m diffusion4d.scenes out/demo/clip.mp4 --seed 2147483654
	$(BIN)/diffusion4d sample out/demo/clip.mp4 -k 16 -o out/demo
else
	$(BIN)/diffusion4d sample "$(VIDEO)" -k 16 -o out/demo
endif

setup: $(DEVELOP)

# The tests run on what a user gets: the wheel, installed beside the checkout. While developing,
# .venv/bin/pytest runs them on the checkout itself.
test: check
	rm -rf build
	$(PIP) install --quiet --no-deps --no-build-isolation --target build/installed .
	PYTHONPATH="$(CURDIR)/build/installed" $(BIN)/pytest

check: $(DEVELOP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/lint-imports

# QUICK=1 takes fewer repetitions, sizes and worlds, and writes beside the committed results.
bench: $(DEVELOP)
	OMP_NUM_THREADS=1 $(BIN)/python experiments/bench/run.py --gate $(if $(QUICK),--quick)

clean:
	rm -rf .venv out build dist *.egg-info .pytest_cache .ruff_cache .import_linter_cache .hypothesis

# What the main job needs, and on top of it what developing needs.
$(RUN): EXTRAS := train
$(DEVELOP): EXTRAS := test,check

# pip killed half-way can leave a package that looks installed and is not. So a marker says that an
# installation is under way; whoever finds it starts from an empty folder.
$(RUN) $(DEVELOP): pyproject.toml constraints.txt
	@if [ -e .venv/.installing ]; then echo "the last set-up did not finish: starting again"; rm -rf .venv; fi
	@mkdir -p .venv && touch .venv/.installing
	@if [ ! -x $(BIN)/python ] || ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	    for python in $(PYTHON) python3.11 python3 python3.12 python3.13; do \
	        "$$python" -c '$(SUITABLE)' 2>/dev/null && break; \
	        python=; \
	    done; \
	    if [ -z "$$python" ]; then \
	        echo "need Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=/path/to/python3"; exit 1; \
	    fi; \
	    echo "making .venv with $$("$$python" --version)"; \
	    "$$python" -m venv .venv >/dev/null 2>&1 || { \
	        echo "this Python has no ensurepip: using its own pip"; \
	        "$$python" -m venv --without-pip .venv && \
	        "$$python" -m pip --python $(BIN)/python install --quiet pip; \
	    }; \
	fi
# torch comes first and alone, so that another index can serve it without serving anything else.
	@if [ -n "$(TORCH_INDEX)" ]; then \
	    $(PIP) install --quiet -c constraints.txt --no-deps --retries 1 --timeout 20 \
	        --index-url "$(TORCH_INDEX)" torch || \
	    echo "no suitable torch from $(TORCH_INDEX): using pip's configured index"; \
	fi
	$(PIP) install --quiet -c constraints.txt torch setuptools
# Newer pips pass on a page of setuptools' general advice on editable installations.
	PYTHONWARNINGS=ignore::UserWarning $(PIP) install --quiet -c constraints.txt \
	    --no-build-isolation -e '.[$(EXTRAS)]'
	@rm .venv/.installing && touch $(RUN) $@
