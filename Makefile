# Each target works on a fresh clone with python3, make and a package index. `make` alone lists them.

# The scripts in .venv/bin hold the path of the folder in which they were made, so nothing here calls one of them.

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
build_book = $(BIN)/python -c 'from jupyter_book.cli.main import main; main()' build . --path-output book -W -n --keep-going $(1) \
	|| { rm -rf book/_build/.doctrees; echo "The book was not built: mend the warnings above." >&2; exit 1; }

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help book test lab reset notebooks study bench grade demo doctor pictures clean

help:
	@echo "make book       build the book and say which file to open"
	@echo "make lab        open your own copies of the labs, my_labs, in JupyterLab"
	@echo "make reset      start a lab over, and keep your old copy: make reset LAB=09"
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
	@echo "make lock       renew constraints.txt from pyproject.toml: make lock ARGS=--upgrade for the newest versions"
	@echo "make links      ask for each address outside that the book names"
	@echo "make clean      remove the environment and the built book, but not the fetched model and data"

# The stamp says for which folder and which Python the environment was made: after a move, or with another PYTHON that was
# asked for by name, it is made again.
minor = $(shell $(1) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)
present := $(call minor,$(BIN)/python)
wanted := $(if $(filter file,$(origin PYTHON)),$(present),$(call minor,$(PYTHON)))

# PyTorch for processors takes 3 GB less than the one with the libraries for NVIDIA cards, which Linux gets by default. We
# take it where there is no such card; `make GPU=1` takes the other one. Where its index cannot be reached, pip decides.
TORCH_CPU_INDEX ?= https://download.pytorch.org/whl/cpu
CPU_GB := 3
GPU_GB := 7
linux := $(filter Linux,$(shell uname -s))
ifndef GPU
GPU := $(if $(linux),$(if $(shell command -v nvidia-smi),1))
endif
slim := $(if $(filter 1,$(GPU)),,$(linux))
need := $(if $(filter 1,$(GPU)),$(GPU_GB),$(CPU_GB))
has_torch = $(BIN)/python -c 'import importlib.util as u, sys; sys.exit(u.find_spec("torch") is None)' 2>/dev/null
free_gb = $$(($$(df -Pk . | awk 'NR == 2 {print $$4}') / 1000000))
need_gb = { test $(free_gb) -ge $(1) || { echo "The packages need about $(1) GB of disk, and $(free_gb) GB are free" \
	"here. Free some, or move the folder of the course to a bigger disk." >&2; exit 1; }; }
get_slim_torch = $(BIN)/python -m pip install --quiet --no-deps --retries 0 --timeout 15 --index-url $(TORCH_CPU_INDEX) \
	"$$(grep '^torch==' constraints.txt)"
# Is it the build for processors that is there, although the other one is asked for?
other_torch := $(if $(filter 1,$(GPU)),$(wildcard $(VENV)/lib/python*/site-packages/torch-*+cpu.dist-info))

ifneq ($(shell cat $(VENV)/installed 2>/dev/null)$(other_torch),$(CURDIR), Python $(wanted))
.PHONY: again
$(VENV)/installed: again
endif

$(VENV)/installed: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) was not found. Install Python 3.11 or newer," \
		"or name another one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is older than 3.11:" \
		"$$($(PYTHON) --version 2>&1). Name a newer one: make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "$(PYTHON) cannot make environments." \
		"On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(say) "making the environment $(VENV) (once; the packages take about $(need) GB of disk)"
	@$(if $(and $(present),$(filter $(wanted),$(present))),,$(PYTHON) -m venv --clear $(VENV))
	@$(if $(other_torch),$(BIN)/python -m pip uninstall --quiet --yes torch)
	@$(has_torch) || $(call need_gb,$(need))
	@test -z "$(slim)" || $(has_torch) || $(get_slim_torch) || { echo "PyTorch's index for processors cannot be" \
		"reached; taking the package that pip finds, which needs $(GPU_GB) GB."; $(call need_gb,$(GPU_GB)); }
	@$(BIN)/python -m pip install -c constraints.txt -e ".[lab,book]"
	@{ printf '%s, Python ' "$(CURDIR)"; $(BIN)/python -c 'import sys; print("%d.%d" % sys.version_info[:2])'; } > $@

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

# Asks for each address that a page names. Not a stage of anything: what does not answer today may answer tomorrow.
.PHONY: links
links: $(VENV)/installed
	@$(call build_book,--quiet --builder linkcheck)

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

# The exact versions of constraints.txt, for every platform: kept where they fit; `make lock ARGS=--upgrade` takes the
# newest. uv has an environment of its own, because nothing else needs it.
LOCK := build/uv
lock_command = $(LOCK)/bin/uv pip compile pyproject.toml --universal --python-version 3.11 --no-annotate --quiet \
	--custom-compile-command "make lock" --output-file constraints.txt $(addprefix --extra ,lab book test) $(ARGS)

.PHONY: lock
lock:
	@test -x $(LOCK)/bin/uv || { $(PYTHON) -m venv $(LOCK) && $(LOCK)/bin/python -m pip install --quiet uv; }
	@$(lock_command)

# On the processors that this one can be made to be, with one thread and with two: hours. Begun again, it goes on where it
# stopped, as long as no file changed. ARGS=table shows what was found; ARGS=equality takes minutes.
.PHONY: test-processors
test-processors: $(VENV)/installed-test assets
	@$(BIN)/python tests/processors.py $(ARGS)

lab: assets
	@$(BIN)/python -m course_utils my-labs
	$(BIN)/python -m jupyterlab --LabApp.default_url=/lab/tree/my_labs/00_start.ipynb $(ARGS)

reset: $(VENV)/installed
	@test -n "$(LAB)" || { echo "Which lab? Say for example: make reset LAB=09" >&2; exit 1; }
	@$(BIN)/python -m course_utils my-labs --reset $(LAB)

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
	@$(quiet) $(BIN)/python -m course_utils export build/sentiment

demo: build/sentiment/README.md $(DEMO)/installed
	@$(DEMO)/bin/python -m course_utils.serving.demo build/sentiment $(ARGS)

doctor: $(VENV)/installed
	@$(BIN)/python -m course_utils doctor

# The README's pictures and the card of a link, from the built book and the results.
pictures: $(VENV)/installed-test book
	@$(BIN)/python tests/browser.py

clean:
	rm -rf $(VENV) $(DEMO) .venv-floors .venv-newest book/_build build *.egg-info .mypy_cache .ruff_cache .pytest_cache
