package index

import (
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// badgerIn is a catalogue in a folder of its own, in memory where there is such a file
// system: a sync costs nothing there.
func badgerIn(t testing.TB) BadgerConfig {
	dir, err := os.MkdirTemp("/dev/shm", "catalogue")
	if err != nil {
		dir = t.TempDir()
	}
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	return BadgerConfig{FS: ioengine.OS(), Dir: filepath.Join(dir, "catalogue"), Boot: "one", Floor: 1}
}

// holds says whether the map has what was put.
func holds(t *testing.T, m Map) bool {
	t.Helper()
	cp, ok, err := NewCatalogue(m).Checkpoint(7, 42)
	must(t, err)
	if ok && !reflect.DeepEqual(cp, goldenCheckpoint) {
		t.Errorf("holds %+v", cp)
	}
	return ok
}

// What was put is there when the catalogue is opened again, closed or not; after the
// machine has gone down under it nothing is.
func TestBadgerAgain(t *testing.T) {
	f := func(name string, want bool, before func(BadgerConfig, Map), boot string) {
		t.Helper()
		cfg := badgerIn(t)
		m := OpenBadger(cfg)
		c := NewCatalogue(m)
		must(t, c.Put(7, goldenCheckpoint))
		must(t, c.SetCovers(7, goldenMarker))
		before(cfg, m)
		cfg.Boot = boot
		m = OpenBadger(cfg)
		if m.(*guarded).disk == nil {
			t.Errorf("%s: it is not on disk", name)
		}
		covers, ok := NewCatalogue(m).Covers(7)
		if have := holds(t, m); have != want || ok != want || ok && covers != goldenMarker {
			t.Errorf("%s: opened again, it holds what was put: %v, covers %+v, %v", name, have, covers, ok)
		}
		must(t, NewCatalogue(m).Put(7, goldenCheckpoint))
		must(t, m.Close())
		m = OpenBadger(cfg)
		if !holds(t, m) {
			t.Errorf("%s: put again and closed, it holds nothing", name)
		}
		must(t, m.Close())
	}
	shut := func(_ BadgerConfig, m Map) { must(t, m.Close()) }
	kill := func(BadgerConfig, Map) {}
	write := func(name, text string) func(BadgerConfig, Map) {
		return func(cfg BadgerConfig, m Map) {
			must(t, m.Close())
			must(t, os.WriteFile(filepath.Join(cfg.Dir, name), []byte(text), 0o600))
		}
	}
	f("closed", true, shut, "one")
	f("closed, another boot", true, shut, "two")
	f("killed", true, kill, "one")
	f("killed, another boot", false, kill, "two")
	f("killed, no boot known", false, kill, "")
	f("ended while it opened", false, write(inUseName, saysOpening+"one\n"), "one")
	f("of another release", false, write(formatName, "holdfast catalogue 9\n"), "one")
	f("of another program", false, func(cfg BadgerConfig, m Map) {
		must(t, m.Close())
		must(t, os.Remove(filepath.Join(cfg.Dir, formatName)))
	}, "one")
	f("without its list of tables", false, write("MANIFEST", "nothing"), "one")
	f("absent", false, func(cfg BadgerConfig, m Map) { must(t, m.Close()); must(t, os.RemoveAll(cfg.Dir)) }, "one")
}

// Each file damaged in turn, cut short or changed at each of its parts, after a kill and
// after a close: it never holds anything else than what was put.
func TestBadgerDamaged(t *testing.T) {
	cfg := badgerIn(t)
	m := OpenBadger(cfg)
	must(t, NewCatalogue(m).Put(7, goldenCheckpoint))
	must(t, m.Close())
	m = OpenBadger(cfg)
	must(t, NewCatalogue(m).Put(7, Checkpoint{Number: 43, State: Good}))
	names, err := os.ReadDir(cfg.Dir)
	must(t, err)
	if len(names) < 6 {
		t.Fatalf("files %v", names)
	}
	for _, n := range names {
		info, err := n.Info()
		must(t, err)
		for _, at := range []int64{-1, 0, info.Size() / 3, info.Size() - 9} {
			if at >= info.Size() || at < -1 {
				continue
			}
			for _, killed := range []bool{true, false} {
				if testing.Short() && (at > 0 && !killed || at == 0) {
					continue
				}
				again := badgerIn(t)
				must(t, os.CopyFS(again.Dir, os.DirFS(cfg.Dir)))
				if !killed {
					must(t, os.Remove(filepath.Join(again.Dir, inUseName)))
					if n.Name() == inUseName {
						continue
					}
				}
				name := filepath.Join(again.Dir, n.Name())
				p, err := os.ReadFile(name)
				must(t, err)
				if at < 0 {
					p = p[:len(p)/2]
				} else {
					p[at] ^= 0x55
				}
				must(t, os.WriteFile(name, p, 0o600))
				m := OpenBadger(again)
				if _, _, err := NewCatalogue(m).Checkpoint(7, 42); err == nil {
					holds(t, m)
				}
				must(t, m.Close())
			}
		}
	}
}

// While there is no space all waits in memory, and is on disk once there is; what cannot
// be asked is no space.
func TestGuard(t *testing.T) {
	cfg := badgerIn(t)
	free := &freeFS{FS: cfg.FS, free: 1 << 40}
	cfg.FS, cfg.Floor, cfg.Memory = free, 1<<30, 1<<20
	m := OpenBadger(cfg)
	c := NewCatalogue(m)
	must(t, c.Put(7, Checkpoint{Number: 1, State: Good}))
	files := func() (all string) {
		t.Helper()
		names, err := os.ReadDir(cfg.Dir)
		must(t, err)
		for _, n := range names {
			p, err := os.ReadFile(filepath.Join(cfg.Dir, n.Name()))
			must(t, err)
			all += string(p)
		}
		return all
	}
	for i, full := range []func(){func() { free.set(1<<30-1, nil) }, func() { free.set(1<<40, os.ErrInvalid) }} {
		full()
		before := files()
		n := uint64(10 * (i + 1))
		must(t, c.Put(7, Checkpoint{Number: n, State: Bad, Tag: "t"}))
		must(t, c.Forget(7, 1))
		if files() != before {
			t.Error("the disk is written when it is full")
		}
		if got := listed(t, c, 7, Query{Limit: 10, Newest: true}); len(got) != 1+i || got[0].Number != n {
			t.Errorf("on a full disk it lists %+v", got)
		}
		free.set(1<<40, nil)
		must(t, c.Put(7, Checkpoint{Number: n + 1, State: Good}))
		must(t, c.Forget(7, n+1))
		m.(*guarded).tenders.Wait()
		if !m.(*guarded).over.empty() {
			t.Error("with space again it is not written down")
		}
	}
	// More than memory may hold: refused, and what is there stays.
	free.set(0, nil)
	n, err := uint64(100), error(nil)
	for ; err == nil && n < 100_000; n++ {
		err = c.Put(7, Checkpoint{Number: n, State: Good})
	}
	if waiting := m.(*guarded).over.bytes; err == nil || waiting > cfg.Memory {
		t.Errorf("%d bytes wait, %v", waiting, err)
	}
	if counts, err := c.Counts(7); err != nil || counts.Total() != int(n-1-100)+2 {
		t.Errorf("counts %+v of %d, %v", counts, n, err)
	}
	must(t, c.Forget(7, 100)) // that needs next to nothing
	before := files()
	must(t, m.Close())
	if files() != before {
		t.Error("closing writes to a full disk")
	}
	// Opened on a full disk, what lies there is not looked at; with space it is made anew.
	m = OpenBadger(cfg)
	c = NewCatalogue(m)
	if counts, err := c.Counts(7); err != nil || counts.Total() != 0 {
		t.Errorf("opened on a full disk: %+v, %v", counts, err)
	}
	must(t, c.Put(7, goldenCheckpoint))
	must(t, c.SetCovers(7, goldenMarker))
	free.set(1<<40, nil)
	must(t, m.Close())
	m = OpenBadger(cfg)
	if !holds(t, m) {
		t.Error("what waited in memory is lost")
	}
	if counts, err := NewCatalogue(m).Counts(7); err != nil || counts.Total() != 1 {
		t.Errorf("what was there before is back: %+v, %v", counts, err)
	}
	must(t, m.Close())
}

// What is in memory does not grow with what is on disk.
func TestBadgerMemory(t *testing.T) {
	const limit = 40 << 20
	inUse := func() int64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return int64(m.HeapInuse)
	}
	all := uint64(300_000)
	if testing.Short() {
		all = 50_000
	}
	before := inUse()
	m := OpenBadger(badgerIn(t))
	c := NewCatalogue(m)
	for n := uint64(1); n <= all; {
		var cps []Checkpoint
		for range 1000 {
			cps = append(cps, benchCheckpoint(n))
			n++
		}
		must(t, c.Put(7, cps...))
		if n%25_000 == 1 {
			if used := inUse() - before; used > limit {
				t.Errorf("%d checkpoints take %d MiB of memory", n-1, used>>20)
			}
		}
	}
	t.Logf("%d MiB with %d checkpoints", (inUse()-before)>>20, all)
	must(t, m.Close())
}

// freeFS says how much space there is.
type freeFS struct {
	ioengine.FS
	mu   sync.Mutex
	free int64
	err  error
}

func (f *freeFS) set(free int64, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.free, f.err = free, err
}

func (f *freeFS) Free(string) (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.free, f.err
}

// go test ./journal/index -run '^$' -bench Catalogue -benchtime 1x
//
// It enters a million checkpoints of a group, as when the catalogue was lost, and reads
// pages of a hundred at all places.
func BenchmarkCatalogue(b *testing.B) {
	const all = 1_000_000
	for b.Loop() {
		var before, peak runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		cfg := badgerIn(b)
		m := OpenBadger(cfg)
		c := NewCatalogue(m)
		highest := uint64(0)
		began := time.Now()
		cps := make([]Checkpoint, 0, 1000)
		for n := uint64(1); n <= all; n++ {
			cps = append(cps, benchCheckpoint(n))
			if len(cps) == cap(cps) {
				must(b, c.Put(7, cps...))
				cps = cps[:0]
			}
			if n%50_000 == 0 {
				runtime.ReadMemStats(&peak)
				highest = max(highest, peak.HeapInuse)
			}
		}
		must(b, c.SetCovers(7, goldenMarker))
		b.ReportMetric(time.Since(began).Seconds(), "s/put")
		b.ReportMetric(float64(highest-before.HeapInuse)/(1<<20), "MiB-peak")
		pages := func(q Query) float64 {
			began := time.Now()
			for i := range uint64(100) {
				q.After = 1 + i*(all/100)
				page, err := c.List(7, q)
				must(b, err)
				if i > 0 && i < 99 && len(page.Checkpoints) != q.Limit {
					b.Fatalf("%+v: %d", q, len(page.Checkpoints))
				}
			}
			return float64(time.Since(began).Microseconds()) / 100
		}
		b.ReportMetric(pages(Query{Limit: 100}), "µs/page")
		b.ReportMetric(pages(Query{Limit: 100, Newest: true}), "µs/page-newest")
		began = time.Now()
		for i := range 100 {
			_, err := c.List(7, Query{Limit: 100, From: benchCheckpoint(uint64(1 + i*9000)).Time})
			must(b, err)
		}
		b.ReportMetric(float64(time.Since(began).Microseconds())/100, "µs/page-from")
		began = time.Now()
		must(b, m.Close())
		b.ReportMetric(float64(time.Since(began).Milliseconds()), "ms/close")
		began = time.Now()
		m = OpenBadger(cfg)
		if n, err := NewCatalogue(m).Counts(7); err != nil || n.Total() != all {
			b.Fatalf("%+v, %v", n, err)
		}
		b.ReportMetric(float64(time.Since(began).Milliseconds()), "ms/open")
		began = time.Now()
		m = OpenBadger(cfg) // as after a kill
		if n, err := NewCatalogue(m).Counts(7); err != nil || n.Total() != all {
			b.Fatalf("%+v, %v", n, err)
		}
		b.ReportMetric(float64(time.Since(began).Milliseconds()), "ms/open-killed")
		must(b, m.Close())
		size := int64(0)
		names, err := os.ReadDir(cfg.Dir)
		must(b, err)
		for _, n := range names {
			info, err := n.Info()
			must(b, err)
			size += info.Size()
		}
		b.ReportMetric(float64(size)/all, "bytes/checkpoint")
	}
}

func benchCheckpoint(n uint64) Checkpoint {
	return Checkpoint{Number: n, Time: record.Time(n) * 5e9, Wall: int64(n) * 5e9, State: Good,
		Volumes: []record.VolumeSize{{ID: 1, Bytes: 1 << 30}, {ID: 2, Bytes: 1 << 30}}, At: []StreamAt{{Stream: 5, Seq: record.Seq(n)}}}
}
