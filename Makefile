# make up      from a bare clone to a mounted grid with an example in it    (MNT=DIR, ROOT=DIR)
# make down    takes the mount away, keeps the data                         (MNT=DIR)
# make setup   .venv with artfs in it, alone; installs what the machine lacks
# make check   format, lint, types, unit tests
# make test    all that, and every other suite                              (ARGS="pytest's options")
# make bench   speed against a native directory, a null file system, bindfs (ARGS="options of tests.bench")

MNT ?= grid
export MNT ROOT
PYTHON_IN_VENV := .venv/bin/python

.PHONY: help up down setup dev lint check test bench

help:
	@sed -n '/^$$/q; s/^# //p' Makefile

setup:
	@scripts/setup

dev:
	@scripts/setup --dev

up: setup
	@scripts/up

down:
	@scripts/down

lint: dev
	.venv/bin/ruff format --check .
	.venv/bin/ruff check .
	.venv/bin/mypy

check: lint
	$(PYTHON_IN_VENV) -m pytest -q tests/unit $(ARGS)

# Most tests run side by side, mounts and kills too, which mostly wait; what counts requests or measures has the
# machine for itself.
PURE := unit contract model seeds
MOUNTS := faults crash cli posix fuse programs
SIDE_BY_SIDE := -q --dist worksteal

test: lint
	PYTHONHASHSEED=0 $(PYTHON_IN_VENV) -m pytest $(SIDE_BY_SIDE) -n 6 $(PURE:%=tests/%) $(ARGS)
	PYTHONHASHSEED=0 $(PYTHON_IN_VENV) -m pytest $(SIDE_BY_SIDE) -n 8 -m "not alone" $(MOUNTS:%=tests/%) $(ARGS)
	$(PYTHON_IN_VENV) -m pytest -q -m alone $(MOUNTS:%=tests/%) $(ARGS)

bench: dev
	$(PYTHON_IN_VENV) -m tests.bench $(ARGS)
