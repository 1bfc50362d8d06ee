// Command capture measures what the filter is held to (the rows of bars.Capture) and keeps the
// samples in bench/results/bars-capture.jsonl.
//
// The guest is a driver and nothing else (vhostuser/guest; for NBD, fio): what is measured is
// the process that serves its disk. Three of them stand on the same file system: a lab's filter, whose
// VRA sends what it splits to a second VRA over the lab's link; a filter that no VRA has ever
// attached to; and the peer. They are used in turn, in alternating order, each once the lab has
// nothing left to do. Disks are written whole before the first measurement, all in turn: each stands everywhere.
//
// Source, target and link of the lab share the machine with the guest's load: what they
// take of its cores while they keep up, or read again what was only marked, is part of what is
// measured. The target's store lies in memory: at another site it is on another disk than the guest's.
//
// Deaths, cuts, first touches and initial syncs have labs of their own. The guest of the deaths writes and verifies
// what it wrote: no kernel is in it, since one whose processor is emulated asks for a fraction of what makes a death hard.
// Initial syncs read from memory and end on the measured disk, as those of their peers do. Needs root.
package main

import (
	"flag"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/bench/bars"
	"github.com/holdfast-dr/holdfast/bench/load"
	"github.com/holdfast-dr/holdfast/datapath/front/vhostuser/guest"
)

func main() {
	var o bars.Options
	o.Register(flag.CommandLine, " (twelve times -mib, and what a lab keeps of it all)")
	mib := flag.Int64("mib", 1024, "MiB of each disk")
	length := flag.Duration("length", 4*time.Second, "of each measurement of a rate")
	faults := flag.Duration("faults", time.Minute, "of the measurements under each fault, all pairs together; the bars say 1m")
	cutRate := flag.Float64("cut-rate", 6000, "writes of 4 KiB a second to the 12 volumes of the three hosts that share a group; 0 is as many as find room")
	initial := flag.Int64("initial", 8192, "MiB of the disk of the initial syncs, which stands twice in memory, but for the half that is holes; the bars say 8192")
	cache := flag.String("initial-cache", "none", "how the peers' qemu-nbd caches in them: none or writeback")
	kills := flag.Int("kills", 50, "of the filter; the bar says 50")
	after := flag.Duration("after", time.Minute, "for how long it is counted what is sent after a death or a cut, which lasts 10s; the bar says 1m")
	flag.Parse()
	o.Main(nil, func(r *bars.Run) error {
		b := &bench{Run: r, size: *mib << 20, length: *length, faults: *faults, cutRate: *cutRate, kills: *kills, after: *after, initialBytes: *initial << 20, initialCache: *cache, data: load.Corpus(load.DB, 1)}
		b.open = sync.OnceValue(b.begin)
		defer b.close()
		return r.Measure("capture", bars.Head{
			Title: "The bars of capture", Command: "make bars-capture", Note: "guest's load, filter, source, link and target share it; the target's store is in memory, as its disk is another site's",
		}, o.Keep, b.measures())
	})
}

// bench is one run of the bars.
type bench struct {
	*bars.Run
	size    int64 // of each disk, bytes
	length  time.Duration
	faults  time.Duration
	cutRate float64
	kills   int
	after   time.Duration

	initialBytes int64
	initialCache string
	firstParts   string // what the last initial sync of ours used, for people

	data []byte       // what guests write
	seed uint64       // of the last load
	open func() error // begin, once: the first measure that wants the sides has them opened
	sides
}

// measures are in the order in which they run.
func (b *bench) measures() []bars.Measure {
	return []bars.Measure{
		{Rows: []string{"vhost-4k", "vhost-4k-off", "filter-cpu"}, Do: b.small},
		{Rows: []string{"added-p50", "added-p99"}, Do: b.single},
		{Rows: []string{"vhost-1m", "vhost-1m-off"}, Do: b.large},
		{Rows: []string{"nbd-4k", "nbd-4k-qemu"}, Do: func() error { return b.nbd("nbd-4k", 32) }},
		{Rows: []string{"nbd-1", "nbd-1-qemu"}, Do: func() error { return b.nbd("nbd-1", 1) }},
		{Rows: []string{"guest-64k"}, Do: func() error { return b.replicate("guest-64k", guest.Load{Bytes: 64 << 10, Depth: 16}) }},
		{Rows: []string{"guest-4k"}, Do: func() error { return b.replicate("guest-4k", guest.Load{Bytes: 4096, Depth: 32}) }},
		{Rows: []string{"vra-killed"}, Do: b.killed},
		{Rows: []string{"first-touch"}, Do: b.touches},
		{Rows: []string{"sync-convert", "sync-nbdcopy", "sync-lz4"}, Do: b.initial},
		{Rows: []string{"host-crash"}, Do: b.hostCrash},
		{Rows: []string{"filter-kills", "filter-kill-errors"}, Do: b.filterKills},
		{Rows: []string{"resent-filter", "resent-source", "resent-target", "resent-cut", adoptRow}, Do: b.resent},
		{Rows: []string{"cuts-listed", "cuts-hold"}, Do: b.cuts},
		{Rows: []string{"p99-link", "p99-dead", "p99-stopped", "p99-spill", "fault-errors"}, Do: b.faulty},
	}
}
