# `make help` lists the targets.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.ONESHELL:
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

FUZZTIME ?= 10s
BENCHTIME ?= 1s
SEEDS ?= 10000
FROM ?= 0
GOLANGCI_VERSION := 2.12.1
GOLANGCI := bin/golangci-lint
RESULTS := bin/ci.log
NEEDS_GO := command -v go >/dev/null || { echo "Go is missing: install the version that go.mod names, or a later one, from https://go.dev/dl"; exit 1; }

.PHONY: help
help: ## list the targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: run
run: ## build and run a server for this machine alone, with defaults
	@$(NEEDS_GO)
	[ -x bin/tocsin ] || echo "building tocsin; the first time this takes a minute or two"
	go build -o bin/ ./cmd/tocsin
	exec bin/tocsin serve --dev

.PHONY: build
build: ## build everything; the programs go to bin/
	@$(NEEDS_GO)
	mkdir -p bin
	go build -o bin/ ./...

.PHONY: test
test: ## run the tests with the race detector, in random order
	@$(NEEDS_GO)
	command -v "$$(go env CC)" >/dev/null || { echo "the race detector needs a C compiler: install gcc and libc6-dev"; exit 1; }
	go test -race -shuffle=on ./...
	go test -tags lockorder -short -run 'Order|Sim|Bus|Once|Hook|Drain|Linger|Batch|Receipt' ./internal/lockorder ./server

.PHONY: lint
lint: $(GOLANGCI) ## run golangci-lint, and vet the stubs of other systems
	@$(GOLANGCI) run --allow-parallel-runners
	$(MAKE) vet-darwin

.PHONY: vet-darwin
vet-darwin: # other systems get stubs; this keeps them honest
	@GOOS=darwin go vet ./...

.PHONY: fmt
fmt: $(GOLANGCI) ## format the code
	@$(GOLANGCI) fmt

.PHONY: fmt-check
fmt-check: $(GOLANGCI) # fails if make fmt would change something
	@$(GOLANGCI) fmt --diff

# A linter of the right version that is installed elsewhere is used as it is.
.PHONY: $(GOLANGCI)
$(GOLANGCI):
	@for have in $@ "$$(command -v golangci-lint || true)" "$$(go env GOPATH)/bin/golangci-lint"; do
		if [ -x "$$have" ] && [ "$$("$$have" version --short)" = "$(GOLANGCI_VERSION)" ]; then
			[ "$$have" = $@ ] || { mkdir -p bin && ln -sf "$$have" $@; }
			exit 0
		fi
	done
	echo "installing golangci-lint $(GOLANGCI_VERSION) into bin/, this takes a minute or two"
	GOBIN="$(CURDIR)/bin" go install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v$(GOLANGCI_VERSION)

.PHONY: e2e
e2e: e2e/node_modules/.package-lock.json ## test the binary with clients nobody here wrote: Chromium, ws, websockets
	@go test -race -tags e2e -count=1 ./e2e

e2e/node_modules/.package-lock.json: e2e/package.json e2e/package-lock.json
	@command -v npm >/dev/null || { echo "make e2e needs npm: .ci/run installs it"; exit 1; }
	npm ci --prefix e2e --no-audit --no-fund
	touch $@

.PHONY: fuzz
fuzz: ## run every fuzz target for FUZZTIME (10s)
	@targets=$$(go test -list '^Fuzz' ./... | awk '/^Fuzz/ { f[n++] = $$1 } /^ok/ { for (i = 0; i < n; i++) print $$2, f[i]; n = 0 }')
	[ -n "$$targets" ] || { echo "no fuzz target found"; exit 1; }
	log=$$(mktemp); trap 'rm -f "$$log"' EXIT
	while read -r pkg target; do
		echo "$$target in $$pkg for $(FUZZTIME)"
		run() { go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) "$$pkg" </dev/null 2>&1 | tee "$$log"; }
		# Go's fuzzer now and then fails at the end of its time without an input that fails.
		run || { grep -q 'context deadline exceeded' "$$log" && ! grep -q 'Failing input' "$$log" && run; }
	done <<< "$$targets"

.PHONY: test-peers
test-peers: # the servers of the comparison, a module of its own
	@go -C loadtest/peers vet ./... && go -C loadtest/peers test ./...

.PHONY: bench
bench: go-bench ## run every benchmark, then memory and CPU as ratios to a bare loop
	@go build -o bin/ ./cmd/tocsin ./loadtest
	bin/loadtest bench --tocsin bin/tocsin $(BENCH)

.PHONY: go-bench
go-bench: # the benchmarks of the packages, one package at a time
	@go test -p 1 -run '^$$' -bench . -benchmem -benchtime $(BENCHTIME) ./...

.PHONY: bench-smoke
bench-smoke: ## run every benchmark once
	@$(MAKE) bench BENCHTIME=1x BENCH="-n 300 --rounds 1 --settle 1s --duration 200ms --active 100"

.PHONY: million
million: ## prove a million connections (N=…) to one server, in a virtual machine where the limits make that necessary; YES=1 installs qemu without a question, DOCS=1 updates docs/million.md
	@loadtest/vm/run.sh

.PHONY: compare
compare: ## hold tocsin against the peers of loadtest/peers and write docs/comparison.md; COMPARE="-rounds 5" and the like
	@go -C loadtest/peers run ./compare $(COMPARE)

.PHONY: faults
faults: ## run the tests that cite a row of docs/faults.md, at full size
	@tests=$$(find . -name '*_test.go' -not -path '*/node_modules/*' -exec awk '
		FNR == 1 { cites = 0 }
		/^\/\// { if (/docs\/faults\.md/) cites = 1; next }
		cites && match($$0, /^func (Test|Fuzz)[A-Za-z0-9_]*/) { print substr($$0, 6, RLENGTH - 5) }
		{ cites = 0 }' {} +)
	[ -n "$$tests" ] || { echo "no test cites docs/faults.md"; exit 1; }
	TOCSIN_FULL=1 go test -p 1 -count=1 -timeout 60m -run "^($${tests//$$'\n'/|})\$$" ./...

.PHONY: sim
sim: ## simulate the server: SEEDS (10000) seeds from FROM (0) on, on all cores
	@go run ./internal/mutants -none -n 0 -seeds $(SEEDS) -from $(FROM)

.PHONY: sim-mutants
sim-mutants: ## plant bugs, each of which the simulation must find, and write docs/mutants.md; MUTANTS="-run pong" for some
	@go run ./internal/mutants $(MUTANTS)

.PHONY: ci
ci: ## everything that must be green, with go test's result lines last
	@mkdir -p bin && : > $(RESULTS)
	failed=
	for step in fmt-check lint build test test-peers e2e "fuzz FUZZTIME=5s" bench-smoke; do
		began=$$SECONDS
		echo "=== make $$step"
		$(MAKE) $$step 2>&1 | tee -a $(RESULTS) || failed="$$failed, $$step"
		echo "=== make $$step: $$((SECONDS - began)) s"
	done
	if [ -z "$$failed" ]; then echo "=== all steps passed"; else echo "=== failed: $${failed#, }"; fi
	grep -E '^(ok |FAIL|--- FAIL|panic:)' $(RESULTS) || true
	[ -z "$$failed" ]
