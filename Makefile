# demo: the three scripts and the language model on the shipped sample    test: all tests    lint: ruff
# Each makes .venv from requirements.lock when it is missing or older than the lock.

PYTHON ?= python3.11
RUN := .venv/bin/python

.PHONY: demo demo-domain demo-base demo-scratch test lint lock report
.DELETE_ON_ERROR:

demo: .venv/.complete
	$(RUN) Fine_tuning/dataset_creation.py --config configs/demo.yaml
	$(RUN) Fine_tuning/train.py --config configs/demo.yaml
	$(RUN) Fine_tuning/train_language_model.py --config configs/demo.yaml
	$(RUN) Fine_tuning/evaluate.py --config configs/demo.yaml

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
		evaluation.results=results/demo_scratch

test: .venv/.complete
	$(RUN) -m pytest

lint: .venv/.complete
	.venv/bin/ruff check
	.venv/bin/ruff format --check

# README's tables, image.png and the paper from results/reference/
report: .venv/.complete
	$(RUN) report/report.py

# every version, from the pins of requirements.txt; without "+cpu", so that the same pin finds the build of each machine
lock:
	rm -rf .venv-lock
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install -r requirements.txt
	{ echo "# Generated from requirements.txt by: make lock"; .venv-lock/bin/pip freeze | sed 's/+cpu$$//'; } > requirements.lock
	rm -rf .venv-lock

.venv/.complete: requirements.lock
	$(PYTHON) -m venv --clear .venv
	.venv/bin/pip install --quiet --progress-bar on -r requirements.lock
	touch $@
