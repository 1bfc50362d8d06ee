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
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"slices"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/bench/bars"
	"github.com/holdfast-dr/holdfast/wire/shape"
)

const results = "bench/results/bars-wire.jsonl"

func main() {
	child := flag.String("child", "", "be a part of a measurement (used by this program itself)")
	args := flag.String("args", "", "of the part (the same)")
	certs := flag.String("certs", "", "folder of the certificates (the same)")
	capText := flag.String("cap", "", "what the source is held to (the same)")
	dir := flag.String("dir", os.TempDir(), "folder for the data, on the disk to measure")
	memory := flag.String("memory", "/dev/shm", "folder in memory, for what both sides of a pair read")
	only := flag.String("only", "", "measure only the rows whose key matches this regular expression")
	pairs := flag.Int("pairs", 5, "pairs for each ratio")
	mib := flag.Int64("mib", 2048, "MiB of data for each measurement of a rate")
	times := flag.Int("times", 3, "measurements of each cap")
	length := flag.Duration("length", 20*time.Second, "of a measurement of a cap")
	keep := flag.Bool("keep", true, "write "+results)
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	switch *child {
	case "shaped-source":
		err = runSource(ctx, *certs, *capText, *length)
	case "shaped-target":
		err = runTarget(ctx, *certs)
	case "":
		b := &bench{ctx: ctx, pairs: *pairs, bytes: *mib << 20, times: *times, length: *length}
		err = measureAll(b, *dir, *memory, *only, *keep)
	default:
		if err = runPart(ctx, *child, *args, os.Stdout); err != nil {
			err = fmt.Errorf("%s: %w", *child, err)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bars:", err)
		os.Exit(1)
	}
}

func measureAll(b *bench, dir, memory, only string, keep bool) (err error) {
	if b.wanted, err = regexp.Compile(only); err != nil {
		return err
	}
	if b.dir, err = os.MkdirTemp(dir, "holdfast-bars-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.dir)
	if b.memory, err = os.MkdirTemp(memory, "holdfast-bars-"); err != nil {
		return err
	}
	defer os.RemoveAll(b.memory)
	if err := certificates(b.memory); err != nil {
		return err
	}
	failed := b.run()
	all, err := bars.Collect(bars.Wire, b.samples)
	if err != nil {
		return errors.Join(failed, err)
	}
	fmt.Print("\n", bars.Table(slices.DeleteFunc(all, func(r bars.Result) bool { return len(r.Samples) == 0 })))
	if keep && len(b.samples) > 0 {
		head := bars.Head{Title: "The bars of the wire", Command: "make bars-wire", Note: "source and target on it, and in two network namespaces for shaping"}
		failed = errors.Join(failed, bars.Save(b.ctx, results, head, b.samples))
	}
	return errors.Join(failed, b.ctx.Err())
}

// shaping measures one cap.
func (b *bench) shaping(mbit int) error {
	row := fmt.Sprintf("cap-%d", mbit)
	for range b.times {
		m, err := measure(b.ctx, shape.Rate(mbit)*1e6, b.length)
		if err != nil {
			return err
		}
		fmt.Printf("%-8s fullest second %+.2f %% of the cap, use %.2f %%; high %.1f %%, medium %.1f %%, low %.1f %%; a reading came %s late\n", row,
			100*m.Over, 100*m.Use, 100*m.High, 100*m.Medium, 100*m.Low, m.Late.Round(time.Millisecond))
		note := fmt.Sprintf("%.1f s", b.length.Seconds())
		b.samples = append(b.samples, bars.Sample{Row: row, Value: 100 * m.Over, Note: note}, bars.Sample{Row: fmt.Sprintf("use-%d", mbit), Value: 100 * m.Use, Note: note},
			bars.Sample{Row: "share-high", Value: 100 * m.High, Note: row}, bars.Sample{Row: "share-low", Value: 100 * m.Low, Note: row})
	}
	return nil
}
