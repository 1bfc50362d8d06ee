// Command planted proves that the tests can fail: it switches on one known bug at
// a time and demands that the test named for it goes red.
//
// A package lists its bugs in testdata/planted.txt, a line each: the bug's name
// and a regular expression of the tests that must find it. All packages are built
// with the tag planted, some at a time; their tests must pass with no bug switched on. As many
// packages are tried at once as there are processors, as go test does it, and the next ones
// built meanwhile: a test that waits leaves most of the machine idle.
package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// bug is one line of a planted.txt.
type bug struct{ name, tests string }

func main() {
	each := flag.Int("each", 0, "try only the first N bugs of each package (0: all)")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *each, flag.Args()); err != nil {
		fmt.Fprintln(os.Stderr, "planted:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, each int, only []string) error {
	lists, err := find(".")
	if err != nil {
		return err
	}
	bin, err := os.MkdirTemp("", "planted-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(bin)
	var hunts []*hunt
	named := map[string]int{} // how many packages have tests whose program has that name
	for _, list := range lists {
		pkg := filepath.Dir(filepath.Dir(list))
		if len(only) > 0 && !contains(only, pkg) {
			continue
		}
		bugs, err := read(list)
		if err != nil {
			return err
		}
		if each > 0 && len(bugs) > each {
			bugs = bugs[:each]
		}
		name := filepath.Base(pkg)
		hunts = append(hunts, &hunt{pkg: pkg, bin: filepath.Join(bin, strconv.Itoa(named[name]), name+".test"), bugs: bugs})
		named[name]++
	}
	if len(hunts) == 0 {
		return fmt.Errorf("no package of %s has a testdata/planted.txt", strings.Join(only, ", "))
	}
	first(hunts)
	if err := huntAll(ctx, hunts); err != nil {
		return err
	}
	found, missed, failed := 0, []string{}, []error{}
	for _, h := range hunts {
		found, missed = found+h.found, append(missed, h.missed...)
		if h.err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", h.pkg, h.err))
		}
	}
	if err := errors.Join(failed...); err != nil {
		return err
	}
	fmt.Printf("%d planted bugs found, %d missed\n", found, len(missed))
	if len(missed) > 0 {
		return fmt.Errorf("no test found: %s", strings.Join(missed, ", "))
	}
	if found == 0 {
		return errors.New("nothing is planted")
	}
	return nil
}

// hunt is one package, its bugs, and what came of them.
type hunt struct {
	pkg, bin string
	bugs     []bug
	said     bytes.Buffer // printed when the package is done, so that packages do not mix

	found  int
	missed []string
	err    error
}

// build writes the program of each hunt's tests, those of one folder together. Nobody debugs these: without what a
// debugger needs they link in half the time.
func build(ctx context.Context, hunts []*hunt) error {
	in := map[string][]string{} // by folder, the packages
	for _, h := range hunts {
		dir := filepath.Dir(h.bin)
		in[dir] = append(in[dir], "./"+h.pkg)
	}
	for dir, pkgs := range in {
		argv := append([]string{"test", "-c", "-tags", "planted", "-ldflags", "-s -w", "-o", dir + string(filepath.Separator)}, pkgs...)
		if out, err := exec.CommandContext(ctx, "go", argv...).CombinedOutput(); err != nil {
			return fmt.Errorf("build: %w\n%s", err, out)
		}
	}
	return nil
}

// longest are the packages whose hunts take longest.
var longest = []string{"journal/stripe", "datapath/capture", "datapath"} // the longest is last

// first puts the longest hunts before the others.
func first(hunts []*hunt) {
	slices.SortStableFunc(hunts, func(a, b *hunt) int {
		return cmp.Compare(slices.Index(longest, b.pkg), slices.Index(longest, a.pkg))
	})
}

// batch is how many packages are built at once: what is built is hunted in while the next ones are.
const batch = 6

// huntAll builds and runs the hunts, a worker for each processor.
func huntAll(ctx context.Context, hunts []*hunt) error {
	next := make(chan *hunt, len(hunts))
	var workers sync.WaitGroup
	var out sync.Mutex
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for h := range next {
				h.err = h.run(ctx)
				out.Lock()
				os.Stdout.Write(h.said.Bytes())
				out.Unlock()
			}
		})
	}
	defer workers.Wait()
	defer close(next)
	for some := range slices.Chunk(hunts, batch) {
		if err := build(ctx, some); err != nil {
			return err
		}
		for _, h := range some {
			next <- h
		}
	}
	return nil
}

// run runs the tests named for each bug. Its error says that something could not be
// tried; a bug that no test found is only counted.
func (h *hunt) run(ctx context.Context) error {
	passed := map[string]time.Duration{} // tests seen to pass with no bug switched on, and how long that took
	for _, b := range h.bugs {
		if _, ok := passed[b.tests]; !ok {
			start := time.Now()
			if out, err := tests(ctx, h.pkg, h.bin, "", b.tests, mostTime); err != nil {
				return fmt.Errorf("%s fails with no bug switched on: %w\n%s", b.tests, err, out)
			} else if !bytes.Contains(out, []byte("--- PASS")) {
				return fmt.Errorf("%s: no test has that name", b.tests)
			}
			passed[b.tests] = time.Since(start)
			h.say("passed", h.pkg, start, b.tests)
		}
		start := time.Now()
		out, err := tests(ctx, h.pkg, h.bin, b.name, b.tests, patience(passed[b.tests]))
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err != nil && failedByTest(out) {
			h.found++
			h.say("found", b.name, start, b.tests)
			continue
		}
		h.missed = append(h.missed, b.name)
		h.say("MISSED", b.name, start, fmt.Sprintf("%s: %v", b.tests, err))
	}
	return nil
}

// say notes one line: what happened to what, and how long it took.
func (h *hunt) say(verb, name string, start time.Time, rest string) {
	fmt.Fprintf(&h.said, "%-7s %-40s %6.1fs  %s\n", verb, name, time.Since(start).Seconds(), rest)
}

// failedByTest tells a red test, a panic, a race or a test's time limit from a program that could not run.
func failedByTest(out []byte) bool {
	return bytes.Contains(out, []byte("--- FAIL")) || bytes.Contains(out, []byte("panic:")) || bytes.Contains(out, []byte("DATA RACE"))
}

// mostTime is how long the tests of a line may take.
const mostTime = time.Minute

// patience is how long the tests may take with a bug switched on that took so long without it, just
// before: one that never gets what it waits for has found the bug.
func patience(without time.Duration) time.Duration {
	return min(mostTime, max(5*time.Second, 5*without))
}

func tests(ctx context.Context, pkg, bin, name, pattern string, limit time.Duration) ([]byte, error) {
	cmd := exec.CommandContext(ctx, bin, "-test.run", "^("+pattern+")$", "-test.short", "-test.v", "-test.timeout", limit.String())
	cmd.Dir = pkg
	cmd.Env = append(os.Environ(), "HOLDFAST_PLANTED="+name)
	return cmd.CombinedOutput()
}

func find(root string) (lists []string, err error) {
	err = filepath.WalkDir(root, func(name string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() && e.Name() == "planted.txt" && filepath.Base(filepath.Dir(name)) == "testdata" {
			lists = append(lists, name)
		}
		return err
	})
	return lists, err
}

func read(list string) (bugs []bug, err error) {
	src, err := os.ReadFile(list)
	if err != nil {
		return nil, err
	}
	for s := bufio.NewScanner(bytes.NewReader(src)); s.Scan(); {
		w := strings.Fields(s.Text())
		if len(w) == 0 || strings.HasPrefix(w[0], "#") {
			continue
		}
		if len(w) != 2 {
			return nil, fmt.Errorf("%s: %q is not NAME TESTS", list, s.Text())
		}
		bugs = append(bugs, bug{w[0], w[1]})
	}
	return bugs, nil
}

func contains(folders []string, pkg string) bool {
	for _, f := range folders {
		if strings.TrimSuffix(strings.TrimPrefix(f, "./"), "/") == pkg {
			return true
		}
	}
	return false
}
