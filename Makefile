# Berth. `make` alone shows the targets.
SHELL := /usr/bin/env bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-builtin-rules --no-print-directory

ROOT := $(CURDIR)
# The version of everything built here. An uncommitted change changes it, so
# that images and the cluster's manager never run something else than was built.
# Worked out once: sub-makes inherit it.
ifndef VERSION
DIRTY := $(shell git diff HEAD --quiet -- . 2>/dev/null || git diff HEAD -- . | sha256sum | cut -c1-8)
VERSION := 0.1.0-$(shell git rev-parse --short=10 HEAD 2>/dev/null || echo dev)$(if $(DIRTY),-$(DIRTY))
endif
export VERSION

export CGO_ENABLED := 0
# Each module is built as its users build it: workspace mode hides a missing require.
export GOWORK := off
# One set of flags for binaries, tests and checks alike, so that all share the
# build cache: Kubernetes' client is compiled once, not three times.
export GOFLAGS := -trimpath -buildvcs=false
GOBUILD := go build -ldflags '-s -w -X main.version=$(VERSION)'

MODULES := $(patsubst ./%,%,$(shell sed -n 's/^\t\(\.\/.*\)/\1/p' go.work))
SERVICES := $(patsubst services/%/main.go,%,$(wildcard services/*/main.go))
# The modules whose tests are the end-to-end ones, run last and on their own.
UNIT := $(filter-out e2e bench,$(MODULES))

CLUSTER_KUBECONFIG := $(ROOT)/.cache/devcluster/kubeconfig
# A user's own cluster is taken when KUBECONFIG is set.
TARGET_KUBECONFIG := $(if $(KUBECONFIG),$(KUBECONFIG),$(CLUSTER_KUBECONFIG))
DEVCLUSTER := bin/devcluster
# How tests and benchmark bring an image of their own into the cluster.
LOAD := $(if $(KUBECONFIG),$(BERTH_LOAD),$(ROOT)/bin/devcluster load)

.PHONY: help
help: ## show the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  \033[1m%-14s\033[0m %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: prepare build images examples ## see it work: cluster, example, connect, replace, and all undone
	@tools/demo/demo.sh

.PHONY: test
test: prepare-test build images cluster-unless-given examples ## everything, from unit to end-to-end with faults
	@tools/test/unit.sh $(UNIT)
	@KUBECONFIG=$(TARGET_KUBECONFIG) BERTH_LOAD='$(LOAD)' tools/test/e2e.sh

.PHONY: unit
unit: prepare-test build images ## the tests that need no cluster
	@tools/test/unit.sh $(UNIT)

.PHONY: e2e
e2e: prepare-test build images cluster-unless-given examples ## the end-to-end tests alone; RUN=regexp picks some
	@KUBECONFIG=$(TARGET_KUBECONFIG) BERTH_LOAD='$(LOAD)' RUN='$(RUN)' tools/test/e2e.sh

.PHONY: check
check: prepare ## what CI runs before the tests: fmt, vet, staticcheck, dependency rules, tidy, goldens
	@tools/check/check.sh $(MODULES)

.PHONY: bench
bench: prepare-test build images cluster-unless-given example ## Berth, what one would use instead, and the limit, in one run; STEPS picks some
	@$(if $(filter volumes,$(STEPS)),tools/prepare/prepare.sh volumes)
	@go -C bench build -o $(ROOT)/bin/bench . && KUBECONFIG=$(TARGET_KUBECONFIG) BERTH_LOAD='$(LOAD)' BERTH_CTL=$(ROOT)/bin/ctl bin/bench $(STEPS)

.PHONY: soak
soak: ## flows opened, reset and abandoned at random for MINUTES (20): what vif, manager and agent hold stays flat
	@MINUTES='$(MINUTES)' $(MAKE) bench STEPS=soak

.PHONY: build
build: ## all binaries, into bin/
	@mkdir -p bin
	@cd ctl && $(GOBUILD) -o $(ROOT)/bin/ctl .
	@for s in $(SERVICES); do (cd services/$$s && $(GOBUILD) -o $(ROOT)/bin/$$s .); done

.PHONY: images
images: prepare build ## the images berth:VERSION and berth-cluster:VERSION, without a registry
	@deploy/image/build $(VERSION) bin

.PHONY: cluster
cluster: prepare $(DEVCLUSTER) images ## a real Kubernetes in one container, berth-devcluster; kubeconfig in .cache/devcluster/
	@$(DEVCLUSTER) up --kubeconfig $(CLUSTER_KUBECONFIG)
	@$(DEVCLUSTER) load berth-cluster:$(VERSION)

.PHONY: cluster-unless-given
cluster-unless-given:
	@$(if $(KUBECONFIG),true,$(MAKE) cluster)

.PHONY: cluster-down
cluster-down: $(DEVCLUSTER) ## remove that cluster; its caches stay
	@$(DEVCLUSTER) down --kubeconfig $(CLUSTER_KUBECONFIG)

.PHONY: $(DEVCLUSTER)
$(DEVCLUSTER):
	@mkdir -p bin
	@go -C deploy/devcluster build -o $(ROOT)/bin/devcluster .

.PHONY: examples
examples: prepare ## the example's images, frontend-v1, frontend-v2 and backend
	@for i in frontend-v1 frontend-v2 backend; do \
		go -C examples build -ldflags '-s -w' -o $(ROOT)/examples/images/$$i/app ./images/$$i; \
		docker build -q -t $$i examples/images/$$i >/dev/null; \
	done
	@$(if $(KUBECONFIG),,if [ -e $(CLUSTER_KUBECONFIG) ]; then $(DEVCLUSTER) load frontend-v1:latest backend:latest; fi)

.PHONY: example
example: examples ## deploy the example to $KUBECONFIG, else to the dev cluster
	@KUBECONFIG=$(TARGET_KUBECONFIG) tools/demo/example.sh apply

.PHONY: prepare prepare-test
prepare:
	@tools/prepare/prepare.sh
prepare-test:
	@tools/prepare/prepare.sh test

.PHONY: tidy
tidy: ## go mod tidy in every module, and the generated files
	@for m in $(MODULES); do go -C $$m mod tidy; done
	@tools/check/generate.sh

.PHONY: clean
clean: ## remove what was built and started here: cluster, workspace, images, bin/ and .cache/
	@-[ -x bin/ctl ] && bin/ctl quit --all 2>/dev/null
	@-$(MAKE) cluster-down
	@-docker plugin rm -f telemount 2>/dev/null; docker rm -f berth-telemount 2>/dev/null; docker volume rm berth-telemount 2>/dev/null
	@-docker images --format '{{.Repository}}:{{.Tag}}' | grep -E '^(berth|berth-cluster|frontend-v1|frontend-v2|backend):' | xargs -r docker rmi -f >/dev/null
	@rm -rf bin .cache examples/images/*/app
