## make lab                open the course in JupyterLab
## make demo               expert, amateur and contrastive text side by side, in the terminal
## make test               everything CI checks
## make assignments        the students' notebooks and zips, in build/assignments
## make harness            the tests that need lm-evaluation-harness (0.5 GB more), in an environment of their own
## make site               the course as a web site, in build/site, and its checks (0.1 GB more, another environment)
## make grade FOLDER=...   grade a folder of submissions; ARGS="--seed 1" for more
## make bench              the numbers of the README's section on speed, again: 20 minutes on a quiet machine
## make real               notebook 13 and notebooks/real.md from a real pair: 2 hours; PAIR="EXPERT AMATEUR"
## Each makes .venv first if it is missing. Another Python: make PYTHON=python3.12 test

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.cdlearn-installed
# the real pair's notebook has outputs that no CI can make: it runs on the embedded pair, for its own checks
REAL := notebooks/13_a_real_pair.ipynb
NOTEBOOKS := $(filter-out $(REAL),$(shell find notebooks -name '*.ipynb' -not -path '*/.*' -not -path '*/assignments/*' 2>/dev/null | sort))
# one thread a worker: two workers on two cores do not fight
SLOW := tests/test_classroom.py tests/test_browser.py tests/test_wheel.py
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 MPLBACKEND=

.PHONY: help install lab demo test harness site links lint format unit notebooks pages bench real assignments grade folder clean

help:
	@sed -n 's/^## //p' Makefile

install: $(STAMP)

$(STAMP): pyproject.toml .ci/constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"cdlearn needs Python 3.11 or newer, this is {sys.version.split()[0]}: make PYTHON=python3.12 ...")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): some minutes and about 2 GB, once"
	@$(BIN)/python -m pip install --quiet -c .ci/constraints.txt -e ".[lab,test,classroom]"
	@touch $@

# JupyterLab refuses the root user, whom containers have, unless it is told
ROOT := $(shell test "$$(id -u)" = 0 && echo --allow-root)

lab: $(STAMP)
	$(BIN)/jupyter lab $(ROOT) $(ARGS) notebooks/00_start_here.ipynb

demo: $(STAMP)
	@$(BIN)/python -m cdlearn demo

test: lint notebooks unit

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# the longest files first and tests handed from worker to worker: none waits for the other at the end
unit: $(STAMP)
	$(TEST_ENV) $(BIN)/python -m pytest $(SLOW) tests -n 2 --dist worksteal --ignore tests/test_harness.py

# strict: the committed outputs must come out again, to the letter
notebooks: $(STAMP)
ifneq ($(NOTEBOOKS),)
	CI=1 $(TEST_ENV) $(BIN)/python -m pytest --nbval -n 2 --dist loadscope -p no:cacheprovider $(NOTEBOOKS)
	CDLEARN_PAIR=embedded CI=1 $(TEST_ENV) $(BIN)/python -m pytest --nbval-lax -p no:cacheprovider $(REAL)
else
	@echo "no notebooks yet"
endif

# the index, thumbnails, gallery and setup cells that are made from the notebooks
pages: $(STAMP)
	@test -z "$(REPO_URL)" || grep -q '^Repository' pyproject.toml || printf '\n[project.urls]\nRepository = "%s"\n' "$(REPO_URL)" >> pyproject.toml
	$(BIN)/python .ci/pages.py
	$(BIN)/python .ci/real.py

# a file appears when its measurement is whole
bench: $(STAMP)
	$(BIN)/python -m cdlearn bench --threads 1 --json > .ci/bench/new && mv .ci/bench/new .ci/bench/embedded.json
	$(BIN)/python -m cdlearn bench --threads 1 --size 100m --context 64 --json > .ci/bench/new && mv .ci/bench/new .ci/bench/100m.json
	$(BIN)/python .ci/sweep.py > .ci/bench/new && mv .ci/bench/new .ci/bench/sweep.json
	$(MAKE) pages

PAIR ?= Qwen/Qwen2.5-Coder-1.5B-Instruct Qwen/Qwen2.5-Coder-0.5B-Instruct
MODELS = --expert $(word 1,$(PAIR)) --amateur $(word 2,$(PAIR))
EVAL = $(BIN)/python -m cdlearn eval $(MODELS) --prompts-file .ci/real

# the evaluations go on where they were stopped
real: $(STAMP)
	CDLEARN_PAIR="$(PAIR)" $(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False \
		--coalesce-streams $(REAL)
	$(EVAL)/openings.jsonl --max-new-tokens 100 --batch 24 --out build/real/openings --json .ci/real/openings.json \
		--methods greedy "contrastive strength=1" "contrastive beta=0.5" "sample top_p=0.95" "sample min_p=0.1" \
		"greedy repetition_penalty=1.1" dola amateur
	$(EVAL)/sums.jsonl --chat-template --max-new-tokens 160 --batch 25 --out build/real/sums --json .ci/real/sums.json \
		--methods greedy "contrastive beta=0.5" "contrastive strength=1" amateur
	for kind in bfloat16 float32; do $(BIN)/python -m cdlearn bench $(MODELS) --dtype $$kind --json > .ci/real/new \
		&& mv .ci/real/new .ci/real/bench-$$kind.json; done
	$(MAKE) pages

HARNESS := $(VENV)-harness
SITE := $(VENV)-site
EXTRAS_harness := test,eval
EXTRAS_site := site

# a venv that sees what .venv holds, so that torch is there once and what few need stays out of it
$(VENV)-%/.installed: $(STAMP)
	$(BIN)/python -m venv $(VENV)-$*
	$(BIN)/python -c 'import sys, sysconfig; from pathlib import Path; (Path(sys.argv[1]) / "outer.pth").write_text(sysconfig.get_path("purelib"))' "$$($(VENV)-$*/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')"
	$(VENV)-$*/bin/python -m pip install --quiet -c .ci/constraints.txt -e ".[$(EXTRAS_$*)]"
	@touch $@

harness: $(HARNESS)/.installed
	$(TEST_ENV) $(HARNESS)/bin/python -m pytest tests/test_harness.py

site: $(SITE)/.installed
	$(TEST_ENV) $(SITE)/bin/python .ci/site/stage.py
	$(SITE)/bin/python .ci/site/check.py

# the links that leave the site: needs a network
links: $(SITE)/.installed
	$(TEST_ENV) $(SITE)/bin/python .ci/site/stage.py linkcheck

assignments: $(STAMP)
	$(BIN)/python -m cdlearn assignments build/assignments $(ARGS)

grade: folder $(STAMP)
	$(BIN)/python -m cdlearn grade "$(FOLDER)" $(ARGS)

# asked before the installation, which takes minutes
folder:
	@test -n "$(FOLDER)" || { echo "which folder? make grade FOLDER=submissions"; exit 2; }
	@test -d "$(FOLDER)" || { echo "no folder $(FOLDER): give the folder that holds the submissions"; exit 2; }

clean:
	rm -rf build dist .pytest_cache .ruff_cache .hypothesis
