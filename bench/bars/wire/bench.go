package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/bench/bars"
)

// bench is one run of the bars.
type bench struct {
	ctx     context.Context
	dir     string // on the disk to measure, removed at the end
	memory  string // the same, in memory
	pairs   int
	bytes   int64 // of data that one measurement moves
	times   int   // measurements of each cap
	length  time.Duration
	wanted  *regexp.Regexp
	samples []bars.Sample
}

// measures are in the order in which they run; each fills the rows it names.
var measures = []struct {
	rows []string
	run  func(*bench) error
}{
	{[]string{"allocations"}, (*bench).allocations},
	{[]string{"pack"}, (*bench).pack},
	{[]string{"tls-rate", "tls-cpu"}, (*bench).tls},
	{[]string{"durable-lz4", "durable-auto", "durable-cpu"}, (*bench).durable},
	{[]string{"ceiling"}, (*bench).ceiling},
	{[]string{"lone-write"}, (*bench).lone},
	{[]string{"lag-50"}, func(b *bench) error { return b.lag(50) }},
	{[]string{"cap-5", "use-5", "share-high", "share-low"}, func(b *bench) error { return b.shaping(5) }},
	{[]string{"cap-20", "use-20", "share-high", "share-low"}, func(b *bench) error { return b.shaping(20) }},
	{[]string{"cap-100", "use-100", "share-high", "share-low"}, func(b *bench) error { return b.shaping(100) }},
}

func (b *bench) run() (failed error) {
	for _, m := range measures {
		if !slices.ContainsFunc(m.rows, b.wanted.MatchString) || b.ctx.Err() != nil {
			continue
		}
		fmt.Printf("=== %s\n", strings.Join(m.rows, ", "))
		if err := m.run(b); err != nil {
			failed = errors.Join(failed, fmt.Errorf("%s: %w", m.rows[0], err))
			fmt.Printf("=== %s: %v\n", m.rows[0], err)
		}
	}
	return failed
}

// sample keeps one sample and shows it.
func (b *bench) sample(s bars.Sample) {
	b.samples = append(b.samples, s)
	fmt.Printf("%-14s %8.3f   ours %.4g, peer %.4g %s", s.Row, s.Value, s.Ours, s.Peer, s.OursUnit)
	if s.Foreign > foreignLimit {
		fmt.Printf("   (others used %.2f cores)", s.Foreign)
	}
	fmt.Println("  ", s.Note)
}

// pair runs the sides, in an order that turns round with i, again while others disturb them.
func (b *bench) pair(i int, sides ...func() (foreign float64, err error)) (foreign float64, err error) {
	sides = slices.Clone(sides)
	if i%2 == 1 {
		slices.Reverse(sides)
	}
	for try := 0; ; try++ {
		foreign = 0
		for _, side := range sides {
			if err := dropCaches(); err != nil {
				return 0, err
			}
			f, err := side()
			if err != nil {
				return 0, err
			}
			foreign = max(foreign, f)
		}
		if foreign <= foreignLimit || try == 2 {
			return foreign, nil
		}
		fmt.Printf("again: others used %.2f cores\n", foreign)
		select {
		case <-time.After(3 * time.Second):
		case <-b.ctx.Done():
			return 0, b.ctx.Err()
		}
	}
}

// foreignLimit is how many cores others may use before a round is repeated.
const foreignLimit = 0.25

// dropCaches empties the page cache, so that reads come from the disk.
func dropCaches() error {
	syscall.Sync()
	return os.WriteFile("/proc/sys/vm/drop_caches", []byte("3"), 0)
}

// child is this program again, as one part of a measurement.
func (b *bench) child(name string, args any) (*exec.Cmd, error) {
	p, err := json.Marshal(args)
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(b.ctx, self, "-child", name, "-args", string(p))
	cmd.Stderr = os.Stderr
	return cmd, nil
}

// alone runs a part that is a measurement by itself.
func alone[R any](b *bench, name string, args any) (r R, cpu, foreign float64, err error) {
	cmd, err := b.child(name, args)
	if err != nil {
		return r, 0, 0, err
	}
	var out bytes.Buffer
	cmd.Stdout = &out
	began := look()
	if err := cmd.Run(); err != nil {
		return r, 0, 0, fmt.Errorf("%s: %w", name, err)
	}
	cpu = cpuOf(cmd)
	foreign = began.foreign(cpu)
	return r, cpu, foreign, json.Unmarshal(out.Bytes(), &r)
}

// parts are the measurements and parts of them that run in processes of their own.
var parts = map[string]func(ctx context.Context, args []byte) (any, error){
	"records": part(recordsPart),
	"bare":    part(barePart),
	"pack":    part(packPart),
	"library": part(libraryPart),
	"allocs":  part(allocsPart),
	"target":  part(targetPart),
	"source":  part(sourcePart),
	"verify":  part(verifyPart),
	"costs":   part(costsPart),
	"lone":    part(lonePart),

	"lag-target": part(lagTargetPart),
	"lag-source": part(lagSourcePart),
}

func part[A, R any](f func(context.Context, A) (R, error)) func(context.Context, []byte) (any, error) {
	return func(ctx context.Context, p []byte) (any, error) {
		var a A
		if err := json.Unmarshal(p, &a); err != nil {
			return nil, err
		}
		return f(ctx, a)
	}
}

func runPart(ctx context.Context, name, args string, out io.Writer) error {
	f := parts[name]
	if f == nil {
		return errors.New("no such part")
	}
	r, err := f(ctx, []byte(args))
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(r)
}

// cpuOf is what a process that has ended used, in seconds.
func cpuOf(cmd *exec.Cmd) float64 {
	return (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
}

// ownCPU is what this process has used so far, in seconds.
func ownCPU() float64 {
	var r syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &r)
	return float64(r.Utime.Nano()+r.Stime.Nano()) / 1e9
}

// moment is when a measurement began, and what the machine had used by then.
type moment struct {
	at        time.Time
	busy, own float64
}

func look() moment { return moment{time.Now(), machineBusy(), ownCPU()} }

// foreign is how many cores others have used since, where the parts used so many CPU seconds.
func (m moment) foreign(parts float64) float64 {
	return max(0, (machineBusy()-m.busy-(ownCPU()-m.own)-parts)/time.Since(m.at).Seconds())
}

// machineBusy is how many CPU seconds the machine has spent so far, those that the host took
// included, waiting left out.
func machineBusy() (sum float64) {
	p, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	line, _, _ := strings.Cut(string(p), "\n")
	for i, w := range strings.Fields(line) {
		if v, err := strconv.ParseFloat(w, 64); err == nil && i != 4 && i != 5 && i <= 8 { // user nice system, not idle iowait, irq softirq steal
			sum += v
		}
	}
	return sum / 100
}

// fresh returns an empty folder of the run, on the disk.
func (b *bench) fresh(name string) (string, error) {
	dir := filepath.Join(b.dir, name)
	if err := os.RemoveAll(dir); err != nil {
		return "", err
	}
	return dir, os.MkdirAll(dir, 0o700)
}
