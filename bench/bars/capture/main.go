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
// Needs root.
package main

import (
	"flag"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/bench/bars"
	"github.com/holdfast-dr/holdfast/bench/load"
)

func main() {
	var o bars.Options
	o.Register(flag.CommandLine, " (twelve times -mib, and what a lab keeps of it all)")
	mib := flag.Int64("mib", 1024, "MiB of each disk")
	length := flag.Duration("length", 4*time.Second, "of each measurement of a rate")
	faults := flag.Duration("faults", time.Minute, "of each measurement under a fault; the bars say 1m")
	cutRate := flag.Float64("cut-rate", 6000, "writes of 4 KiB a second to the 12 volumes of the three hosts that share a group; 0 is as many as find room")
	flag.Parse()
	o.Main(nil, func(r *bars.Run) error {
		b := &bench{Run: r, size: *mib << 20, length: *length, faults: *faults, cutRate: *cutRate, data: load.Corpus(load.DB, 1)}
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
	data    []byte       // what guests write
	seed    uint64       // of the last load
	open    func() error // begin, once: the first measure that wants the sides has them opened
	sides
}

// measures are in the order in which they run.
func (b *bench) measures() []bars.Measure {
	return []bars.Measure{
		{Rows: []string{"vhost-4k", "vhost-4k-off", "filter-cpu"}, Do: b.small},
		{Rows: []string{"added-p50", "added-p99"}, Do: b.single},
		{Rows: []string{"vhost-1m", "vhost-1m-off"}, Do: b.large},
		{Rows: []string{"nbd-4k"}, Do: func() error { return b.nbd("nbd-4k", 32) }},
		{Rows: []string{"nbd-1"}, Do: func() error { return b.nbd("nbd-1", 1) }},
		{Rows: []string{"vra-killed"}, Do: b.killed},
		{Rows: []string{"host-crash"}, Do: b.hostCrash},
		{Rows: []string{"cuts-listed", "cuts-hold"}, Do: b.cuts},
		{Rows: []string{"p99-link", "p99-dead", "p99-stopped", "p99-spill", "fault-errors"}, Do: b.faulty},
	}
}
