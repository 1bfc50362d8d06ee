// Command journal measures what the journal is held to (the rows of bars.Journal) and
// keeps the samples in bench/results/bars-journal.jsonl.
//
// Each measurement runs in a process of its own, which this program starts from
// itself, so that CPU, memory and bytes written are counted apart. Ratios are taken
// over pairs: ours, then the peer, then the other way round.
package main

import (
	"flag"

	"github.com/holdfast-dr/holdfast/bench/bars"
)

func main() {
	var o bars.Options
	o.Register(flag.CommandLine, "; up to 60 GB are used and given back")
	scale := flag.Float64("scale", 1, "size of the data, 1 as the bars are defined; smaller ones only try the program, and are not kept")
	kept := flag.String("history", "", "folder for the journal of 100 M extents: made there if it is absent, used again if it is there, and left; else it is made anew, which takes twenty minutes")
	keptReads := flag.String("reads", "", "folder for the volume of 8 GiB that is read, and the raw file: the same")
	var try promoteScale
	flag.Float64Var(&try.seconds, "promote-seconds", 0, "seconds of a sample of promotion in place of what the scale says; only to try, and not kept")
	flag.Float64Var(&try.rate, "promote-rate", 0, "MB/s of intake beside promotion in place of a quarter of the disk's; only to try, and not kept")
	flag.Int64Var(&try.history, "promote-history", 0, "bytes of the history that is at its limit in place of 27 s of intake, at least 6 GiB; only to try, and not kept")
	flag.BoolVar(&try.empty, "promote-empty", false, "promote into a replica that was never written; only to try, and not kept")
	flag.Parse()
	o.Main(parts, func(r *bars.Run) error {
		b := &bench{Run: r, scale: *scale, kept: *kept, keptReads: *keptReads, try: try}
		return r.Measure("journal", bars.Head{
			Title: "The journal's bars", Command: "make bars-journal", Note: "the data on one disk, which both sides of a pair use in turn",
		}, o.Keep && *scale == 1 && try == (promoteScale{}), b.measures())
	})
}

// bench is one run of the bars.
type bench struct {
	*bars.Run
	scale float64
	try   promoteScale

	kept      string // folder of the large history; empty: none stays
	keptReads string // and of what the reads read
}

// measures are in the order in which they run.
func (b *bench) measures() []bars.Measure {
	return []bars.Measure{
		{Rows: []string{"append-one"}, Do: b.appendOne},
		{Rows: []string{"append-cpu"}, Do: b.appendCPU},
		{Rows: []string{"append-300"}, Do: b.appendMany},
		{Rows: []string{"append-cpu-4k"}, Do: b.appendSmall},
		{Rows: []string{"bytes-64k"}, Do: b.bytesLarge},
		{Rows: []string{"bytes-4k"}, Do: b.bytesSmall},
		{Rows: []string{"badger-cpu", "badger-memory"}, Do: b.badger},
		{Rows: []string{"read-qd1", "read-qd1-log", "read-qd16", "read-qd16-log"}, Do: b.reads},
		{Rows: []string{"open-view", "first-read", "memory"}, Do: b.large},
		{Rows: []string{"reopen-one"}, Do: b.reopenOne},
		{Rows: []string{"reopen-300"}, Do: b.reopenMany},
		{Rows: []string{"promote-keeps-up", "promote-ack", "promote-disk"}, Do: b.promote},
	}
}

// parts run in processes of their own.
var parts = bars.Parts{
	"append":  bars.Part(appendPart),
	"badger":  bars.Part(badgerPart),
	"history": bars.Part(historyPart),
	"read":    bars.Part(readPart),
	"raw":     bars.Part(rawPart),
	"reopen":  bars.Part(reopenPart),
	"open":    bars.Part(openPart),
	"promote": bars.Part(promotePart),
}
