# `make help` lists the targets. They need Go and bash; `make test` gets the rest.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VERSION ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
FUZZTIME ?= 30s
ARGS ?=

# The version is set below; asking git again fails in a clone of another user's.
export GOFLAGS := $(GOFLAGS) -buildvcs=false

STATICCHECK := honnef.co/go/tools/cmd/staticcheck@v0.8.2
UNIT = $$(go list ./... | grep -v /integration)

##@ Use

help: ## show this
	@awk 'BEGIN { FS = ":.*## " } \
		/^##@/ { printf "\n%s\n", substr($$0, 5) } \
		/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## build bin/jiji-node
	CGO_ENABLED=0 go build -trimpath -ldflags "-s -w -X main.version=$(VERSION)" -o bin/jiji-node ./cmd/jiji-node

run: build ## run a node on this machine, as root; ARGS="--mtu 1300" are its flags
	@[[ $$(id -u) == 0 ]] || { echo "make run: needs root, to make a network interface: run it as root" >&2; exit 1; }
	exec bin/jiji-node run $(ARGS)

demo: ## show three servers on this machine, as root; takes less than a minute
	@[[ $$(id -u) == 0 ]] || { echo "make demo: needs root, to make network namespaces: run it as root" >&2; exit 1; }
	.ci/deps
	go run ./integration/demo $(ARGS)

##@ Work on it

quick: ## vet and test what changed, without the lab
	go vet ./...
	go test -short $(UNIT)

test: deps lint cross ## everything that has to pass, the lab and real agents too; as root
	agent=$$(.ci/corrosion); export JIJI_TEST_CORROSION=$$agent; \
	debian=$$(.ci/debian); export JIJI_TEST_DEBIAN=$$debian; \
	go test -race -timeout 15m $(UNIT); \
	JIJI_LAB_RACE=1 go test -race -timeout 34m -p 1 ./integration/...

lint: ## gofmt, vet, staticcheck, govulncheck
	@files=$$(git ls-files -co --exclude-standard '*.go' | xargs -r gofmt -l); \
	[[ -z $$files ]] || { printf 'not as gofmt formats it:\n%s\n' "$$files" >&2; exit 1; }
	go vet ./...
	go run $(STATICCHECK) ./...
	.ci/vulnerabilities

cross: ## build for the other systems that it has to build for
	@for target in linux/amd64 linux/arm64 darwin/arm64 windows/amd64 freebsd/amd64; do \
		echo "build for $$target"; \
		CGO_ENABLED=0 GOOS=$${target%/*} GOARCH=$${target#*/} go build ./...; \
	done

fuzz: ## run each fuzz test for FUZZTIME (30s)
	.ci/fuzz $(FUZZTIME)

bench: ## measure against stock wireguard-go and a baseline of DNS, as root
	@[[ $$(id -u) == 0 ]] || { echo "make bench: needs root, to make network namespaces: run it as root" >&2; exit 1; }
	.ci/deps
	go run ./integration/bench $(ARGS)

deps: ## install the tools that the tests use, where apt can
	.ci/deps

.PHONY: help build run demo quick test lint cross fuzz bench deps
