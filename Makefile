# unhinged-vm: boot, watch and drive virtual machines. `make` alone prints what there is.

MAKEFLAGS += --no-print-directory
SHELL := /bin/sh
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := .venv
SYSTEM_PYTHON ?= python3
# Before set-up the launchers run under the system's Python, which then sets up and goes on under the project's.
PYTHON := $(firstword $(wildcard $(VENV)/bin/python) $(SYSTEM_PYTHON))
IMAGE_SOURCES := $(shell find iso guest -type f -not -name '*.pyc' 2>/dev/null)

##@ Variables for start, start-simple and start-enhanced
# Set with `=`: the command line counts, an environment that happens to have a NAME or a TIMEOUT does not.
ISO = ##: boot this ISO
DISK = ##: a qcow2 or raw disk; booted when it is all there is
KERNEL = ##: boot this bzImage or vmlinux directly
INITRD = ##: the initial RAM disk for KERNEL
BOOT = ##: direct, iso or disk; by default what the files above suggest
MEMORY = 1G##: guest memory
CPUS = 2##: guest CPUs
ACCEL = auto##: auto, kvm or tcg
SHARE = ##: a directory to share with the guest
NAME = ##: name of the VM; by default the next free one
UNTIL = ##: end with success once the console shows this regular expression
TIMEOUT = ##: end with an error after this many seconds
CMD = ##: what `make run` runs, a line of the shell
ARGS = ##: further options of the launchers, see ARGS=--help

# A value reaches the launcher as one word, whatever is in it.
quote = '$(subst ','\'',$(value $(1)))'
option = $(if $(value $(2)),$(1) $(call quote,$(2)))
OPTIONS = $(call option,--iso,ISO) $(call option,--disk,DISK) $(call option,--kernel,KERNEL) \
	$(call option,--initrd,INITRD) $(call option,--boot,BOOT) $(call option,--memory,MEMORY) \
	$(call option,--cpus,CPUS) $(call option,--accel,ACCEL) $(call option,--share,SHARE) \
	$(call option,--name,NAME) $(call option,--until,UNTIL) $(call option,--timeout,TIMEOUT) $(ARGS)

# Only the built-in guest needs the image.
NEEDED_IMAGE = $(if $(value ISO)$(value KERNEL)$(value DISK),,image)

##@ Run
.PHONY: start run start-simple start-enhanced attach web
start: ## set everything up, boot the VM, and give a two-way line to it
	@$(PYTHON) control/unhinged_launcher.py $(OPTIONS)

run: setup image ## run CMD='…' in a machine that is thrown away after it
	@$(VENV)/bin/unhinged run -- sh -c $(call quote,CMD)

start-simple: setup $(NEEDED_IMAGE) ## boot the VM and show its serial console, one way
	@$(VENV)/bin/python control/simple_vm_launcher.py $(OPTIONS)

start-enhanced: setup $(NEEDED_IMAGE) ## boot the VM with console, monitor and messages
	@$(VENV)/bin/python control/enhanced_vm_launcher.py $(OPTIONS)

attach: setup ## go back to a VM that was detached from (NAME=)
	@$(VENV)/bin/python control/enhanced_vm_launcher.py --attach $(call option,--name,NAME)

web: setup image ## show all VMs in a browser: screens, consoles, files (ARGS=--help)
	@$(VENV)/bin/unhinged web $(ARGS)

##@ Set up
.PHONY: setup setup-python deps-install-essential deps-install-test deps-install-lua deps-install-web image doctor
setup: deps-install-essential setup-python ## what every run needs: system packages and .venv

setup-python: $(VENV)/.ready ## the Python environment in .venv

deps-install-essential: ## missing system packages, installed with apt-get
	@$(PYTHON) -m control.launch.deps essential
	@mkdir -p build && touch build/.deps-essential

deps-install-test: deps-install-essential ## what only the tests need
	@$(PYTHON) -m control.launch.deps test

deps-install-lua: deps-install-essential ## Lua 5.4 and LuaSocket, for control.lua
	@$(PYTHON) -m control.launch.deps lua

deps-install-web: setup-python ## what the pages of the web console are made of, from the npm registry
	@$(VENV)/bin/unhinged web --libraries

image: build/image/image.json ## the built-in guest image in build/image

doctor: ## look at this host and say what is missing, and the cure
	@$(PYTHON) -m control.launch.doctor $(ARGS)

build/.deps-essential:
	@$(MAKE) deps-install-essential

$(VENV)/.ready: pyproject.toml | build/.deps-essential
	@echo "unhinged: making the Python environment in $(VENV)" >&2
	@$$($(SYSTEM_PYTHON) -m control.launch.deps python) -m venv $(VENV)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable .
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready pyproject.toml
	@echo "unhinged: installing what tests and checks need" >&2
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

build/image/image.json: $(IMAGE_SOURCES) | $(VENV)/.ready
	@$(VENV)/bin/python iso/build.py --output build/image --cache build/cache
	@touch $@

##@ Other guests
.PHONY: deps-install-guests agent agent-deb agent-rpm image-debian image-seed
deps-install-guests: deps-install-essential ## what packages of the agent and Debian images are made with
	@$(PYTHON) -m control.launch.deps guests

agent: setup-python ## the guest agent as one file: build/agent/unhinged-agent.pyz
	@$(VENV)/bin/python iso/agent/build.py pyz $(ARGS)

agent-deb: setup-python ## the guest agent as a Debian package in build/agent
	@$(VENV)/bin/python iso/agent/build.py deb $(ARGS)

agent-rpm: setup-python deps-install-guests ## the guest agent as an RPM package in build/agent
	@$(VENV)/bin/python iso/agent/build.py rpm $(ARGS)

image-debian: setup-python deps-install-guests ## a Debian with systemd and the agent: build/image/debian.qcow2
	@$(VENV)/bin/python iso/debian/build.py disk $(if $(filter image-debian,$(MAKECMDGOALS)),$(ARGS))

KEY = ##: for image-seed: the public key that may log in; by default one is made for this project
image-seed: setup-python ## build/image/seed.iso: at its first boot, a cloud image installs agent and SSH key from it
	@$(VENV)/bin/python iso/debian/build.py seed $(call option,--key,KEY) $(ARGS)

##@ Package
.PHONY: wheel
wheel: setup-python ## what `pip install` takes, in build/dist: tools, agent and the makers of the images
	@rm -rf build/lib build/bdist.* build/dist
	@$(VENV)/bin/python -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir build/dist .
	@rm -rf build/lib build/bdist.*
	@ls build/dist/*.whl

##@ Check
.PHONY: deps-install-browser
deps-install-browser: deps-install-essential deps-install-web $(VENV)/.ready-dev ## a browser, a viewer and a display for them, for the tests
	@$(PYTHON) -m control.launch.deps browser

WORKERS = auto##: how many tests run at once; by default as many as there are CPUs, at most 4
# A file's tests stay together: they share a guest.
PARALLEL = --numprocesses $(WORKERS) --maxprocesses 4 --dist loadfile

.PHONY: test test-fast test-slow test-all lint types check fuzz bench pictures
test: setup deps-install-test deps-install-guests deps-install-lua deps-install-web image $(VENV)/.ready-dev ## all tests that end within ten minutes, boots included
	@$(VENV)/bin/python -m pytest $(PARALLEL) -m "not slow" $(ARGS)

test-fast: setup $(VENV)/.ready-dev ## tests without a guest
	@$(VENV)/bin/python -m pytest $(PARALLEL) -m "not boot and not slow" $(ARGS)

test-slow: setup deps-install-test deps-install-guests deps-install-browser image image-debian $(VENV)/.ready-dev ## the long ones: a foreign installer, soaks
	@$(VENV)/bin/python -m pytest $(PARALLEL) -m slow $(ARGS)

test-all: test test-slow ## all of them

lint: $(VENV)/.ready-dev ## ruff
	@$(VENV)/bin/ruff check . && $(VENV)/bin/ruff format --check .

types: $(VENV)/.ready-dev ## mypy
	@$(VENV)/bin/mypy

check: lint types test-fast ## lint, types and the fast tests

fuzz: setup $(VENV)/.ready-dev ## feed the decoders of both sides what a fuzzer thinks of (ARGS='--seconds 600')
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[fuzz]'
	@$(VENV)/bin/python tests/fuzz/run.py $(ARGS)

bench: setup image deps-install-browser ## measure speed and memory; prints a table, writes build/bench (PEERS=1: beside virtme-ng and quicksand)
	@$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[bench]'
	@$(VENV)/bin/python -m tests.bench $(ARGS)

pictures: setup image deps-install-browser ## draw the pictures of the documentation anew
	@$(VENV)/bin/python docs/pictures/draw_start.py
	@$(VENV)/bin/python docs/pictures/draw_timeline.py
	@$(VENV)/bin/python docs/pictures/draw_web.py

##@ Clean
.PHONY: clean distclean help
clean: ## remove what was built, and the instances of VMs that do not run
	@$(PYTHON) -m control.launch.clean
	@rm -rf build

distclean: clean ## remove the Python environment too
	@rm -rf $(VENV) *.egg-info

help: ## this list
	@awk -f docs/help.awk $(firstword $(MAKEFILE_LIST))
