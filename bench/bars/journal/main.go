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
	"io"
	"os"
	"os/exec"
	"os/signal"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

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

// write keeps the samples. Rows that were not measured this time keep those they had.
func (b *bench) write() error {
	var kept []bars.Sample
	if old, err := os.ReadFile(results); err == nil {
		_, had, err := bars.Read(string(old))
		if err != nil {
			return err
		}
		fresh := map[string]bool{}
		for _, s := range b.samples {
			fresh[s.Row] = true
		}
		for _, s := range had {
			if !fresh[s.Row] {
				kept = append(kept, s)
			}
		}
	}
	f, err := os.Create(results)
	if err != nil {
		return err
	}
	fmt.Fprintf(f, "# title: The journal's bars\n# command: make bars-journal\n# date: %s\n# commit: %s\n# machine: %s\n",
		time.Now().UTC().Format(time.DateOnly), commit(b.ctx), machine())
	return errors.Join(writeAll(f, kept, b.samples), f.Close())
}

func writeAll(w io.Writer, parts ...[]bars.Sample) error {
	for _, p := range parts {
		if err := bars.Write(w, p...); err != nil {
			return err
		}
	}
	return nil
}

func commit(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "git", "rev-parse", "--short", "HEAD").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

func machine() string {
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease") // a label
	return fmt.Sprintf("%d cores, Linux %s, %s; %s", runtime.NumCPU(), strings.TrimSpace(string(kernel)), runtime.Version(),
		"the data on one disk, which both sides of a pair use in turn")
}
