package index

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/journal/segment"
)

// enterEnv names the folder in which this program enters checkpoints, as a child of
// TestFullFileSystem: what a full disk does to Badger ends the whole process.
const enterEnv = "HOLDFAST_TEST_CATALOGUE"

// blindEnv, when it is set, has that child see space whatever there is: as if all of the
// disk were taken after each look, so that Badger is sure to meet a full one.
const blindEnv = "HOLDFAST_TEST_BLIND"

// testFloor is how much of the small file systems must be free.
const testFloor = 48 << 20

// TestMain is that child, or sees that the tests come to every call site of the disk
// interface, and make it fail.
func TestMain(m *testing.M) {
	if dir := os.Getenv(enterEnv); dir != "" {
		if err := enterForEver(dir); err != nil {
			fmt.Println("failed:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	sites := faultdisk.RecordSites()
	os.Exit(sites.AfterTests(m.Run()))
}

// watched remembers whether there was space when the catalogue last asked.
type watched struct {
	ioengine.FS
	low   atomic.Bool
	blind bool
}

func (w *watched) Free(dir string) (int64, error) {
	if w.blind {
		return math.MaxInt64, nil
	}
	free, err := w.FS.Free(dir)
	w.low.Store(err != nil || free < testFloor)
	return free, err
}

// enterForEver enters checkpoints, behind those that are there, until its input ends. Every
// twenty it says how many there are and whether there was space, and waits for a byte.
// Then it looks whether all are on disk.
func enterForEver(dir string) error {
	fs := &watched{FS: ioengine.OS(), blind: os.Getenv(blindEnv) != ""}
	cfg := BadgerConfig{FS: fs, Dir: dir, Boot: "one", Floor: testFloor, Memory: 1 << 30, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))}
	m := OpenBadger(cfg)
	c := NewCatalogue(m)
	n := uint64(0)
	if covers, ok := c.Covers(7); ok {
		n = uint64(covers.Pos)
		if err := listsAll(c, n); err != nil {
			return err
		}
	}
	fmt.Println("begins behind", n)
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
			if err := c.SetCovers(7, Marker{Pos: segment.Pos(n)}); err != nil {
				return err
			}
			fmt.Println(n, map[bool]string{false: "ok", true: "low"}[fs.low.Load()])
			if _, err := os.Stdin.Read(make([]byte, 1)); err == io.EOF {
				return allThere(cfg, m, n)
			}
		}
	}
}

func allThere(cfg BadgerConfig, m Map, n uint64) error {
	if err := m.Close(); err != nil {
		return err
	}
	m = OpenBadger(cfg)
	c := NewCatalogue(m)
	if covers, ok := c.Covers(7); !ok || uint64(covers.Pos) != n {
		return fmt.Errorf("%d were not written down: %+v, %v", n, covers, ok)
	}
	return errors.Join(listsAll(c, n), m.Close())
}

// listsAll looks whether the checkpoints 1 to n are there, one behind the other.
func listsAll(c *Catalogue, n uint64) error {
	want := uint64(1)
	for want <= n {
		cps, err := c.Checkpoints(7, want-1, 1000)
		if err != nil || len(cps) == 0 {
			return fmt.Errorf("after %d of %d: %w", want-1, n, err)
		}
		for _, cp := range cps {
			if cp.Number != want || cp.Time != benchCheckpoint(want).Time {
				return fmt.Errorf("%d stands where %d belongs", cp.Number, want)
			}
			want++
		}
	}
	return nil
}

// A real file system is filled to its last byte, again and again, by another process
// while checkpoints are entered. Each is listed at once, and all are on disk in the end.
// The process lives; it may end only if the disk was filled while Badger was writing what
// it began with space, and then what the catalogue says it covers is there. That this is so
// when it does end is seen with a process that does not look for space.
func TestFullFileSystem(t *testing.T) {
	mounts := map[string]func(dir string) error{
		"tmpfs": func(dir string) error { return syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=160m") },
		"ext4": func(dir string) error {
			folder := t.TempDir()
			if syscall.Mount("tmpfs", folder, "tmpfs", 0, "size=192m") == nil { // else the disk is most of what it waits for
				t.Cleanup(func() { must(t, syscall.Unmount(folder, syscall.MNT_DETACH)) })
			}
			image := filepath.Join(folder, "image")
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
			for _, way := range []bool{false, true} {
				if !testing.Short() || way == (name == "ext4") { // the short form fills each once
					fillAndFree(t, dir, way)
				}
			}
		})
	}
}

// enterer is the process that enters, and what it has said.
type enterer struct {
	t      *testing.T
	dir    string
	blind  bool
	cmd    *exec.Cmd
	in     io.WriteCloser
	lines  chan string
	stderr *strings.Builder
	behind uint64 // what was there when it began
	low    int    // batches since there was space
	old    int    // batches to come until one was surely entered after the disk was emptied; above 0 it may have ended before
}

func enter(t *testing.T, dir string, blind bool) *enterer {
	t.Helper()
	e := &enterer{t: t, dir: dir, blind: blind, cmd: exec.Command(os.Args[0]), lines: make(chan string), stderr: new(strings.Builder)}
	e.cmd.Env = append(os.Environ(), enterEnv+"="+dir)
	if blind {
		e.cmd.Env = append(e.cmd.Env, blindEnv+"=1")
	}
	e.cmd.Stderr = e.stderr
	in, err := e.cmd.StdinPipe()
	must(t, err)
	e.in = in
	out, err := e.cmd.StdoutPipe()
	must(t, err)
	must(t, e.cmd.Start())
	go func() {
		defer close(e.lines)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			e.lines <- lines.Text()
		}
	}()
	if line, ok := <-e.lines; !ok || len(line) == 0 {
		t.Fatalf("it did not begin: %v\n%.2000s", e.cmd.Wait(), e.stderr)
	} else if _, err := fmt.Sscanf(line, "begins behind %d", &e.behind); err != nil {
		t.Fatal(line)
	}
	return e
}

// goOn lets it enter twenty at a time, so many times or until done. False: Badger has
// ended the process, and could not be kept from it.
func (e *enterer) goOn(times int, done <-chan struct{}) bool {
	e.t.Helper()
	for ; times > 0; times-- {
		select {
		case <-done:
			return true
		case line, ok := <-e.lines:
			if !ok {
				e.died()
				return false
			}
			if strings.HasPrefix(line, "failed") {
				e.t.Fatal(line)
			}
			if e.low++; strings.HasSuffix(line, "ok") {
				e.low = 0
			}
			e.old = max(0, e.old-1)
			_, _ = e.in.Write([]byte{1}) // if it has ended, the next line says so
		}
	}
	return true
}

// inFlight is how many batches are entered, at most, while a write of them ends. What Badger
// writes by itself, tables, may have been begun long before.
const inFlight = 40

// writesTables says whether it was Badger's writing of tables that ended the process.
func (e *enterer) writesTables() bool {
	_, stack, _ := strings.Cut(e.stderr.String(), "SIGBUS")
	first, _, _ := strings.Cut(stack[strings.Index(stack, "goroutine")+1:], "\n\n")
	return strings.Contains(first, ".flushMemtable(") || strings.Contains(first, ".subcompact") || strings.Contains(first, ".doCompact(")
}

// died fails unless what ended the process is what is known to: the disk was filled up while
// Badger wrote what it had begun with space.
func (e *enterer) died() {
	e.t.Helper()
	err := e.cmd.Wait()
	var fs syscall.Statfs_t
	must(e.t, syscall.Statfs(filepath.Dir(e.dir), &fs))
	free := int64(fs.Bavail) * fs.Bsize
	if !strings.Contains(e.stderr.String(), "SIGBUS") || free >= testFloor && e.old == 0 || e.low > inFlight && !e.blind && !e.writesTables() {
		e.t.Fatalf("the process ended, with %d bytes free and %d batches after there last was space: %v\n%.3000s", free, e.low, err, e.stderr)
	}
	e.t.Logf("the disk was filled while something was written (tables: %v), and the process ended (%d batches later)", e.writesTables(), e.low)
}

func fillAndFree(t *testing.T, mount string, blind bool) {
	dir := filepath.Join(mount, fmt.Sprint("catalogue", blind))
	e := enter(t, dir, blind)
	e.goOn(100, nil)
	ballast := filepath.Join(mount, "ballast")
	rounds, deaths := 8, 0
	if testing.Short() || blind {
		rounds = 3
	}
	for range rounds {
		filled := make(chan struct{})
		go func() {
			defer close(filled)
			fill(t, ballast)
		}()
		lives := e.goOn(math.MaxInt, filled)
		<-filled
		lives = lives && e.goOn(500, nil) // more than fill a memtable
		if !lives {
			deaths++
			if !blind {
				e = enter(t, dir, blind) // on the full disk: nothing is written
				e.goOn(100, nil)
				must(t, errors.Join(e.in.Close(), e.cmd.Process.Kill()))
				_ = e.cmd.Wait()
			}
		}
		must(t, os.Remove(ballast))
		if lives { // what goes on behind the last batch may have met the full disk
			const written, entered = 1, 1 // one may wait to be read, and was begun before
			if e.old = written + entered; !e.goOn(e.old, nil) {
				lives = false
				deaths++
			}
		}
		if !lives {
			e = enter(t, dir, blind)
		}
		if !e.goOn(200, nil) {
			t.Fatal("it ended with space on the disk")
		}
	}
	must(t, e.ends())
	if blind && deaths == 0 {
		t.Error("Badger lives on a full disk")
	}
	t.Logf("blind %v: %d rounds, %d deaths", blind, rounds, deaths)
}

// ends lets it look whether all is on disk, and end.
func (e *enterer) ends() (err error) {
	must(e.t, e.in.Close())
	for line := range e.lines {
		if strings.HasPrefix(line, "failed") {
			err = errors.New(line)
		}
	}
	if bad := e.cmd.Wait(); bad != nil && err == nil {
		err = fmt.Errorf("%w\n%.2000s", bad, e.stderr)
	}
	return err
}

// fill writes until the file system has no byte left.
func fill(t *testing.T, name string) {
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
