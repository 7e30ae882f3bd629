# The two commands of a newcomer are `make demo` and `make test`; `make help` lists the rest.
# Everything that takes long and does not depend on this tree's Rust code (kernel, worker image, QEMU, test
# root filesystems) is cached by content in $RUNDLET_CACHE, by default ~/.cache/rundlet.

SHELL := /bin/bash
.DEFAULT_GOAL := help
PREFIX ?= /usr/local
GUEST := target/guest

.PHONY: help setup build kernel initrd demo test lint unit client scripts nix-check emulated claims caches bench compare fuzz install clean

help: ## this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/  make \1\t\2/p' Makefile | expand -t 20

setup: ## install the Debian packages that building and testing need
	@./setup.sh

build: setup kernel initrd ## everything that ships: three host programs, guest kernel, guest init
	cargo build --release --locked -p rundlet -p rundlet-vmm -p vhost-blk-ro

kernel: setup ## the guest kernel (cached by content)
	guest-kernel/build.sh --output $(GUEST)/vmlinux

initrd: setup ## the guest's init in an initramfs
	guest-userspace/initrd.sh $(GUEST)/initrd.cpio

demo: build ## run a real Python program in a sandbox, show what it cost
	vm-tests/demo

# Unit tests wait for timers and processes most of the time, in which the kernel builds at the side.
test: setup ## all that CI runs
	@mkdir -p target
	@nice -n 10 $(MAKE) caches >target/caches.log 2>&1 & caches=$$!; \
	trap "kill $$caches 2>/dev/null" EXIT; \
	for part in lint unit client scripts; do \
		$(MAKE) --no-print-directory $$part || exit 1; \
	done; \
	wait $$caches || { cat target/caches.log; exit 1; }
	$(MAKE) --no-print-directory build nix-check emulated claims

caches: kernel ## what is built once: guest kernel, worker VM, its root file systems
	vm-tests/worker/fetch-qemu.sh
	vm-tests/worker/build.sh
	vm-tests/worker/rootfs.sh

lint: setup ## formatting and clippy
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

unit: setup ## tests that need no virtual machine (those that need KVM say so when they skip)
	cargo test --workspace --locked

client: setup ## the API's test with a client that a generator made of its document (says so when pip has no index)
	node/tests/client/run.py

scripts: setup ## tests of the driver and syntax of the shell scripts
	git ls-files '*.sh' setup.sh .ci/run vm-tests/demo | xargs -n1 bash -n
	python3 -m unittest discover -q -s vm-tests/driver -t vm-tests -p '*_test.py'

nix-check: setup ## the Nix side, as far as this machine can (nix/README.md); NIXPKGS=<tree> for all of it
	nix/check/check.py

emulated: kernel initrd ## kernel patches, and boots that cannot work, under plain emulation
	vm-tests/worker/fetch-qemu.sh >/dev/null
	guest-kernel/test.sh
	guest-userspace/test.sh

claims: build ## the promises, each a test in a worker VM
	vm-tests/run

bench: build ## the figures of docs/budgets.md, in one run
	vm-tests/run --bench

compare: build ## ours beside peers, by `rundlet bench` in workers; FIRECRACKER=PATH to have that, too
	vm-tests/run $(if $(FIRECRACKER),--with firecracker=$(FIRECRACKER)) --compare

fuzz: setup ## every parser of hostile bytes, SECONDS each (default 600)
	fuzz/run.sh $(SECONDS_EACH)

install: build ## into $(PREFIX)
	install -D -m 755 -t $(DESTDIR)$(PREFIX)/bin target/release/rundlet
	install -D -m 755 -t $(DESTDIR)$(PREFIX)/libexec/rundlet target/release/rundlet-vmm target/release/vhost-blk-ro
	install -D -m 644 -t $(DESTDIR)$(PREFIX)/share/rundlet $(GUEST)/vmlinux $(GUEST)/initrd.cpio

clean: ## this tree's build output, not the cache
	cargo clean
