// Command wire measures what shaping is held to (the rows of bars.Wire) and keeps the
// samples in bench/results/bars-wire.jsonl.
//
// A source and a target, each a process in a network namespace of its own, are joined
// by a pair of interfaces; tbf lets twice the cap through, and segments are not merged,
// so that the interface counts each frame. The source has a backlog in three groups,
// of high, medium and low priority. The interface's own counter is read every 10 ms;
// a cap is held against the fullest second between any two readings. Needs root, ip and tc.
package main

import (
	"context"
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
	child := flag.String("child", "", "be the source or the target (used by this program itself)")
	dir := flag.String("dir", "", "folder of the certificates (the same)")
	capText := flag.String("cap", "", "what the source is held to (the same)")
	only := flag.String("only", "", "measure only the caps whose row matches this regular expression")
	times := flag.Int("times", 3, "measurements of each cap")
	length := flag.Duration("length", 20*time.Second, "of a measurement")
	keep := flag.Bool("keep", true, "write "+results)
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	switch *child {
	case "source":
		err = runSource(ctx, *dir, *capText, *length)
	case "target":
		err = runTarget(ctx, *dir)
	default:
		err = run(ctx, *only, *times, *length, *keep)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bars:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, only string, times int, length time.Duration, keep bool) error {
	pattern, err := regexp.Compile(only)
	if err != nil {
		return err
	}
	var samples []bars.Sample
	for _, mbit := range []int{5, 20, 100} {
		row := fmt.Sprintf("cap-%d", mbit)
		if !pattern.MatchString(row) && !pattern.MatchString("share") {
			continue
		}
		for range times {
			m, err := measure(ctx, shape.Rate(mbit)*1e6, length)
			if err != nil {
				return err
			}
			fmt.Printf("%-8s fullest second %+.2f %% of the cap, use %.2f %%; high %.1f %%, medium %.1f %%, low %.1f %%; a reading came %s late\n", row,
				100*m.Over, 100*m.Use, 100*m.High, 100*m.Medium, 100*m.Low, m.Late.Round(time.Millisecond))
			note := fmt.Sprintf("%.1f s", length.Seconds())
			samples = append(samples, bars.Sample{Row: row, Value: 100 * m.Over, Note: note}, bars.Sample{Row: fmt.Sprintf("use-%d", mbit), Value: 100 * m.Use, Note: note},
				bars.Sample{Row: "share-high", Value: 100 * m.High, Note: row}, bars.Sample{Row: "share-low", Value: 100 * m.Low, Note: row})
		}
	}
	all, err := bars.Collect(bars.Wire, samples)
	if err != nil {
		return err
	}
	fmt.Print("\n", bars.Table(slices.DeleteFunc(all, func(r bars.Result) bool { return len(r.Samples) == 0 })))
	if !keep || len(samples) == 0 {
		return nil
	}
	return bars.Save(ctx, results, bars.Head{Title: "The bars of shaping", Command: "make bars-wire", Note: "two network namespaces on it"}, samples)
}
