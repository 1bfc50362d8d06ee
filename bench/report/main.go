// Command report writes BENCHMARKS.md from raw results.
//
// A raw result is what `go test -bench` printed, kept in bench/results as it came,
// under lines that say by which command, on which machine and from which commit.
// report only reads it, takes medians and spreads, and draws tables; with -run it
// first makes the results anew. Nobody writes BENCHMARKS.md by hand, and a test
// fails when it does not follow from the results.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"
)

func main() {
	run := flag.Bool("run", false, "run the benchmarks first (a quarter of an hour)")
	count := flag.Int("count", 3, "with -run: how often each benchmark runs")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := report(ctx, *run, *count); err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
}

const (
	results = "bench/results"
	page    = "BENCHMARKS.md"
)

func report(ctx context.Context, run bool, count int) error {
	if run {
		if err := capacity(ctx, count); err != nil {
			return err
		}
	}
	text, err := render(results)
	if err != nil {
		return err
	}
	return os.WriteFile(page, []byte(text), 0o644)
}

// capacity runs the capacity benchmarks and keeps what they printed.
func capacity(ctx context.Context, count int) error {
	argv := []string{"go", "test", "-run", "^$", "-bench", "Capacity", "-benchtime", "1x", "-count", fmt.Sprint(count), "-timeout", "60m", "./bench"}
	var out strings.Builder
	fmt.Fprintf(&out, "# title: Capacity of one VRA pair\n# command: %s\n# date: %s\n# commit: %s\n# machine: %s\n",
		strings.Join(argv, " "), time.Now().UTC().Format(time.DateOnly), commit(ctx), machine())
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Stderr = os.Stderr
	cmd.Stdout = &tee{&out}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w", strings.Join(argv, " "), err)
	}
	return os.WriteFile(filepath.Join(results, "capacity.txt"), []byte(out.String()), 0o644)
}

// tee shows what it keeps: a long run must not look dead.
type tee struct{ keep *strings.Builder }

func (t *tee) Write(p []byte) (int, error) {
	os.Stdout.Write(p)
	return t.keep.Write(p)
}

func commit(ctx context.Context) string {
	out, err := exec.CommandContext(ctx, "git", "rev-parse", "--short", "HEAD").Output()
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(out))
}

// machine is what a reader must know to compare: cores, memory, kernel, Go.
func machine() string {
	var u syscall.Utsname
	kernel := "unknown"
	if syscall.Uname(&u) == nil {
		var b []byte
		for _, c := range u.Release {
			if c == 0 {
				break
			}
			b = append(b, byte(c))
		}
		kernel = string(b)
	}
	var s syscall.Sysinfo_t
	memory := "unknown memory"
	if syscall.Sysinfo(&s) == nil {
		memory = fmt.Sprintf("%d GiB", (uint64(s.Totalram)*uint64(s.Unit)+1<<29)>>30)
	}
	return fmt.Sprintf("%d cores, %s, Linux %s, %s; source, target and load share it", runtime.NumCPU(), memory, kernel, runtime.Version())
}

// render draws the page from every result there is.
func render(dir string) (string, error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.txt"))
	if err != nil {
		return "", err
	}
	slices.Sort(names)
	var b strings.Builder
	b.WriteString(preface)
	for _, name := range names {
		src, err := os.ReadFile(name)
		if err != nil {
			return "", err
		}
		set, err := parse(string(src))
		if err != nil {
			return "", fmt.Errorf("%s: %w", name, err)
		}
		set.table(&b)
	}
	if err := renderBars(&b, dir); err != nil {
		return "", err
	}
	return b.String(), nil
}

const preface = `# Benchmarks

Written by ` + "`go run ./bench/report`" + ` from the raw results in ` + "`bench/results`" + `; do not edit. A figure is the median of its runs, and
behind it stand the lowest and the highest. Machines here are shared and noisy: read differences under a quarter as noise, and
prefer ratios of one run, and CPU seconds, to rates.

What the units of a capacity run mean:

- ` + "`MB/s`" + `: bytes the guest wrote, over the time until the last of them was durable at the second site (10^6 bytes).
- ` + "`wire/guest`" + `: bytes that left the source for each byte the guest wrote.
- ` + "`lag-p50-ms`, `lag-p99-ms`" + `: age of the oldest write not yet durable at the second site, sampled while the guest writes.
- ` + "`cpu-s/GiB`" + `: user and system time of the filter and both VRAs for each GiB the guest wrote; ` + "`source-`" + ` is filter and VRA of the
  first site, ` + "`target-`" + ` the VRA of the second.
- ` + "`x-nbdcopy`" + `: MB/s over that of ` + "`nbdcopy`" + ` of as many of the same bytes to a plain NBD server (` + "`nbdkit file`" + `) in the same run. nbdcopy
  neither orders, compresses, encrypts nor journals: it is a scale, not a rival.
- ` + "`resyncs`" + `: how often the load outran the pipeline, so that writes were only marked and read again later.
`
