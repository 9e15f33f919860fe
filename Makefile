# demo: the three scripts and the language model on the shipped sample    test: all tests    lint: ruff
# Each makes .venv from requirements.lock when it is missing or older than the lock, with uv where that is installed
# (make UV= does without) and else with pip. PYTHON=… names the Python; PIP_EXTRA_INDEX_URL=… or, for uv,
# UV_TORCH_BACKEND=… brings another build of torch than PyPI's.

RUN := .venv/bin/python
UV := $(shell command -v uv 2>/dev/null)
ifneq ($(UV),)
PYTHON ?= >=3.11.4,<3.13
make_venv = "$(UV)" venv --seed --python "$(PYTHON)" $1
INSTALL = "$(UV)" pip install --python .venv
else
# Tried in this order: 3.13 lacks the package for language models, 3.11.0 to 3.11.3 that for the download.
PYTHON ?= python3.12 python3.11 python3.13
FITS = import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info < (3, 14))
found = $(firstword $(foreach python,$(PYTHON),$(shell $(python) -c '$(FITS)' 2>/dev/null && echo $(python))))
make_venv = $(or $(found),$(error $(NO_PYTHON))) -m venv $1
INSTALL = .venv/bin/pip install
endif
NO_PYTHON = none of $(PYTHON) is a Python 3.11, 3.12 or 3.13 with its venv module: install one (Debian and Ubuntu: \
	apt install python3-venv), or uv (https://docs.astral.sh/uv), which fetches one by itself, or take conda's (conda \
	create -n python312 python=3.12 && conda activate python312), and rerun
# Without flashlight-text, which Python 3.13 lacks, the demo goes without a language model.
GREEDY = $(if $(shell ls -d .venv/lib/python*/site-packages/flashlight 2>/dev/null),,evaluation.decoder=greedy)

.PHONY: install demo demo-domain demo-base demo-scratch test lint lmplz lock report
.DELETE_ON_ERROR:

install: .venv/.complete

demo: .venv/.complete
	$(RUN) Fine_tuning/dataset_creation.py --config configs/demo.yaml
	$(RUN) Fine_tuning/train.py --config configs/demo.yaml
	$(if $(GREEDY),,$(RUN) Fine_tuning/train_language_model.py --config configs/demo.yaml)
	$(RUN) Fine_tuning/evaluate.py --config configs/demo.yaml $(GREEDY)

# the demo's model with a language model of general text, without and with a small text of a domain
demo-domain: demo
	$(RUN) benchmarks/domain.py

# the demo's English model, trained from scratch on the English sample and shipped as models/demo/
demo-base: .venv/.complete
	$(RUN) Fine_tuning/dataset_creation.py --config configs/demo_english.yaml
	$(RUN) Fine_tuning/train.py --config configs/demo_english.yaml
	cp runs/demo_english/quartznet_small_en.nemo models/demo/
	cp runs/demo_english/run.json models/demo/quartznet_small_en.run.json

# the demo's Italian epochs without the English base, compared with the demo's own models
demo-scratch: demo
	$(RUN) Fine_tuning/train.py --config configs/demo.yaml model.base=null \
		model.architecture=configs/models/quartznet_small.yaml training.frozen_epochs=0 \
		training.output=runs/demo_scratch training.name=Model-IT-from-scratch
	$(RUN) Fine_tuning/evaluate.py --config configs/demo.yaml \
		evaluation.models=[models/demo/quartznet_small_en.nemo,runs/demo/Model-IT-finetuned.nemo,runs/demo_scratch/Model-IT-from-scratch.nemo] \
		evaluation.results=results/demo_scratch $(GREEDY)

test: .venv/.complete
	$(RUN) -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

lint: .venv/.complete
	.venv/bin/ruff check
	.venv/bin/ruff format --check

# README's tables, image.png and the paper from results/reference/
report: .venv/.complete
	$(RUN) report/report.py

# KenLM's programs for long texts of a language model, from its sources; needs a C++ compiler and Boost (Debian, Ubuntu: apt
# install cmake g++ zlib1g-dev libboost-{program-options,system,thread,test}-dev)
lmplz: .venv/.complete
	rm -rf .venv/kenlm && mkdir .venv/kenlm
	.venv/bin/pip download --quiet --no-deps --no-binary kenlm --dest .venv/kenlm kenlm==0.3.0
	tar -xzf .venv/kenlm/kenlm-0.3.0.tar.gz -C .venv/kenlm
	cmake -S .venv/kenlm/kenlm-0.3.0 -B .venv/kenlm/build -DCMAKE_BUILD_TYPE=Release
	cmake --build .venv/kenlm/build --target lmplz build_binary --parallel 2
	cp .venv/kenlm/build/bin/lmplz .venv/kenlm/build/bin/build_binary .venv/bin/
	rm -rf .venv/kenlm

# every version, from the pins of requirements.txt and with their markers; without "+cpu", so that the same pin finds the
# build of each machine
lock:
	rm -rf .venv-lock
	$(call make_venv,.venv-lock)
	.venv-lock/bin/pip install -r requirements.txt
	{ echo "# Generated from requirements.txt by: make lock"; sed -n '/;/{s/ *#.*//;p}' requirements.txt; \
		.venv-lock/bin/pip freeze | sed 's/+cpu$$//'; } | awk '!seen[$$1]++' | LC_ALL=C sort -f -t= -k1,1 \
		> requirements.lock
	rm -rf .venv-lock

# from the start, for half a package looks like a whole one; what has been downloaded is in the cache of pip or uv
.venv/.complete: requirements.lock
	rm -rf .venv
	$(call make_venv,.venv)
	@echo 'Installing requirements.lock into .venv; when interrupted, rerun: finished downloads are kept'
	@$(INSTALL) -r requirements.lock || \
		{ echo "The installation failed, as said above; fix this and rerun" >&2; exit 1; }
	touch $@
