# make train: sets up .venv and trains on real digits.   make test: sets up .venv and runs all tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install train test lint bench clean

install: $(VENV)/.train

train: $(VENV)/.train
	$(BIN)/python train.py $(ARGS)

test: $(VENV)/.test
	$(BIN)/python -m pytest -n 2 $(ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .

bench: $(VENV)/.train
	@echo "No benchmarks yet: nothing in this project claims a speed."

$(VENV)/.train: setup.cfg constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e ".[demo]"
	touch $@

$(VENV)/.test: setup.cfg constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -c constraints.txt -e ".[test,lint]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info
