// Command check runs everything that proves the tree and prints what each part took.
//
// The parts run one after the other on purpose: the machine it is made for has two
// cores, and a crash loop that shares them with a race run is a slow crash loop. A
// part that fails does not stop the next ones; the exit status is 1 if any failed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"time"
)

const staticcheck = "honnef.co/go/tools/cmd/staticcheck@v0.8.2"

// part is one thing that must hold.
type part struct {
	name   string
	budget time.Duration // what it should take on two cores, warm
	run    func(context.Context) error
}

func main() {
	fuzz := flag.Duration("fuzz", 0, "run each fuzz target for this long, and nothing else")
	only := flag.String("only", "", "run only the parts whose name matches this regular expression")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	parts := all
	if *fuzz > 0 {
		parts = []part{{"fuzz", 0, func(ctx context.Context) error { return fuzzAll(ctx, *fuzz) }}}
	}
	pattern, err := regexp.Compile(*only)
	if err != nil {
		fmt.Fprintln(os.Stderr, "check: -only:", err)
		os.Exit(2)
	}
	if !runAll(ctx, parts, pattern) {
		os.Exit(1)
	}
}

// longest are the packages whose tests take longest. They are begun first: the last one
// to end has the machine for itself, and uses half of it.
var longest = []string{
	"./journal", "./datapath", "./journal/segment", "./wire", "./control/hypervisor/kvm", "./journal/index", "./control/sidecar",
	"./journal/view", "./tools/packaging", "./datapath/front/nbd", "./journal/stripe", "./control/failover", "./datapath/capture", "./journal/replica",
}

// testMemory has tests collect their garbage less often, while there is memory: those that open thousands of small
// stores else spend up to two fifths of their time on it.
const testMemory = " GOGC=400 GOMEMLIMIT=1GiB"

// tests is how the tests of many packages are run. Vet is a part of its own.
var tests = []string{"go", "test", "-vet=off", "-timeout", "8m"}

// waiting is for tests that wait half of the time, for disks, timers and other programs, under the race detector too:
// three packages at a time, and four of the tests in one that allow it, keep two cores at work.
var waiting = []string{"-p", "3", "-parallel", "4"}

// All parts but the race detector's are without cgo, as the product is: what one part
// compiled serves the next.
var all = []part{
	{"format", 5 * time.Second, format},
	{"vet", 20 * time.Second, vet},
	{"staticcheck", 40 * time.Second, command("CGO_ENABLED=0", "go", "run", staticcheck, "./...")},
	{"build", 20 * time.Second, command("CGO_ENABLED=0", "go", "build", "-trimpath", "-o", "bin/", "./cmd/...")},
	{"unit, lint and crash loops", 180 * time.Second, command("CGO_ENABLED=0"+testMemory, slices.Concat(tests, waiting, longest, []string{"./..."})...)},
	{"race", 120 * time.Second, race},
	{"planted bugs, three a package", 60 * time.Second, command("CGO_ENABLED=0", "go", "run", "./tools/planted", "-each", "3")},
	{"end to end", 180 * time.Second, command("CGO_ENABLED=0", "go", "test", "-tags", "e2e", "-count", "1", "-timeout", "8m", "-run", "EndToEnd", "-v", "./bench/scenario")},
	{"guest", 60 * time.Second, command("CGO_ENABLED=0", "go", "test", "-tags", "e2e", "-count", "1", "-timeout", "8m", "-run", "^TestGuest", "-v", "./bench/scenario")},
}

func runAll(ctx context.Context, parts []part, only *regexp.Regexp) bool {
	type took struct {
		part
		time time.Duration
		err  error
	}
	var done []took
	passed, start := 0, time.Now()
	for _, p := range parts {
		if !only.MatchString(p.name) {
			continue
		}
		if ctx.Err() != nil {
			break
		}
		fmt.Printf("=== %s\n", p.name)
		from := time.Now()
		err := p.run(ctx)
		done = append(done, took{p, time.Since(from), err})
		if err == nil {
			passed++
		} else {
			fmt.Printf("=== %s: %v\n", p.name, err)
		}
	}
	fmt.Printf("\n%-32s %8s %8s\n", "part", "took", "budget")
	for _, d := range done {
		state := "ok"
		if d.err != nil {
			state = "FAILED: " + d.err.Error()
		}
		fmt.Printf("%-32s %7.1fs %7.0fs  %s\n", d.name, d.time.Seconds(), d.budget.Seconds(), state)
	}
	fmt.Printf("%-32s %7.1fs\n", "all", time.Since(start).Seconds())
	fmt.Printf("%d passed, %d failed\n", passed, len(done)-passed)
	return passed == len(done) && ctx.Err() == nil
}

// command runs one program with its output passed through; env is more variables, with spaces between them, or nothing.
func command(env string, argv ...string) func(context.Context) error {
	return func(ctx context.Context) error {
		cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		cmd.Env = append(os.Environ(), strings.Fields(env)...)
		return cmd.Run()
	}
}

// vet looks at the tree, and again at the folders in which a build tag lets files in or keeps them out: all the others
// are the same with it, and that they still fit is what the parts find that build them so.
func vet(ctx context.Context) error {
	failed := []error{command("CGO_ENABLED=0", "go", "vet", "./...")(ctx)}
	for _, tag := range buildTags {
		folders, err := tagged(ctx, ".", tag)
		if err == nil {
			err = command("CGO_ENABLED=0", slices.Concat([]string{"go", "vet", "-tags", tag}, folders)...)(ctx)
		}
		failed = append(failed, err)
	}
	return errors.Join(failed...)
}

// buildTags are those of the project's own.
var buildTags = []string{"planted", "invariants", "e2e"}

// tagged are the folders below root with files whose build constraint names the tag.
func tagged(ctx context.Context, root, tag string) (folders []string, err error) {
	find := exec.CommandContext(ctx, "git", "grep", "-l", "-w", "-E", "^//go:build.*"+tag, "--", "*.go")
	find.Dir = root
	files, err := find.Output()
	if err != nil {
		return nil, fmt.Errorf("git grep for the tag %s: %w", tag, err)
	}
	for _, name := range strings.Fields(string(files)) {
		folders = append(folders, "./"+path.Dir(name))
	}
	return slices.Compact(folders), nil // git sorts them
}

func format(ctx context.Context) error {
	files, err := exec.CommandContext(ctx, "git", "ls-files", "*.go").Output()
	if err != nil {
		return fmt.Errorf("git ls-files: %w", err)
	}
	out, err := exec.CommandContext(ctx, "gofmt", append([]string{"-l"}, strings.Fields(string(files))...)...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("gofmt: %w: %s", err, out)
	}
	if len(out) > 0 {
		return fmt.Errorf("not formatted: %s; run gofmt -w on them", strings.Join(strings.Fields(string(out)), " "))
	}
	return nil
}

// fuzzAll runs every fuzz target in turn: go test takes one a call.
func fuzzAll(ctx context.Context, each time.Duration) error {
	out, err := exec.CommandContext(ctx, "go", "list", "./...").Output()
	if err != nil {
		return fmt.Errorf("go list: %w", err)
	}
	ran := 0
	for _, pkg := range strings.Fields(string(out)) {
		names, err := exec.CommandContext(ctx, "go", "test", "-list", "^Fuzz", pkg).Output()
		if err != nil {
			return fmt.Errorf("%s: %w", pkg, err)
		}
		for _, name := range strings.Fields(string(names)) {
			if !strings.HasPrefix(name, "Fuzz") {
				continue
			}
			fmt.Printf("--- %s %s\n", pkg, name)
			if err := command("", "go", "test", "-run", "^$", "-fuzz", "^"+name+"$", "-fuzztime", each.String(), pkg)(ctx); err != nil {
				return fmt.Errorf("%s %s: %w", pkg, name, err)
			}
			ran++
		}
	}
	if ran == 0 {
		return errors.New("no fuzz target was found")
	}
	return nil
}
