package bars

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
)

// Options are the flags that all programs have.
type Options struct {
	Dir   string // on the disk to measure; the run makes a folder of its own in it
	Only  string // regular expression of row keys
	Pairs int    // for each ratio
	Keep  bool   // keep the samples in Results

	child, args string // the part to be, in place of a run
}

// Register adds the flags; needs says what -dir must have room for.
func (o *Options) Register(f *flag.FlagSet, needs string) {
	f.StringVar(&o.Dir, "dir", os.TempDir(), "folder for the data, on the disk to measure"+needs)
	f.StringVar(&o.Only, "only", "", "measure only the rows whose key matches this regular expression")
	f.IntVar(&o.Pairs, "pairs", 5, "pairs for each ratio")
	f.BoolVar(&o.Keep, "keep", true, "keep the samples in "+Results("AREA"))
	f.StringVar(&o.child, "child", "", "be a part of a measurement (used by this program itself)")
	f.StringVar(&o.args, "args", "", "of the part (the same)")
}

// Run is one run of a program that measures bars.
type Run struct {
	Context context.Context
	Dir     string // of this run, on the disk to measure; removed at its end
	Pairs   int

	wanted  *regexp.Regexp
	samples []Sample
}

// Measure fills the rows it names.
type Measure struct {
	Rows []string
	Do   func() error
}

// Main is the whole of a program: the part as which it was started, or else a run.
func (o *Options) Main(parts Parts, run func(*Run) error) {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var err error
	if o.child != "" {
		err = parts.run(ctx, o.child, o.args, os.Stdout)
	} else {
		err = o.run(ctx, run)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bars:", err)
		os.Exit(1)
	}
}

// run gives the run a folder of its own.
func (o *Options) run(ctx context.Context, run func(*Run) error) (err error) {
	r := &Run{Context: ctx, Pairs: o.Pairs}
	if r.wanted, err = regexp.Compile(o.Only); err != nil {
		return err
	}
	if r.Dir, err = os.MkdirTemp(o.Dir, "holdfast-bars-"); err != nil {
		return err
	}
	defer os.RemoveAll(r.Dir)
	return run(r)
}

// Wanted says whether a row is to be measured.
func (r *Run) Wanted(row string) bool { return r.wanted.MatchString(row) }

// Measure takes the measures in order, shows the table, and keeps the samples in the area's
// file where keep says so. One that fails does not keep the others from being taken.
func (r *Run) Measure(area string, h Head, keep bool, measures []Measure) error {
	failed := r.take(measures)
	all, err := Collect(Areas[area], r.samples)
	if err != nil {
		return errors.Join(failed, err)
	}
	fmt.Print("\n", Table(slices.DeleteFunc(all, func(x Result) bool { return len(x.Samples) == 0 && !r.Wanted(x.Key) })))
	if keep && len(r.samples) > 0 {
		failed = errors.Join(failed, Save(r.Context, Results(area), h, r.samples))
	}
	return errors.Join(failed, r.Context.Err())
}

// take takes those measures of which a row is wanted, until the run is interrupted.
func (r *Run) take(measures []Measure) (failed error) {
	for _, m := range measures {
		if !slices.ContainsFunc(m.Rows, r.Wanted) || r.Context.Err() != nil {
			continue
		}
		fmt.Printf("=== %s\n", strings.Join(m.Rows, ", "))
		if err := m.Do(); err != nil {
			err = fmt.Errorf("%s: %w", m.Rows[0], err)
			fmt.Println("===", err)
			failed = errors.Join(failed, err)
		}
	}
	return failed
}

// Sample keeps one sample and shows it.
func (r *Run) Sample(s Sample) {
	r.samples = append(r.samples, s)
	fmt.Printf("%-18s %8.3f", s.Row, s.Value)
	if s.Ours != 0 || s.Peer != 0 {
		fmt.Printf("   ours %.4g, peer %.4g %s", s.Ours, s.Peer, s.OursUnit)
	}
	if s.Foreign > ForeignLimit {
		fmt.Printf("   (others used %.2f cores)", s.Foreign)
	}
	if s.Note != "" {
		fmt.Printf("   %s", s.Note)
	}
	fmt.Println()
}

// Fresh returns an empty folder of the run.
func (r *Run) Fresh(name string) (string, error) {
	dir := filepath.Join(r.Dir, name)
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	return dir, os.MkdirAll(dir, 0o700)
}
