# Short targets; each does all it needs on a bare Debian 12, as root or with sudo, and is quick the second time.
SHELL := /bin/bash
PYTHON ?= $(firstword $(wildcard /usr/bin/python3) python3)
SUDO := $(if $(filter 0,$(shell id -u)),,sudo)
STAMPS := .stamps
BIN := .venv/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PIP_ROOT_USER_ACTION := ignore

.PHONY: help setup demo test test-unit test-lab test-c lint format bench lock clean
.DEFAULT_GOAL := help

help:  ## show the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 14

setup: $(STAMPS)/apt $(STAMPS)/venv $(STAMPS)/build  ## system packages, virtual environment, C build

demo: setup  ## four protected channels in the lab, with a final table
	$(SUDO) $(BIN)/lastmile lab run four-channels

test: setup test-c  ## all tests: C, units, kernel, live peers, lab scenarios
	$(SUDO) $(BIN)/pytest -n 2 --dist worksteal

test-unit: setup  ## pure cores, without root, under a minute
	$(BIN)/pytest -n 2 tests/unit

test-lab: setup  ## all scenarios, one after the other, the slow ones too
	$(SUDO) $(BIN)/pytest -m '' tests/lab

test-c: setup  ## the C tests under ASan and UBSan
	$(MAKE) -C csrc test

lint: setup  ## ruff, mypy strict, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@files=$$(git ls-files 'csrc/*.c' 'csrc/*.h'); [ -z "$$files" ] || clang-format --dry-run --Werror $$files

format: setup  ## what lint would ask for
	$(BIN)/ruff check --fix-only .
	$(BIN)/ruff format .
	@files=$$(git ls-files 'csrc/*.c' 'csrc/*.h'); [ -z "$$files" ] || clang-format -i $$files

bench: setup  ## benchmarks beside their peers, into benchmarks/results
	$(SUDO) $(BIN)/pytest benchmarks --benchmark-only

lock:  ## pin the versions of everything we install from PyPI
	$(BIN)/pip-compile --quiet --strip-extras --extra dev --allow-unsafe --generate-hashes --no-emit-index-url \
	  --no-emit-find-links --no-emit-trusted-host --resolver backtracking -o requirements.lock pyproject.toml

clean:  ## all that the other targets made here
	rm -rf .venv $(STAMPS) build *.egg-info

# Debian's BGP packages start their daemons when installed; on a router's box they must not.
$(STAMPS)/apt: apt-packages.txt
	@mkdir -p $(STAMPS)
	@missing=$$(sed 's/#.*//; s/ .*//' $< | while read -r p; do [ -z "$$p" ] || \
	    dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'ok installed' || echo $$p; done); \
	if [ -n "$$missing" ]; then \
	    echo "installing:" $$missing; \
	    [ -e /usr/sbin/policy-rc.d ] || { printf '#!/bin/sh\nexit 101\n' | $(SUDO) tee /usr/sbin/policy-rc.d >/dev/null; \
	        $(SUDO) chmod 755 /usr/sbin/policy-rc.d; mine=1; }; \
	    $(SUDO) apt-get update -qq && $(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq \
	        --no-install-recommends $$missing >$(STAMPS)/apt.log 2>&1; status=$$?; \
	    [ -z "$$mine" ] || $(SUDO) rm -f /usr/sbin/policy-rc.d; \
	    [ $$status = 0 ] || { tail -20 $(STAMPS)/apt.log; exit $$status; }; \
	fi
	@touch $@

$(STAMPS)/venv: requirements.lock $(STAMPS)/apt
	$(PYTHON) -m venv --clear .venv
	$(BIN)/pip install --quiet --require-hashes -r requirements.lock
	@touch $@

$(STAMPS)/build: pyproject.toml $(wildcard setup.py csrc/*.c csrc/*.h router/dataplane/_build.py) $(STAMPS)/venv
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	$(BIN)/python -m compileall -q router
	@touch $@
