# make         builds bin/holdfast, bin/vra, bin/vra-filter and bin/vra-sidecar
# make demo    two sites on this machine: a real guest comes back after its site died; then a workload, two checkpoints opened and compared (KEEP=1 leaves them running; GUEST=0 leaves the guest out)
# make check   everything that proves the tree, in under 12 minutes
# make bench   capacity runs, and BENCHMARKS.md from their results
# make bars-journal  what the journal is held to, measured against its peers (an hour; 60 GB of disk)
# make bars-wire  what the way of records is held to: rates and CPU against peers, and shaping over network namespaces (45 minutes, more while others disturb it; root; 10 GB of memory, 6 GB of disk)
# make bars-capture  what the filter is held to, against qemu-storage-daemon, nbdkit, mirror and copying, and under faults and deaths (about three quarters of an hour; root; 12 GB of memory, 20 GB of disk)
# make bars-control  what the sidecar is held to: idle, status of 300 groups, cuts (a quarter of an hour)
# make bars-recovery  what bringing machines up at the second site is held to (a quarter of an hour; root; 12 GB of disk)
# make guest   real guests whose host dies, that are attached while they run, that come up at the second site, and that move onto plain disks there (some minutes; check has one of each)
# make guest-whole  the longer stories of real guests: over to the second site and back again, several disks, the demo interrupted (some minutes; with root one of the disks is a block device)
# make planted every planted bug must be found by the test named for it
# make wire-every-byte  a fault of each kind at each byte of a 64 KiB exchange (a quarter of an hour of CPU)
# make fuzz    each decoder's fuzz target for FUZZTIME
# make generate  the code of control/api, and API.md there, from its .proto files
# make deb      bin/holdfast_VERSION_ARCH.deb: daemons, command, units, pages, dashboard and alert rules; the same bytes each time
# make install  the same below PREFIX (/usr/local) of DESTDIR; make uninstall takes it away again
# make clean

GO       ?= go
FUZZTIME ?= 15s
# A released toolchain of the right age is fetched by go itself when this one is older.
export GOTOOLCHAIN ?= auto

.PHONY: all build demo check guest guest-whole bench bars-journal bars-wire bars-capture bars-control bars-recovery planted wire-every-byte fuzz generate deb install uninstall clean

all: build

build:
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=auto -o bin/ ./cmd/...

# Where Debian's kernel for virtual machines is kept, unpacked; the tests of guests use it too.
GUEST_KERNEL ?= $(or $(XDG_CACHE_HOME),$(HOME)/.cache)/holdfast/guest-kernel

demo: build
ifneq ($(GUEST),0)
	@tools/setup/packages.sh qemu-system-x86 busybox-static e2fsprogs
	bin/holdfast demo guest --kernel "$$(tools/setup/kernel.sh '$(GUEST_KERNEL)')" $(if $(filter-out 0 no false,$(KEEP)),--keep)
endif
	bin/holdfast demo $(if $(filter-out 0 no false,$(KEEP)),--keep)

# What the checks use beside Go: a C compiler for the race detector, real NBD clients, what a guest is made of, what reads .proto files, promtool, systemd-analyze, and
# what README's lines use.
check:
	@tools/setup/packages.sh gcc libc6-dev qemu-utils fio libnbd-bin nbdkit iproute2 qemu-system-x86 busybox-static e2fsprogs libvirt-daemon ovmf protobuf-compiler libprotobuf-dev prometheus systemd curl git
	$(GO) run ./tools/check

bench: build
	@tools/setup/packages.sh libnbd-bin nbdkit
	$(GO) run ./bench/report -run

# BARS_DIR is a folder on the disk to measure; BARS a regular expression of row keys.
bars-journal:
	@tools/setup/packages.sh fio
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -buildvcs=auto -o bin/bars-journal ./bench/bars/journal
	bin/bars-journal $(if $(BARS_DIR),-dir '$(BARS_DIR)') $(if $(BARS),-only '$(BARS)')
	$(GO) run ./bench/report

# BARS_DIR is a folder on the disk to measure; BARS a regular expression of row keys.
bars-wire:
	@tools/setup/packages.sh iproute2 lz4 socat
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -buildvcs=auto -o bin/bars-wire ./bench/bars/wire
	bin/bars-wire $(if $(BARS_DIR),-dir '$(BARS_DIR)') $(if $(BARS),-only '$(BARS)')
	$(GO) run ./bench/report

# BARS_DIR is a folder on the disk to measure; BARS a regular expression of row keys.
bars-capture:
	@tools/setup/packages.sh qemu-system-x86 qemu-utils libnbd-bin fio nbdkit lz4 socat
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -buildvcs=auto -o bin/bars-capture ./bench/bars/capture
	bin/bars-capture $(if $(BARS_DIR),-dir '$(BARS_DIR)') $(if $(BARS),-only '$(BARS)')
	$(GO) run ./bench/report

# BARS_DIR is a folder on the disk to measure; BARS a regular expression of row keys.
bars-control:
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -buildvcs=auto -o bin/bars-control ./bench/bars/control
	bin/bars-control $(if $(BARS_DIR),-dir '$(BARS_DIR)') $(if $(BARS),-only '$(BARS)')
	$(GO) run ./bench/report

# BARS_DIR is a folder on the disk to measure; BARS a regular expression of row keys.
bars-recovery:
	@tools/setup/packages.sh qemu-system-x86 fio nbdkit
	@mkdir -p bin
	CGO_ENABLED=0 $(GO) build -buildvcs=auto -o bin/bars-recovery ./bench/bars/recovery
	bin/bars-recovery $(if $(BARS_DIR),-dir '$(BARS_DIR)') $(if $(BARS),-only '$(BARS)')
	$(GO) run ./bench/report

guest:
	@tools/setup/packages.sh qemu-system-x86 busybox-static e2fsprogs libnbd-bin
	CGO_ENABLED=0 $(GO) test -tags e2e -count 1 -timeout 10m -run 'Guest' -skip 'Whole' -v ./bench/scenario

guest-whole:
	@tools/setup/packages.sh qemu-system-x86 busybox-static e2fsprogs
	CGO_ENABLED=0 $(GO) test -tags e2e -count 1 -timeout 15m -run 'Whole' -v ./bench/scenario

planted:
	$(GO) run ./tools/planted

# Nearly all of it goes into handshakes, whose bytes are not what is tried: the dearest part of them is left out.
wire-every-byte:
	GODEBUG=tlsmlkem=0 HOLDFAST_EVERY_BYTE=1 $(GO) test -run 'TestFaultsWithin64KiB' -timeout 5h -v ./wire

fuzz:
	$(GO) run ./tools/check -fuzz $(FUZZTIME)

generate:
	@tools/setup/packages.sh protobuf-compiler libprotobuf-dev
	GOBIN=$(CURDIR)/bin/generate $(GO) install google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.12
	GOBIN=$(CURDIR)/bin/generate $(GO) install connectrpc.com/connect/cmd/protoc-gen-connect-go@v1.21.1
	PATH="$(CURDIR)/bin/generate:$$PATH" $(GO) generate ./control/api/...
	$(GO) run ./tools/apidoc

# A package follows from the commit alone: its version and its dates too.
export SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct 2>/dev/null)
VERSION ?= $(shell git log -1 --abbrev=12 --date=format:%Y%m%d%H%M%S --format=0~%cd+%h 2>/dev/null || echo 0~devel)

deb:
	@mkdir -p bin/deb
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags='-s -w' -buildvcs=auto -o bin/deb/ ./cmd/...
	$(GO) run ./tools/packaging -bin bin/deb -version '$(VERSION)' deb

PREFIX ?= /usr/local

install: build
	$(GO) run ./tools/packaging -destdir '$(DESTDIR)' -prefix '$(PREFIX)' install

uninstall: build
	$(GO) run ./tools/packaging -destdir '$(DESTDIR)' -prefix '$(PREFIX)' uninstall

clean:
	rm -rf bin
