# Each target works on a fresh clone with python3, make and a package index. `make` alone lists them.

PYTHON ?= python3
VENV   := .venv
DEMO   := .venv-demo
BIN    := $(VENV)/bin
HTML   := book/_build/html
# Wall seconds after which a notebook's cell counts as a hang; a whole notebook is meant to take 45.
CELL_TIMEOUT ?= 600

export PIP_DISABLE_PIP_VERSION_CHECK = 1
# A progress bar in a notebook's stored output helps nobody.
quiet := TQDM_DISABLE=1
# Tests and notebooks run on this many cores (tests/pool.py). Each process computes with one thread: more of them wait for
# each other, and take longer (measured).
JOBS ?= $(shell $(PYTHON) -c 'import os; print(min(4, os.cpu_count() or 1))' 2>/dev/null || echo 1)
pool := -n $(JOBS) --dist loadgroup --no-loadscope-reorder
parallel := $(quiet) OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(pool)
stages = MAKE="$(MAKE)" $(BIN)/python tests/stages.py $(1) --jobs $(JOBS) --cell-timeout $(CELL_TIMEOUT) $(ARGS)
say = @printf '\n== %s\n'

# After a failed build Sphinx would believe that all pages are done, and the next build would pass.
# So we throw its memory away, and the next build fails as well.
build_book = $(BIN)/jupyter-book build . --path-output book -W -n --keep-going $(1) \
	|| { rm -rf book/_build/.doctrees; echo "The book was not built: mend the warnings above." >&2; exit 1; }

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help book test lab notebooks study bench grade demo doctor pictures clean

help:
	@echo "make book       build the book and say which file to open"
	@echo "make lab        open the labs in JupyterLab"
	@echo "make check      check the commonest things in three minutes: style, types, imports, fast tests"
	@echo "make test       check everything: style, types, book, tests, notebooks; make test-times writes its times down"
	@echo "make notebooks  write and run the notebooks again from solutions/*.py"
	@echo "make study      measure the methods again (hours on two cores); make bench: time and memory"
	@echo "make grade      grade notebooks: make grade ARGS=\"FOLDER --out REPORT\""
	@echo "make demo       try the case study's model in a browser (the first time it trains for some minutes)"
	@echo "make doctor     check this computer"
	@echo "make test-floors, make test-newest: the methods' tests with the lowest and with the newest versions admitted"
	@echo "make test-device: the methods' tests and the solutions on a GPU (DEVICE=cuda), or on a pretended one"
	@echo "make test-processors: the tests and the notebooks as on older processors, with one thread and with two (hours)"
	@echo "make clean      remove the environment and the built book, but not the fetched model and data"

$(VENV)/installed: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found. Install Python 3.11 or newer," \
		"or name another one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than 3.11:" \
		"$$($(PYTHON) --version 2>&1). Name a newer one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "$(PYTHON) cannot make environments." \
		"On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(say) "making the environment $(VENV) (once; the packages take about 2.5 GB of disk)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install -c constraints.txt -e ".[lab,book]"
	@touch $@

$(VENV)/installed-test: $(VENV)/installed
	$(say) "installing what the tests need"
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[lab,book,test]"
	@touch $@

.PHONY: assets
assets: $(VENV)/installed
	$(say) "the model and the data (fetched once, checked each time)"
	@$(BIN)/python -m course_utils fetch

book: assets
	$(say) "building the book"
	@$(call build_book,--quiet)
	@$(BIN)/python -c 'import pathlib; page = pathlib.Path("$(HTML)/index.html"); \
		print(f"\nOpen {page} in a browser: {page.resolve().as_uri()}")'

# All stages run, whatever fails; the end of the log names what failed and what each took (tests/stages.py).
test: $(VENV)/installed-test assets
	@$(call stages,test)

.PHONY: check test-times book-strict
check: $(VENV)/installed-test assets
	@$(call stages,check)

# Writes tests/stages.json, on a quiet machine: it decides which tests are fast and which ones start first.
test-times: $(VENV)/installed-test assets
	@$(call stages,test --write)

# A stage of `make test`: all pages, warnings are errors.
book-strict: $(VENV)/installed-test
	@$(call build_book,--all --quiet)

# The lowest versions that pyproject.toml admits, and the newest: each in an environment of its own. The outputs of the two
# labs are run, but not compared: versions may differ.
labs_of_both := labs/09_lora.ipynb solutions/09_lora.ipynb labs/14_prefix_tuning.ipynb solutions/14_prefix_tuning.ipynb

.venv-floors/installed .venv-newest/installed: .venv-%/installed: pyproject.toml tests/floors.py
	$(say) "making the environment .venv-$* (it takes as much disk as the first one)"
	@$(PYTHON) -m venv .venv-$*
	@test $* = newest || $(PYTHON) tests/floors.py > .venv-$*/floors.txt
	@.venv-$*/bin/python -m pip install --quiet --upgrade $(if $(filter floors,$*),-c .venv-$*/floors.txt) \
		-e ".[lab]" bitsandbytes nbval pytest pytest-timeout pytest-xdist
	@touch $@

.PHONY: test-floors test-newest
test-floors test-newest: test-%: .venv-%/installed
	@.venv-$*/bin/python -m pip list --format=freeze | grep -E "^(torch|transformers|peft|accelerate|datasets|numpy|pandas)=="
	@.venv-$*/bin/python -m course_utils fetch
	@$(quiet) OMP_NUM_THREADS=1 .venv-$*/bin/python -m pytest $(pool) --nbval-lax tests $(labs_of_both) \
		--nbval-cell-timeout=$(CELL_TIMEOUT)

# The methods' tests and the solutions elsewhere: on a GPU with DEVICE=cuda, else on one that is only pretended, which finds
# tensors that were left on the processor (tests/pretend_gpu.py).
DEVICE ?= pretend
of_methods := adalora bottleneck checkpoints dora every_method ia3 invariants lora lora_plus pissa planted_bugs prefix \
	prompts qlora quantization selective serving students switching vera
KERNELS := build/ipython

.PHONY: test-device
test-device: export COURSE_TEST_DEVICE = $(DEVICE)
test-device: $(VENV)/installed-test assets
	@$(parallel) $(of_methods:%=tests/test_%.py)
	@mkdir -p $(KERNELS)/profile_default/startup
	@echo '__import__("models")' > $(KERNELS)/profile_default/startup/device.py  # each kernel begins with tests/models.py
	@IPYTHONDIR="$(CURDIR)/$(KERNELS)" PYTHONPATH=tests $(parallel) -p pool --nbval-lax solutions \
		--nbval-cell-timeout=$(CELL_TIMEOUT)

# On the processors that this one can be made to be, with one thread and with two: hours. Begun again, it goes on where it
# stopped, as long as no file changed. ARGS=table shows what was found; ARGS=equality takes minutes.
.PHONY: test-processors
test-processors: $(VENV)/installed-test assets
	@$(BIN)/python tests/processors.py $(ARGS)

lab: assets
	$(BIN)/jupyter lab --LabApp.default_url=/lab/tree/labs $(ARGS)

notebooks: assets
	@$(quiet) $(BIN)/python -m course_utils notebooks $(ARGS)

study: assets
	@$(BIN)/python -m course_utils study $(ARGS)
	@$(BIN)/python -m course_utils study-comparison

bench: assets
	@$(BIN)/python -m course_utils bench $(ARGS)

grade: assets
	@$(BIN)/python -m course_utils grade $(ARGS)

# The demo has an environment of its own: what serves a model needs no torch, and gradio's exact versions clash with those
# of constraints.txt.
$(DEMO)/installed: demo-requirements.txt
	$(say) "making the environment $(DEMO)"
	@$(PYTHON) -m venv $(DEMO)
	@$(DEMO)/bin/python -m pip install --quiet -r demo-requirements.txt
	@touch $@

build/sentiment/README.md: | assets
	$(say) "exporting the model of the case study"
	@$(quiet) $(BIN)/python -m course_utils.case_study.export build/sentiment

demo: build/sentiment/README.md $(DEMO)/installed
	@$(DEMO)/bin/python -m course_utils.case_study.demo build/sentiment $(ARGS)

doctor: $(VENV)/installed
	@$(BIN)/python -m course_utils doctor

# The README's pictures and the card of a link, from the built book and the results.
pictures: $(VENV)/installed-test book
	@$(BIN)/python tests/browser.py

clean:
	rm -rf $(VENV) $(DEMO) .venv-floors .venv-newest book/_build build *.egg-info .mypy_cache .ruff_cache .pytest_cache
