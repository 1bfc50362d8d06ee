package bars

import "math"

// Areas are the groups of bars, by the name of their program.
var Areas = map[string][]Row{"capture": Capture, "control": Control, "journal": Journal, "recovery": Recovery, "wire": Wire}

// Capture is what the filter is held to. Writes are at random places of a disk that is written whole before,
// source and target run beside the guest's load as a lab runs them, and capture is off where no VRA takes what is split.
var Capture = []Row{
	{"vhost-4k", "vhost-user, capture and pipeline on, against qemu-storage-daemon's vhost-user export of a raw file, without replication: writes of 4 KiB at depth 32, IOPS", "x", 0.85, true},
	{"vhost-1m", "the same, 1 MiB at depth 4", "x", 0.95, true},
	{"vhost-4k-off", "the same with capture off: 4 KiB at depth 32", "x", 1, true},
	{"vhost-1m-off", "1 MiB at depth 4", "x", 1, true},
	{"added-p50", "p50 that capture adds to a write of 4 KiB at depth 1; peer: capture off", "us", 10, false},
	{"added-p99", "p99 of the same with capture on, over that with capture off", "x", 1.5, false},
	{"first-touch", "p50 that a write of 4 KiB takes longer when it is the first to a region that the activity log lacks; peer: p50 of a sync of the guest's disk", "x", 1, false},
	{"filter-cpu", "CPU of the filter for a write of 4 KiB at depth 32, capture on; peer: qemu-storage-daemon's", "us", 7, false},
	{"nbd-4k", "NBD, capture and pipeline on, cache: writeback, against nbdkit file without replication, both into the page cache: writes of 4 KiB at depth 32, IOPS", "x", 1.25, true},
	{"nbd-1", "the same at depth 1", "x", 1, true},
	{"nbd-4k-qemu", "what a server makes that writes past the page cache: ours, cache: none, against qemu-nbd --cache=none --aio=native, depth 32", "x", math.NaN(), true},
	{"nbd-1-qemu", "the same at depth 1", "x", math.NaN(), true},
	{"guest-64k", "writes of 64 KiB at depth 16 while they are replicated, against qemu-storage-daemon's vhost-user export of a raw file under its mirror job in background mode to a qemu-nbd over TCP, not encrypted, whose file lies in memory as our store does, IOPS", "x", 2, true},
	{"guest-4k", "the same, 4 KiB at depth 32", "x", 2.5, true},
	{"sync-convert", "initial sync of 8 GiB, half of it holes, db, from memory to ext4, encrypted, an open pipe, until the first checkpoint, against qemu-img convert of 8 coroutines, out of order, to a qemu-nbd past the page cache, synced and not encrypted", "x", 1.1, true},
	{"sync-nbdcopy", "the same against nbdcopy of 4 connections", "x", 1.1, true},
	{"sync-lz4", "the same against lz4 -1, socat, socat, lz4 -d", "x", 3.5, true},
	{"vra-killed", "the VRA killed: longest stall of the guest's writes of 4 KiB at depth 32; peer: longest without a kill", "ms", 50, false},
	{"filter-kills", "50 SIGKILLs of the filter under a guestless front end that writes and verifies 4 KiB at depth 32, as QEMU submits again what was in flight: longest stall", "s", 2, false},
	{"filter-kill-errors", "errors that it was answered, or found, all that it wrote read again at the end and held against what has arrived", "", 0, false},
	{"resent-filter", "the filter killed under 1,000 requests a second of 4 KiB that do not compress, three in four writes: bytes from site to site in the minute after, the guest's own included, over the 4 KiB blocks that it touched then", "x", 2, false},
	{"resent-source", "the same, the source's VRA killed", "x", 2, false},
	{"resent-target", "the same, the target's", "x", 2, false},
	{"resent-cut", "the same, the link cut for 10 s", "x", 2, false},
	{"resent-adopted", "the source's VRA killed with what a guest wrote in its window, the link down and the guest at rest: what the next one packs; peer: what was written", "MiB", 0, false},
	{"p99-link", "guest p99, 4 KiB at depth 8 and half of its own most: the link at 0 b/s, over all well", "x", 1.2, false},
	{"p99-dead", "the same, the target dead", "x", 1.2, false},
	{"p99-stopped", "the same, the VRA stopped (SIGSTOP)", "x", 1.2, false},
	{"p99-spill", "the same, the link at 0 b/s and the spill disk full", "x", 1.2, false},
	{"host-crash", "the source's host crashed: bytes from site to site until the group is protected, over 2 x changed + 16 B per 4 KiB compared", "x", 1, false},
	{"cuts-listed", "three source VRAs, 4 volumes each, writes of 4 KiB at depth 32: intervals of 1 s with a checkpoint; peer: idle", "%", 99, true},
	{"cuts-hold", "for how long a cut of theirs holds answers back, p99; peer: idle", "ms", 2, false},
	{"fault-errors", "errors that the guest was answered in these", "", 0, false},
}

// Control is what the sidecar is held to, asked over mutual TLS on loopback.
var Control = []Row{
	{"idle-memory", "resident memory of a sidecar that nobody asks, the most of 10 minutes, one group", "MiB", 30, false},
	{"idle-cpu", "CPU of the same, of one core", "%", 0.5, false},
	{"status-300", "status of 300 groups, p99; peer: at the vra's own socket", "ms", 20, false},
	{"cut", "a cut ordered over 4009, from the order until it is listed, p99 beyond the target's mean sync", "ms", 100, false},
}

// Journal is what the journal is held to.
var Journal = []Row{
	{"append-one", "append, synced acks, one group, against fio's sequential direct writes", "x", 0.85, true},
	{"append-300", "the same, 300 groups", "x", 0.7, true},
	{"append-cpu", "CPU of appending so, one group; beside it fio's", "CPU-s/GiB", 0.35, false},
	{"append-cpu-4k", "CPU with records of 16 writes of 4 KiB, index included", "CPU-s/GiB", 0.7, false},
	{"bytes-64k", "bytes written per stored byte, all included, 64 KiB writes", "x", 1.01, false},
	{"bytes-4k", "the same, 4 KiB at random over 100 GiB", "x", 1.06, false},
	{"badger-cpu", "CPU of Badger holding the payload as values, over ours, 64 KiB", "x", 2, true},
	{"badger-memory", "peak memory of the same, over ours", "x", 5, true},
	{"open-view", "open a view in a journal of 100 M extents", "ms", 50, false},
	{"first-read", "its first 4 KiB read, cold", "ms", 5, false},
	{"read-qd1", "random 4 KiB reads of a view against a raw file, cold, depth 1, all blocks", "x", 0.4, true},
	{"read-qd1-log", "the same, blocks in the log alone", "x", 0.4, true},
	{"read-qd16", "depth 16, all blocks", "x", 0.5, true},
	{"read-qd16-log", "the same, blocks in the log alone", "x", 0.5, true},
	{"reopen-one", "reopen after kill of a journal of 100 GiB until intake, one group", "s", 2, false},
	{"reopen-300", "the same, 300 groups", "s", 5, false},
	{"memory", "resident memory at 100 M extents, beyond the configured cache", "MiB", 256, false},
	{"promote-keeps-up", "bytes promoted per byte taken, from the end of a pass to the end of one, at an intake of a quarter of the disk; less than a segment of 256 MiB, which is freed whole, counts as none", "x", 1, true},
	{"promote-ack", "ack p99 beside promotion, over that without", "x", 2, false},
	{"promote-disk", "what the disk itself does: p99 of fio's write of 1 MiB and its sync beside the same flows (promotion's writes, and its reads, of what was written some seconds before, by fio too), over that without", "x", math.NaN(), false},
}

// Recovery is what bringing machines up at the second site is held to. Their processor is emulated.
var Recovery = []Row{
	{"first-one", "failover test of one machine, from the exec of the command until QEMU runs it", "s", 2, false},
	{"first-ours", "the same, until QEMU is started", "ms", 300, false},
	{"first-twenty", "twenty machines of 128 MiB in one group, until the last runs", "s", 10, false},
	{"lag-test", "lag p99 of a running protection while a test failover comes and goes, over that before", "x", 1.1, false},
	{"view-vhost", "reads of 4 KiB at depth 16 from a view over vhost-user, as a machine has it unless its file says otherwise: past QEMU's block layer; against the plain disk through that (direct, aio=native), cold, IOPS", "x", 0.5, true},
	{"view-qemu", "the same of a view over NBD through QEMU's block layer, as a machine has it whose file says front: nbd", "x", math.NaN(), true},
	{"view-qemu-nbd", "what NBD costs there: the plain disk behind nbdkit, through the same, against the same", "x", math.NaN(), true},
	{"view-qd16", "what QEMU and NBD cost: the view over NBD by fio's own NBD client, against the plain disk by fio's libaio, without QEMU on either side", "x", math.NaN(), true},
	{"view-nbd", "the view over NBD by fio, against the plain disk behind nbdkit and the same NBD client", "x", 0.5, true},
	{"plain-qd16", "reads of 4 KiB at depth 16 from the disk that a running machine has moved onto, against the plain disk, both by libaio, cold, IOPS", "x", 0.95, true},
	{"failback", "failback after 1 GiB written on a disk of 20 GiB: raw bytes sent, less what the old source had beyond the checkpoint", "GiB", 1.2, false},
}

// Wire is what the way of records from site to site is held to. Shaping is measured behind tbf
// at twice the cap and with a backlog of three groups, as the interface counts.
var Wire = []Row{
	{"tls-rate", "records over TLS loopback, incompressible, checksums verified, against a bare crypto/tls copy loop with 256 KiB writes", "x", 0.95, true},
	{"tls-cpu", "CPU of the same", "x", 1.15, false},
	{"pack", "pack of db on n cores against n times one core's lz4 CompressBlock of the library, blocks of 32 KiB", "x", 0.95, true},
	{"durable-lz4", "batches of db to a durable target, encrypted, LZ4 forced, against a pipe of lz4 -1, socat, socat and lz4 -d into a file that is synced", "x", 1.7, true},
	{"durable-auto", "the same, level chosen by itself", "x", 2.5, true},
	{"durable-cpu", "CPU of that pipe, over ours with LZ4 forced", "x", 1.4, true},
	{"ceiling", "incompressible batches to a durable target, encrypted, against the computed ceiling", "x", 0.85, true},
	{"lone-write", "a lone 4 KiB write, capture to acknowledgement, beyond the target's sync, p50", "ms", 1, false},
	{"allocations", "allocations per record from packing to receiving, steady state, beside crypto/tls's own when it reads a socket", "", 0, false},
	{"lag-50", "lag p99 with load at 80 % of a 50 Mbit link", "s", 1, false},
	{"cap-5", "fullest second at a cap of 5 Mbit, beyond it", "%", 3, false},
	{"use-5", "use of that cap", "%", 97, true},
	{"cap-20", "fullest second at 20 Mbit", "%", 3, false},
	{"use-20", "use of that cap", "%", 97, true},
	{"cap-100", "fullest second at 100 Mbit", "%", 3, false},
	{"use-100", "use of that cap", "%", 97, true},
	{"share-high", "share of high priority beside medium and low, at each of these caps", "%", 60, true},
	{"share-low", "share of low priority", "%", 5, true},
}
