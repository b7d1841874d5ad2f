# The everyday commands. Two of them are all a user of the tree needs: `make demo` and `make test`.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
# tests start hundreds of interpreters: each would compile our modules anew
unexport PYTHONDONTWRITEBYTECODE

# What a fresh Debian machine lacks. python3-venv only where the interpreter is Debian's own.
DEBIAN := runc nftables iptables conntrack busybox-static iproute2 procps gcc libc6-dev containernetworking-plugins \
  curl strace lua5.1 libdevmapper1.02.1
image e2e-install: DEBIAN += buildah debootstrap
bench-net: DEBIAN += iperf3
PYTHON ?= python3
V := .venv/bin
say = @printf '\033[1m== %s\033[0m\n' "$(1)"

.PHONY: help
help: ## This list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 16

.PHONY: system
system: ## Debian packages that demo and tests need (does nothing when they are there)
	@missing=""
	for p in $(DEBIAN); do dpkg-query -W -f='$${Status}' $$p 2>/dev/null | grep -q 'install ok' || missing="$$missing $$p"; done
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || missing="$$missing python3-venv"
	[ -z "$$missing" ] && exit 0
	printf '\033[1m== installing Debian packages:%s\033[0m\n' "$$missing"
	export DEBIAN_FRONTEND=noninteractive
	apt-get update -qq
	apt-get install -y -qq --no-install-recommends $$missing >/dev/null

.venv/.stamp: requirements.lock pyproject.toml
	$(call say,creating .venv from requirements.lock)
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python >= 3.11 is needed, this is " + sys.version)'
	[ -x $(V)/python ] || $(PYTHON) -m venv .venv
	$(V)/pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock
	$(V)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	touch $@

.PHONY: venv
venv: system .venv/.stamp ## The virtual environment

.PHONY: programs
programs: venv ## Kubernetes, etcd, containerd and the shim, built once into the cache (25 minutes of processor time cold)
	@$(V)/python -m tests.kube build
	$(V)/python -m tests.agent.shim
	$(V)/python -m tests.kube.debian docker.io containerd

.PHONY: demo
demo: venv programs ## The main job, end to end, on embedded parts (KEEP=1 leaves it up)
	@$(V)/python -m tests.demo $(if $(KEEP),--keep)

.PHONY: lint
lint: venv ## Formatter, linter, types, who may import whom
	$(call say,ruff)
	$(V)/ruff format --check .
	$(V)/ruff check .
	$(call say,mypy)
	$(V)/mypy operator/vnetpods_operator agent/vnetpods_agent kit/vnetpods_kit crds/vnetpods_api tests
	$(call say,import-linter)
	$(V)/lint-imports
	$(call say,what is made from other files)
	$(V)/python helm/generate.py --check

.PHONY: unit
unit: venv programs ## Every test that needs no cluster
	$(call say,tests without a cluster)
	exec $(V)/python -m tests.unit

.PHONY: e2e
e2e: venv programs ## The end-to-end tests, on one shared cluster
	$(call say,end-to-end tests)
	exec $(V)/pytest -q -m e2e

.PHONY: test
test: unit e2e ## All tests: first those without a cluster, then end to end
.NOTPARALLEL: test

.PHONY: bench
bench: venv programs ## ADD and DEL side by side with the reference plugins; table and build/bench.json
	@$(V)/python -m tests.bench

.PHONY: bench-net
bench-net: venv ## Packets: VM to VM, pod to pod, pod to Service, at 1 and 250 pods; build/bench-net.json
	@$(V)/python -m tests.bench net

.PHONY: bench-operator
bench-operator: venv programs ## The operator with 5,000 nodes; build/bench-operator.json
	@$(V)/python -m tests.bench.emulator
	$(V)/python -m tests.bench.operator

.PHONY: soak
soak: venv programs ## 10,000 ADD and DEL on a node with every misfortune that we know; prints its seed (SEED=n)
	@$(V)/python -m tests.agent.soak $(if $(SEED),--seed $(SEED))

.PHONY: chaos
chaos: venv programs ## 200 nodes, failing Azure calls, fighting operators; prints its seed
	@$(V)/python -m tests.operator.chaos

.PHONY: fuzz
fuzz: venv ## Random bytes against shim, codec and server, prints its seed (SEED=n); random writes of NICs
	@$(V)/python -m tests.agent.fuzz $(if $(SEED),--seed $(SEED))
	$(V)/python -m tests.azure.test_nic_machine

.PHONY: image
image: venv ## The container image, without Docker and without a registry: build/image.tar
	@$(V)/python -m tests.install image

.PHONY: e2e-install
e2e-install: image programs ## helm install, upgrade, uninstall of the built image on a real cluster
	@$(V)/pytest -q -s -m e2e tests/install

.PHONY: lock
lock: ## Recompute requirements.lock from pyproject.toml
	@$(V)/pip install --quiet uv
	$(V)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-annotate \
	  --no-header --all-extras --upgrade pyproject.toml -o requirements.lock

.PHONY: clean
clean: ## Takes down what a demo left up, removes build results; caches stay
	@[ ! -x $(V)/python ] || $(V)/python -m tests.demo --down
	rm -rf build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

.PHONY: clean-cache
clean-cache: clean ## Also the virtual environment and the cached programs
	@rm -rf .venv "$${VNETPODS_CACHE:-$$HOME/.cache/vnetpods}"
