package index

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
)

// tellingFS notes which pages of runs were read, and which of these the disk was told of
// before.
type tellingFS struct {
	ioengine.FS
	mu          sync.Mutex
	told        map[string]bool // page by name
	read        []string
	unannounced int // reads
}

type tellingFile struct {
	ioengine.File
	fs   *tellingFS
	name string
}

func (t *tellingFS) Open(name string, flags ioengine.Flags) (ioengine.File, error) {
	f, err := t.FS.Open(name, flags)
	return &tellingFile{f, t, name}, err
}

func (t *tellingFS) reset() { t.told, t.read, t.unannounced = map[string]bool{}, nil, 0 }

func (f *tellingFile) page(off int64) string { return fmt.Sprint(f.name, off/pageBytes) }

func (f *tellingFile) WillRead(off, n int64) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	f.fs.told[f.page(off)] = true
}

func (f *tellingFile) ReadAt(p []byte, off int64) (int, error) {
	f.fs.mu.Lock()
	defer f.fs.mu.Unlock()
	if !f.fs.told[f.page(off)] {
		f.fs.unannounced++
	}
	f.fs.read = append(f.fs.read, f.page(off))
	return f.File.ReadAt(p, off)
}

// A lookup in many runs of which nothing is in memory waits for the disk a few times, however
// many they are, and reads no page twice; one that finds all in memory tells nothing.
func TestColdLookup(t *testing.T) {
	fs := &tellingFS{FS: faultdisk.New(512)}
	fs.reset()
	cfg := testTable(fs)
	cfg.RunBytes, cfg.Cache = 32<<10, NewCache(64<<20)
	table, err := OpenTable(cfg)
	must(t, err)
	f := newFeeder(1 << 30)
	f.fill(t, table, 1<<15, 128<<10)
	runs := len(table.mu.view.runs)
	if runs < 6 {
		t.Fatalf("%d runs", runs)
	}
	at := NewVector(Checkpoint{At: []StreamAt{{Stream: 0x123456789abcdef, Seq: f.seq}}})
	most, rounds := 0, 0
	for range 200 {
		off := f.random() << 12
		cold := NewCache(64 << 20)
		for _, r := range table.mu.view.runs {
			r.cache = cold
		}
		fs.reset()
		want, err := table.Lookup(nil, 1, off, 4096, at)
		must(t, err)
		most, rounds = max(most, len(fs.read)), max(rounds, fs.unannounced)
		if pages := slices.Compact(slices.Sorted(slices.Values(fs.read))); len(pages) < len(fs.read) {
			t.Fatalf("%d reads of %d pages", len(fs.read), len(pages))
		}
		fs.reset()
		got, err := table.Lookup(nil, 1, off, 4096, at)
		if must(t, err); !slices.Equal(got, want) || len(fs.read)+len(fs.told) > 0 {
			t.Fatalf("again: %d reads, %d told, %v, want %v", len(fs.read), len(fs.told), got, want)
		}
	}
	t.Logf("%d runs: at most %d reads, %d of them not told of", runs, most, rounds)
	if most < runs || rounds > 4 {
		t.Errorf("a cold lookup in %d runs reads %d pages, and waits for %d", runs, most, rounds)
	}
	must(t, table.Close())
}

// What is told of and does not read is an error of the lookups alone that need it.
func TestColdLookupDamaged(t *testing.T) {
	disk := faultdisk.New(512)
	cfg := testTable(disk)
	var told []error
	cfg.RunBytes, cfg.Cache, cfg.Damaged = 32<<10, NewCache(64<<20), func(err error) { told = append(told, err) }
	table, err := OpenTable(cfg)
	must(t, err)
	f := newFeeder(1 << 30)
	f.fill(t, table, 1<<15, 128<<10)
	at := NewVector(Checkpoint{At: []StreamAt{{Stream: 0x123456789abcdef, Seq: f.seq}}})
	runs := table.mu.view.runs
	want := make(map[int64][]Piece)
	for len(want) < 300 {
		off := f.random() << 12
		want[off], err = table.Lookup(nil, 1, off, 4096, at)
		must(t, err)
	}
	oldest := runs[0]
	for _, r := range runs {
		if r.hi < oldest.hi {
			oldest = r
		}
	}
	name := table.path(runName(oldest.id.number))
	for page := range int64(oldest.tail) {
		must(t, disk.Rot(name, page*pageBytes+100, 1))
	}
	for _, r := range runs {
		r.cache = NewCache(64 << 20)
	}
	wrong, right := 0, 0
	for off, want := range want {
		for _, r := range runs {
			r.cache = NewCache(64 << 20)
		}
		got, err := table.Lookup(nil, 1, off, 4096, at)
		switch {
		case err == nil && slices.Equal(got, want) && want[0].In == InLog && want[0].Pos >= oldest.hi:
			right++
		case errors.Is(err, ErrCorrupt) && (want[0].In != InLog || want[0].Pos < oldest.hi):
			wrong++
		default:
			t.Fatalf("at %d: %v %v, want %v", off, err, got, want)
		}
	}
	if right == 0 || wrong == 0 || len(told) != 1 {
		t.Errorf("%d lookups without the run, %d with it, %d told of damage", right, wrong, len(told))
	}
	must(t, table.Close())
}
