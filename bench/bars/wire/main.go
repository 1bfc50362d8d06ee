// Command wire measures what the way of records from site to site is held to (the rows of
// bars.Wire) and keeps the samples in bench/results/bars-wire.jsonl.
//
// Rates and CPU: each measurement runs in processes of its own, which this program starts
// from itself; ratios are taken over pairs in alternating order.
//
// Shaping: a source and a target, each a process in a network namespace of its own, are joined
// by a pair of interfaces; tbf lets twice the cap through, and segments are not merged,
// so that the interface counts each frame. The source has a backlog in three groups,
// of high, medium and low priority. The interface's own counter is read every 10 ms;
// a cap is held against the fullest second between any two readings. Needs root, ip and tc.
package main

import (
	"flag"
	"os"
	"time"

	"github.com/holdfast-dr/holdfast/bench/bars"
)

func main() {
	var o bars.Options
	o.Register(flag.CommandLine, "")
	memory := flag.String("memory", "/dev/shm", "folder in memory, for what both sides of a pair read")
	mib := flag.Int64("mib", 4096, "MiB of data for each measurement of a rate")
	times := flag.Int("times", 3, "measurements of the lag and of each cap")
	connections := flag.Int("connections", 2, "data connections over which batches go to a durable target, 1 to 8")
	length := flag.Duration("length", 0, "of each measurement of the lag or of a cap; 0 is as the bars define it, 5m and 1m")
	flag.Parse()
	o.Main(parts, func(r *bars.Run) (err error) {
		b := &bench{Run: r, bytes: *mib << 20, times: *times, connections: *connections, length: *length}
		if b.memory, err = os.MkdirTemp(*memory, "holdfast-bars-"); err != nil {
			return err
		}
		defer os.RemoveAll(b.memory)
		if err := certificates(b.memory); err != nil {
			return err
		}
		return r.Measure("wire", bars.Head{
			Title: "The bars of the wire", Command: "make bars-wire", Note: "source and target on it, and in two network namespaces for shaping; batches to a durable target go over two data connections",
		}, o.Keep, b.measures())
	})
}

// bench is one run of the bars.
type bench struct {
	*bars.Run
	memory      string        // a folder as Dir is, in memory, with the certificates of both sites
	bytes       int64         // of data that one measurement moves
	times       int           // measurements of the lag and of each cap
	connections int           // for data, of a pair
	length      time.Duration // of each measurement that has one; 0 is as long as the bar says
}

// lasts is how long a measurement takes that is defined to take so long, and what is noted of it.
func (b *bench) lasts(defined time.Duration) (time.Duration, string) {
	if b.length == 0 || b.length >= defined {
		defined = max(defined, b.length)
		return defined, defined.String()
	}
	return b.length, b.length.String() + ", shortened"
}

// measures are in the order in which they run.
func (b *bench) measures() []bars.Measure {
	return []bars.Measure{
		{Rows: []string{"allocations"}, Do: b.allocations},
		{Rows: []string{"pack"}, Do: b.pack},
		{Rows: []string{"tls-rate", "tls-cpu"}, Do: b.tls},
		{Rows: []string{"durable-lz4", "durable-auto", "durable-cpu"}, Do: b.durable},
		{Rows: []string{"ceiling"}, Do: b.ceiling},
		{Rows: []string{"lone-write"}, Do: b.lone},
		{Rows: []string{"lag-50"}, Do: func() error { return b.lag(50) }},
		{Rows: []string{"cap-5", "use-5", "share-high", "share-low"}, Do: func() error { return b.shaping(5) }},
		{Rows: []string{"cap-20", "use-20", "share-high", "share-low"}, Do: func() error { return b.shaping(20) }},
		{Rows: []string{"cap-100", "use-100", "share-high", "share-low"}, Do: func() error { return b.shaping(100) }},
	}
}

// parts run in processes of their own.
var parts = bars.Parts{
	"records": bars.Part(recordsPart),
	"bare":    bars.Part(barePart),
	"pack":    bars.Part(packPart),
	"library": bars.Part(libraryPart),
	"allocs":  bars.Part(allocsPart),
	"target":  bars.Part(targetPart),
	"source":  bars.Part(sourcePart),
	"verify":  bars.Part(verifyPart),
	"costs":   bars.Part(costsPart),
	"lone":    bars.Part(lonePart),

	"lag-target":    bars.Part(lagTargetPart),
	"lag-source":    bars.Part(lagSourcePart),
	"shaped-target": bars.Part(shapedTargetPart),
	"shaped-source": bars.Part(shapedSourcePart),
}
