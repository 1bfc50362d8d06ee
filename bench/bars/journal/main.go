// Command journal measures what the journal is held to (the rows of bars.Journal) and
// keeps the samples in bench/results/bars-journal.jsonl.
//
// Each measurement runs in a process of its own, which this program starts from
// itself, so that CPU, memory and bytes written are counted apart. Ratios are taken
// over pairs: ours, then the peer, then the other way round.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"github.com/holdfast-dr/holdfast/bench/bars"
)

const results = "bench/results/bars-journal.jsonl"

func main() {
	child := flag.String("child", "", "run one measurement with its arguments on standard input (used by this program itself)")
	dir := flag.String("dir", os.TempDir(), "folder for the data, on the disk to measure; up to 60 GB are used and given back")
	only := flag.String("only", "", "measure only the rows whose key matches this regular expression")
	pairs := flag.Int("pairs", 5, "pairs for each ratio")
	scale := flag.Float64("scale", 1, "size of the data, 1 as the bars are defined; smaller ones only try the program")
	keep := flag.Bool("keep", true, "write "+results)
	flag.Parse()
	if *child != "" {
		if err := runChild(*child, os.Stdin, os.Stdout); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", *child, err)
			os.Exit(1)
		}
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	pattern, err := regexp.Compile(*only)
	if err == nil {
		err = run(ctx, *dir, pattern, *pairs, *scale, *keep)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bars:", err)
		os.Exit(1)
	}
}

// bench is one run of the bars.
type bench struct {
	ctx     context.Context
	dir     string // of this run, removed at its end
	pairs   int
	scale   float64
	wanted  *regexp.Regexp
	samples []bars.Sample
}

// measures are in the order in which they run; each fills the rows it names.
var measures = []struct {
	rows []string
	run  func(*bench) error
}{
	{[]string{"append-one"}, (*bench).appendOne},
	{[]string{"append-cpu"}, (*bench).appendCPU},
	{[]string{"append-300"}, (*bench).appendMany},
	{[]string{"append-cpu-4k"}, (*bench).appendSmall},
	{[]string{"bytes-64k"}, (*bench).bytesLarge},
	{[]string{"bytes-4k"}, (*bench).bytesSmall},
	{[]string{"badger-cpu", "badger-memory"}, (*bench).badger},
	{[]string{"read-qd1", "read-qd1-log", "read-qd16", "read-qd16-log"}, (*bench).reads},
	{[]string{"open-view", "first-read", "memory"}, (*bench).large},
	{[]string{"reopen-one"}, (*bench).reopenOne},
	{[]string{"reopen-300"}, (*bench).reopenMany},
	{[]string{"promote-keeps-up", "promote-ack"}, (*bench).promote},
}

func run(ctx context.Context, dir string, wanted *regexp.Regexp, pairs int, scale float64, keep bool) error {
	dir, err := os.MkdirTemp(dir, "holdfast-bars-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	b := &bench{ctx: ctx, dir: dir, pairs: pairs, scale: scale, wanted: wanted}
	var failed error
	for _, m := range measures {
		if !b.any(m.rows) || ctx.Err() != nil {
			continue
		}
		fmt.Printf("=== %s\n", strings.Join(m.rows, ", "))
		if err := m.run(b); err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", m.rows[0], err))
			fmt.Printf("=== %s: %v\n", m.rows[0], err)
		}
	}
	all, err := bars.Collect(bars.Journal, b.samples)
	if err != nil {
		return err
	}
	shown := slices.DeleteFunc(slices.Clone(all), func(r bars.Result) bool { return !wanted.MatchString(r.Key) })
	fmt.Print("\n", bars.Table(shown))
	if keep && scale == 1 && len(b.samples) > 0 {
		failed = errors.Join(failed, b.write())
	}
	return errors.Join(failed, ctx.Err())
}

func (b *bench) any(rows []string) bool {
	for _, r := range rows {
		if b.wanted.MatchString(r) {
			return true
		}
	}
	return false
}

// sample keeps one sample and shows it.
func (b *bench) sample(s bars.Sample) {
	b.samples = append(b.samples, s)
	fmt.Printf("%-18s %8.3f   ours %.4g, peer %.4g %s", s.Row, s.Value, s.Ours, s.Peer, s.OursUnit)
	if s.Foreign > foreignLimit {
		fmt.Printf("   (others used %.2f cores)", s.Foreign)
	}
	if s.Note != "" {
		fmt.Printf("   %s", s.Note)
	}
	fmt.Println()
}

// write keeps the samples.
func (b *bench) write() error {
	return bars.Save(b.ctx, results, bars.Head{
		Title: "The journal's bars", Command: "make bars-journal", Note: "the data on one disk, which both sides of a pair use in turn",
	}, b.samples)
}
