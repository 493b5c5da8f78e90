# Each target does its own set-up in .venv, which takes a moment when it is already there.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: quickstart test coverage test-fast test-saebench test-oldest test-newest test-gpu lint docs notebooks wheel clean

quickstart: .venv/installed
	$(BIN)/vsae quickstart

# A process for each core, each with one thread; a file's tests stay together. PYTHONDONTWRITEBYTECODE is emptied, so that
# processes that tests start find .pyc files. `make docs` runs the tests of the guide, and .ci/run those that are marked ci.
TESTS = OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE PYTHONDONTWRITEBYTECODE=
XDIST = -n auto --dist loadfile --no-loadscope-reorder
PYTEST = $(TESTS) $(BIN)/python -m pytest $(XDIST)
TESTED = not guide and not ci
test: .venv/installed-dev
	$(PYTEST) -m "$(TESTED)"

# With those of the guide, and how many lines they run. Below Python 3.14 that makes Python's own work up to three times
# slower, and imports take two thirds longer.
coverage: .venv/installed-dev
	$(PYTEST) --cov --cov-report= --cov-fail-under=97

# For the edit loop: the same without the tests that are marked slow or commands. DIR=features: one room.
test-fast: .venv/installed-dev
	$(PYTEST) -m "not slow and not commands" $(addprefix tests/,$(DIR))

# SAE Bench needs older versions than the core would get: an environment of its own, and the tests that are skipped without
# it. The libraries that read our exports are there, too: sae-dashboard and delphi without their dependencies, which hold
# transformers below 5 and need vllm.
# Those that meet dictionary_learning run a second time on its main branch, which calls itself 0.1.0 as
# PyPI's does and differs, where DICTIONARY_LEARNING_MAIN is a checkout of it.
UPSTREAM_TESTS = test_upstream_examples.py activations/test_buffer_upstream.py run_folder/test_weights.py \
	trainers/test_upstream.py trainers/test_base.py training/test_loop.py
test-saebench: .venv-saebench/installed
	$(TESTS) .venv-saebench/bin/python -m pytest $(XDIST) -m extra
ifdef DICTIONARY_LEARNING_MAIN
	PYTHONPATH=$(DICTIONARY_LEARNING_MAIN) OMP_WAIT_POLICY=PASSIVE .venv-saebench/bin/python -m pytest \
		$(addprefix tests/,$(UPSTREAM_TESTS))
else
	@echo "Skipped: upstream's main branch. Set DICTIONARY_LEARNING_MAIN to a checkout of it."
endif

# The core's tests on the oldest version of each dependency that setup.py allows, on Python 3.10 (newer
# ones have no wheels of these). uv, since pip can't choose the oldest. On a machine without a GPU,
# UV_TORCH_BACKEND=cpu spares 3 GB.
test-oldest: .venv-oldest/installed
	$(TESTS) .venv-oldest/bin/python -m pytest $(XDIST)

# The core's tests on the newest version of everything: of nnsight too, as uv sets aside upstream's bound, which
# holds it below 0.4. UV_TORCH_BACKEND as above.
test-newest: .venv-newest/installed
	$(TESTS) .venv-newest/bin/python -m pytest $(XDIST)

# On a GPU: agreement with the CPU, no waiting for the device, memory, and a whole run. About two
# minutes. Without a GPU every test is skipped and says so. The speed there is measured by
# `python -m experiments.speed.step_on_gpu bench`.
test-gpu: .venv/installed-dev
	CUDA_VISIBLE_DEVICES=$${CUDA_VISIBLE_DEVICES:-0} $(BIN)/python -m pytest tests/gpu -rs

# Last, whether the numbers of README and the guide are those of the raw results.
lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m experiments.recompute

# The guide in docs/, as a site in build/site. A dead link fails. Then its pages, its notebooks and the quickstart run,
# small. While you write, `.venv/bin/mkdocs serve` shows it.
docs: .venv/installed-dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build
	@echo "Open build/site/index.html"
	$(PYTEST) -m guide --dist worksteal

# Runs docs/notebooks and writes them with their outputs: about three minutes.
notebooks: .venv/installed-dev
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python tests/helpers/notebooks.py

# An sdist and the wheel that is built from it, in dist/. The sdist leaves the tests out: they need
# the experiments, the guide and the sweep files, so they are run in a clone.
wheel: .venv/installed-dev
	$(BIN)/python -m build --no-isolation

clean:
	rm -rf .venv .venv-oldest .venv-newest .venv-saebench build dist

# With pip, which every Python has, unless UV names uv, as .ci/run does: it is several times as fast.
ifdef UV
VENV = $(UV) venv --quiet --python $(PYTHON)
INSTALL = $(UV) pip install --quiet --python $(@D)/bin/python
else
VENV = $(PYTHON) -m venv
INSTALL = $(@D)/bin/python -m pip install --quiet --disable-pip-version-check
endif

.venv/installed: setup.py
	test -d .venv || $(VENV) .venv
	$(INSTALL) -e .
	touch $@

.venv/installed-dev: setup.py
	test -d .venv || $(VENV) .venv
	$(INSTALL) -e '.[dev,docs]'
	touch .venv/installed $@

.venv-oldest/installed: setup.py
	test -d .venv-oldest || $(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check uv
	.venv-oldest/bin/uv pip install --quiet --python .venv-oldest/bin/python --resolution lowest-direct -e '.[dev]'
	touch $@

.venv-newest/installed: setup.py
	test -d .venv-newest || $(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --disable-pip-version-check uv
	echo nnsight > .venv-newest/overrides.txt
	.venv-newest/bin/uv pip install --quiet --python .venv-newest/bin/python --upgrade \
		--overrides .venv-newest/overrides.txt -e '.[dev]'
	touch $@

.venv-saebench/installed: setup.py
	test -d .venv-saebench || $(VENV) .venv-saebench
	$(INSTALL) -e '.[dev,sae-bench]' eai-sparsify~=1.3 dataclasses-json~=0.6.7
	$(INSTALL) --no-deps sae-dashboard==0.8.0 eindex-callum==0.1.2 eai-delphi==0.1.3
	touch $@
