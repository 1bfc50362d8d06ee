package journal

import (
	"bufio"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// feedEnv names the folder of a store that this program feeds, as a child of
// TestDeathOnAFullDisk; feedStepsEnv says how often it was fed before.
const (
	feedEnv      = "HOLDFAST_TEST_STORE"
	feedStepsEnv = "HOLDFAST_TEST_STEPS"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv(feedEnv); dir != "" {
		var steps int
		_, err := fmt.Sscan(os.Getenv(feedStepsEnv), &steps)
		if err == nil {
			err = feedForEver(dir, steps)
		}
		fmt.Println("failed:", err)
		os.Exit(1)
	}
	os.Exit(runTests(m))
}

// roomy sees space whatever there is, as if all of the disk were taken after each look.
type roomy struct{ ioengine.FS }

func (roomy) Free(string) (int64, error) { return math.MaxInt64, nil }

// feedForEver opens the store, looks whether all that it lists is right, and feeds it, step
// by step, a step for each byte of its input. It says what it has promised. The
// catalogue's own disk space is never looked at, and another group fills it quickly.
func feedForEver(dir string, steps int) error {
	cfg := machineConfig(dir)
	cfg.Still = true // history stays as it is
	var catalogue index.Map
	cfg.OpenCatalogue = func() (index.Map, error) {
		catalogue = index.OpenBadger(index.BadgerConfig{FS: roomy{cfg.FS}, Dir: filepath.Join(dir, catalogueName), Boot: "one"})
		return catalogue, nil
	}
	w, err := openWith(cfg)
	if err != nil {
		return err
	}
	s := newSource(41)
	s.open(true)
	s.write(6)
	s.close()
	step := func() {
		s.write(4)
		s.limit = s.checkpoint()
	}
	for range steps {
		step()
	}
	numbers, err := w.check(s)
	if err != nil {
		return err
	}
	for i, n := range numbers {
		if n != uint64(i+1) {
			return fmt.Errorf("%v are listed", numbers)
		}
	}
	fmt.Println("has", w.group.Durable(testStream), len(numbers))
	other := index.NewCatalogue(catalogue)
	for number := uint64(1); ; {
		if _, err := os.Stdin.Read(make([]byte, 1)); err != nil {
			return err
		}
		step()
		err := w.feed(s, 3)
		if err != nil && !errors.Is(err, syscall.ENOSPC) {
			return err
		}
		acked, listed := w.promised()
		fmt.Println("promised", acked, slices.Max(append(listed, 0)), err == nil)
		for range 400 {
			if err := other.Put(testGroup+1, Checkpoint{Number: number, Time: record.Time(number), State: index.Good, Tag: strings.Repeat("x", 60)}); err != nil {
				return err
			}
			number++
		}
	}
}

// A disk that is filled while the catalogue's library writes ends the target's process,
// since that library writes through mmap. All that was acknowledged and all that was listed
// before is there when there is space and the process starts again. The process does
// not look for space here: one that does ends only if the disk is taken after its look.
func TestDeathOnAFullDisk(t *testing.T) {
	mount, err := smallDisk(t)
	if err != nil {
		t.Logf("no file system of its own (%v): nothing is filled", err)
		return
	}
	ballast := filepath.Join(mount, "ballast")
	rounds := 4
	if testing.Short() {
		rounds = 2
	}
	var acked, listed uint64
	for steps, round := 0, 0; round <= rounds; round++ {
		child := exec.Command(os.Args[0])
		child.Env = append(os.Environ(), feedEnv+"="+filepath.Join(mount, "store"), fmt.Sprintf("%s=%d", feedStepsEnv, steps))
		var stderr strings.Builder
		child.Stderr = &stderr
		in, err := child.StdinPipe()
		ok(t, err)
		out, err := child.StdoutPipe()
		ok(t, err)
		ok(t, child.Start())
		lines := bufio.NewScanner(out)
		var has, last uint64
		if _, err := fmt.Sscanf(next(lines), "has %d %d", &has, &last); err != nil || has < acked || last < listed {
			t.Fatalf("round %d: it has %q; %d were acknowledged and %d listed: %v\n%.2000s", round, lines.Text(), acked, listed, err, stderr.String())
		}
		if round == rounds {
			ok(t, child.Process.Kill())
			_ = child.Wait()
			break
		}
		filled := make(chan struct{})
		full, lives, since := false, true, 0 // steps since the disk is full
		for i := 0; lives; i++ {
			if i == 7+round {
				go func() {
					defer close(filled)
					fillUp(t, ballast)
				}()
			}
			steps++
			if _, err := in.Write([]byte{1}); err != nil {
				break // it has ended
			}
			line := next(lines)
			var stored bool
			switch _, err := fmt.Sscanf(line, "promised %d %d %t", &has, &last, &stored); {
			case line == "":
				lives = false
			case err != nil:
				t.Fatalf("round %d: %s", round, line)
			default:
				acked, listed, full = max(acked, has), max(listed, last), full || !stored
			}
			select {
			case <-filled:
				since++
			default: // whatever time that takes
			}
			if since > 500 {
				t.Fatal("the process lives on a full disk")
			}
		}
		<-filled
		if err := child.Wait(); !strings.Contains(stderr.String(), "SIGBUS") {
			t.Fatalf("round %d: the process ended: %v\n%.2000s", round, err, stderr.String())
		}
		ok(t, os.Remove(ballast))
		t.Logf("round %d: the process ended with %d acknowledged and %d listed; intake had stopped: %v", round, acked, listed, full)
	}
}

// next is the next line; "" at the end.
func next(lines *bufio.Scanner) string {
	if !lines.Scan() {
		return ""
	}
	return lines.Text()
}

// fillUp writes until the file system has no byte left.
func fillUp(t *testing.T, name string) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o600)
	for size := 1 << 20; size > 0 && (err == nil || errors.Is(err, syscall.ENOSPC)); {
		if _, err = f.Write(make([]byte, size)); err != nil {
			size /= 2
		}
	}
	if !errors.Is(err, syscall.ENOSPC) || f.Close() != nil {
		t.Errorf("the file system is not full: %v", err)
	}
}
