# make train: sets up .venv and trains on real digits.
# make quick: the tests of less than a third of a second each, in about two minutes on two cores. Run it while you work.
# make test: sets up .venv and runs all tests, in about eight minutes on two cores; the slowest ten are listed at the end.
# make faults: kills, damages, full disks and hostile files in great number, 15 to 30 minutes, with a table of figures.
# make examples: sets up .venv, runs every script of examples/ and prints what each reached. ARGS="gan basics" runs these.
# make examples-vision: those that train models of torchvision, timm, segmentation-models-pytorch and ultralytics, in
#   .venv-vision with a torch of its own: 6 GB.
# make trackers: the trackers with their packages, each in an environment of its own in .venv-trackers.
# make bench: sets up .venv and prints what updates, checkpoints and imports cost here, in about ten minutes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two processes, one for each core of a small machine; the one that is done first takes over tests of the other.
WORKERS := -n 2 --dist worksteal

.PHONY: install train examples examples-vision quick test faults trackers lint bench clean

install: $(VENV)/.train

train: $(VENV)/.train
	$(BIN)/python train.py $(ARGS)

examples: $(VENV)/.examples
	$(BIN)/python -m examples $(ARGS)

examples-vision: .venv-vision/.done
	.venv-vision/bin/python -m examples $(or $(ARGS),vision_libraries)

quick: $(VENV)/.test
	$(BIN)/python -m pytest $(WORKERS) -m "not slow" $(ARGS)

test: $(VENV)/.test
	$(BIN)/python -m pytest $(WORKERS) --durations=10 $(ARGS)

faults: $(VENV)/.test
	FAULTS=long PYTHONPATH=tests/jobs $(BIN)/python -m pytest $(WORKERS) -p fault_figures tests/scenarios/test_faults.py \
		tests/parallel/test_failures_dist.py \
		tests/test_upgrade.py::test_an_interruption_at_any_file_operation_leaves_the_copy_as_before_or_as_after $(ARGS)

# Each environment has the tracker's package alone, and reads the rest, torch for example, from $(VENV).
TRACKERS := wandb trackio swanlab mlflow

trackers: $(TRACKERS:%=.venv-trackers/%/.done)
	for name in $(TRACKERS); do \
		.venv-trackers/$$name/bin/python -m pytest tests/trackers/test_tracker_packages.py $(ARGS) || exit 1; done

.venv-trackers/%/.done: $(VENV)/.test
	rm -rf .venv-trackers/$*
	$(BIN)/python -m venv .venv-trackers/$*
	$(BIN)/python -c "import site; print(site.getsitepackages()[0])" > \
		$$(.venv-trackers/$*/bin/python -c "import site; print(site.getsitepackages()[0])")/shared.pth
	.venv-trackers/$*/bin/python -m pip install -q -c constraints.txt $*
	touch $@

lint: $(VENV)/.test
	$(BIN)/ruff check .

bench: $(VENV)/.train
	$(BIN)/python -m benchmarks $(ARGS)

$(VENV)/.train: setup.cfg constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e ".[demo]"
	touch $@

$(VENV)/.examples: setup.cfg constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e ".[examples]"
	touch $@

.venv-vision/.done: setup.cfg constraints-vision.txt
	test -x .venv-vision/bin/python || $(PYTHON) -m venv .venv-vision
	.venv-vision/bin/python -m pip install -c constraints-vision.txt -e ".[examples-vision]"
	touch $@

$(VENV)/.test: setup.cfg constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e ".[test,lint]"
	touch $@

clean:
	rm -rf $(VENV) .venv-trackers .venv-vision build *.egg-info
