package index

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
)

// enterEnv names the folder in which this program enters checkpoints, as a child of
// TestFullFileSystem: what a full disk does to Badger ends the whole process.
const enterEnv = "HOLDFAST_TEST_CATALOGUE"

func TestMain(m *testing.M) {
	if dir := os.Getenv(enterEnv); dir != "" {
		if err := enterForEver(dir); err != nil {
			fmt.Println("failed:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// enterForEver enters checkpoints until its input ends, and says how many there are, and
// waits for a byte, every twenty. Then it looks whether all are on disk.
func enterForEver(dir string) error {
	cfg := BadgerConfig{FS: ioengine.OS(), Dir: dir, Boot: "one", Floor: 48 << 20, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	m := OpenBadger(cfg)
	c := NewCatalogue(m)
	n := uint64(0)
	for {
		n++
		if err := c.Put(7, benchCheckpoint(n)); err != nil {
			return err
		}
		if n%20 == 0 {
			page, err := c.List(7, Query{Limit: 1, Newest: true})
			if err != nil || len(page.Checkpoints) != 1 || page.Checkpoints[0].Number != n {
				return fmt.Errorf("%d is not listed: %+v: %w", n, page, err)
			}
			fmt.Println(n)
			if _, err := os.Stdin.Read(make([]byte, 1)); err == io.EOF {
				return allThere(cfg, c, m, n)
			}
		}
	}
}

func allThere(cfg BadgerConfig, c *Catalogue, m Map, n uint64) error {
	if err := c.SetCovers(7, Marker{Pos: 1}); err != nil {
		return err
	}
	if err := m.Close(); err != nil {
		return err
	}
	m = OpenBadger(cfg)
	c = NewCatalogue(m)
	if _, ok := c.Covers(7); !ok {
		return errors.New("it was not written down")
	}
	want := uint64(1)
	for after := uint64(0); want <= n; {
		cps, err := c.Checkpoints(7, after, 1000)
		if err != nil || len(cps) == 0 {
			return fmt.Errorf("after %d of %d: %w", after, n, err)
		}
		for _, cp := range cps {
			if cp.Number != want || cp.Time != benchCheckpoint(want).Time {
				return fmt.Errorf("%d stands where %d belongs", cp.Number, want)
			}
			want++
		}
		after = want - 1
	}
	return m.Close()
}

// A real file system is filled to its last byte, again and again, while checkpoints are
// entered: the process lives, each is listed at once, and all are on disk in the end.
func TestFullFileSystem(t *testing.T) {
	mounts := map[string]func(dir string) error{
		"tmpfs": func(dir string) error { return syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=160m") },
		"ext4": func(dir string) error {
			image := filepath.Join(t.TempDir(), "image")
			f, err := os.Create(image)
			if err == nil {
				err = errors.Join(f.Truncate(160<<20), f.Close())
			}
			if err == nil {
				_, err = exec.Command("mkfs.ext4", "-q", "-F", image).Output()
			}
			if err == nil {
				_, err = exec.Command("mount", "-o", "loop", image, dir).Output()
			}
			return err
		},
	}
	for name, mount := range mounts {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := mount(dir); err != nil {
				t.Logf("no file system of its own (%v): nothing is filled", err)
				return
			}
			t.Cleanup(func() { must(t, syscall.Unmount(dir, syscall.MNT_DETACH)) })
			fillAndFree(t, dir)
		})
	}
}

func fillAndFree(t *testing.T, mount string) {
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), enterEnv+"="+filepath.Join(mount, "catalogue"))
	in, err := child.StdinPipe()
	must(t, err)
	out, err := child.StdoutPipe()
	must(t, err)
	var stderr strings.Builder
	child.Stderr = &stderr
	must(t, child.Start())
	entered := make(chan string)
	go func() {
		defer close(entered)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			entered <- lines.Text()
		}
	}()
	// goOn lets it enter twenty at a time, so many times.
	goOn := func(times int) {
		t.Helper()
		for ; times > 0; times-- {
			line, ok := <-entered
			if !ok || strings.HasPrefix(line, "failed") {
				t.Fatalf("the process ended: %s, %v\n%.2000s", line, child.Wait(), stderr.String())
			}
			_, err := in.Write([]byte{1})
			must(t, err)
		}
	}
	goOn(100)
	ballast := filepath.Join(mount, "ballast")
	rounds := 5
	if testing.Short() {
		rounds = 2
	}
	for range rounds {
		// Whoever fills it takes a MiB at a time, and the process goes on between: one that
		// takes more than the floor while a table is being written is not survived.
		fill(t, ballast, func() { goOn(1) })
		goOn(100)
		must(t, os.Remove(ballast))
		goOn(200)
	}
	must(t, in.Close())
	for line := range entered {
		if strings.HasPrefix(line, "failed") {
			t.Error(line)
		}
	}
	if err := child.Wait(); err != nil {
		t.Errorf("%v\n%.2000s", err, stderr.String())
	}
}

// fill writes until the file system has no byte left.
func fill(t *testing.T, name string, between func()) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY, 0o600)
	for size := 1 << 20; size > 0 && (err == nil || errors.Is(err, syscall.ENOSPC)); {
		if _, err = f.Write(make([]byte, size)); err != nil {
			size /= 2
		}
		between()
	}
	if !errors.Is(err, syscall.ENOSPC) || f.Close() != nil {
		t.Errorf("the file system is not full: %v", err)
	}
}
