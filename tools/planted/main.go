// Command planted proves that the tests can fail: it switches on one known bug at
// a time and demands that the test named for it goes red.
//
// A package lists its bugs in testdata/planted.txt, a line each: the bug's name
// and a regular expression of the tests that must find it. Each package is built
// once with the tag planted; its tests must pass with no bug switched on.
package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
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
	found, missed := 0, []string{}
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
		f, m, err := hunt(ctx, pkg, filepath.Join(bin, strings.ReplaceAll(pkg, "/", "-")), bugs)
		if err != nil {
			return fmt.Errorf("%s: %w", pkg, err)
		}
		found, missed = found+f, append(missed, m...)
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

// hunt builds one package's tests and runs those named for each bug.
func hunt(ctx context.Context, pkg, bin string, bugs []bug) (found int, missed []string, err error) {
	build := exec.CommandContext(ctx, "go", "test", "-c", "-tags", "planted", "-o", bin, "./"+pkg)
	if out, err := build.CombinedOutput(); err != nil {
		return 0, nil, fmt.Errorf("build: %w\n%s", err, out)
	}
	passed := map[string]bool{} // tests seen to pass with no bug switched on
	for _, b := range bugs {
		if !passed[b.tests] {
			if out, err := tests(ctx, pkg, bin, "", b.tests); err != nil {
				return found, missed, fmt.Errorf("%s fails with no bug switched on: %w\n%s", b.tests, err, out)
			} else if !bytes.Contains(out, []byte("--- PASS")) {
				return found, missed, fmt.Errorf("%s: no test has that name", b.tests)
			}
			passed[b.tests] = true
		}
		start := time.Now()
		out, err := tests(ctx, pkg, bin, b.name, b.tests)
		if ctx.Err() != nil {
			return found, missed, ctx.Err()
		}
		if err != nil && failedByTest(out) {
			found++
			fmt.Printf("found   %-40s %6.1fs  %s\n", b.name, time.Since(start).Seconds(), b.tests)
			continue
		}
		missed = append(missed, b.name)
		fmt.Printf("MISSED  %-40s %6.1fs  %s: %v\n", b.name, time.Since(start).Seconds(), b.tests, err)
	}
	return found, missed, nil
}

// failedByTest tells a red test, a panic, a race or a test's time limit from a program that could not run.
func failedByTest(out []byte) bool {
	return bytes.Contains(out, []byte("--- FAIL")) || bytes.Contains(out, []byte("panic:")) || bytes.Contains(out, []byte("DATA RACE"))
}

func tests(ctx context.Context, pkg, bin, name, pattern string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, bin, "-test.run", "^("+pattern+")$", "-test.short", "-test.v", "-test.timeout", "60s")
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
