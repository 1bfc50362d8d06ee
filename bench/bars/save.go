package bars

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"time"
)

// Results is the file in which the samples of an area are kept, from the root of the tree.
func Results(area string) string { return "bench/results/bars-" + area + ".jsonl" }

// Head says what a file of samples is about.
type Head struct {
	Title, Command string
	Note           string // about the machine, behind what is said of each
}

// Save puts the samples into the file, each with the commit it was measured at. Rows that
// are not among them keep the samples they had.
func Save(ctx context.Context, name string, h Head, samples []Sample) error {
	var kept []Sample
	old, err := os.ReadFile(name)
	if err == nil {
		_, kept, err = Read(string(old))
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	at := commit(context.WithoutCancel(ctx)) // what was measured before an interrupt is kept too
	fresh := map[string]bool{}
	for i := range samples {
		samples[i].Commit = at
		fresh[samples[i].Row] = true
	}
	var b bytes.Buffer
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease") // a label
	fmt.Fprintf(&b, "# title: %s\n# command: %s\n# date: %s\n# machine: %d cores, Linux %s, %s; %s\n", h.Title, h.Command,
		time.Now().UTC().Format(time.DateOnly), runtime.NumCPU(), strings.TrimSpace(string(kernel)), runtime.Version(), h.Note)
	for _, s := range kept {
		if !fresh[s.Row] {
			if err := Write(&b, s); err != nil {
				return err
			}
		}
	}
	if err := Write(&b, samples...); err != nil {
		return err
	}
	return os.WriteFile(name, b.Bytes(), 0o644)
}

// commit is what is measured, with a + behind it when files differ from it, other than results.
func commit(ctx context.Context) string {
	at, err := exec.CommandContext(ctx, "git", "rev-parse", "--short", "HEAD").Output()
	if err != nil {
		return "unknown"
	}
	changed, err := exec.CommandContext(ctx, "git", "status", "--porcelain", "--", ":/", ":!/bench/results", ":!/BENCHMARKS.md").Output()
	if err != nil || len(changed) > 0 {
		return strings.TrimSpace(string(at)) + "+"
	}
	return strings.TrimSpace(string(at))
}
