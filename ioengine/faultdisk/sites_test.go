package faultdisk

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
)

// Reached and failed are told apart, by place and operation; what a test calls is no site,
// and what calls through a test's wrapper is one.
func TestSites(t *testing.T) {
	s := newSites()
	recording.Store(s)
	defer recording.Store(nil)
	d := New(1)
	f, err := d.Open("a", ioengine.Create) // a test's own
	if err != nil {
		t.Fatal(err)
	}
	d.Inject(Fault{Ops: OpRead, At: 2, Err: syscall.EIO})
	for range 2 { // by a caller of package io
		_, _ = io.NewSectionReader(f, 0, 9).ReadAt(make([]byte, 1), 0)
	}
	_, _ = io.NewSectionReader(wrapper{f}, 0, 9).ReadAt(make([]byte, 1), 0)
	if len(s.seen) != 1 {
		t.Errorf("%d sites", len(s.seen))
	}
	for key, at := range s.seen {
		if key.op != "ReadAt" || key.folder != "io" || at.reached != 3 || at.failed != 1 {
			t.Errorf("%+v reached %d failed %d", key, at.reached, at.failed)
		}
	}
}

type wrapper struct{ ioengine.File }

func (w wrapper) ReadAt(p []byte, off int64) (int, error) { return w.File.ReadAt(p, off) }

// What was not reached, what never failed and what is excused for nothing is named.
func TestSitesAreJudged(t *testing.T) {
	at := func(line int, op string) siteKey { return siteKey{"p", "p.go", line, op} }
	s := &Sites{seen: map[siteKey]*site{
		at(4, "Sync"): {"p.f", 3, 1}, at(5, "Sync"): {"p.f", 3, 0}, at(6, "Free"): {"p.f", 1, 1},
		at(9, "Open"): {"p.hidden", 1, 0}, {"q", "q.go", 1, "Open"}: {"q.f", 1, 0},
	}}
	calls := []callSite{{at(4, "Sync"), "f", "a.Sync"}, {at(5, "Sync"), "f", "b.Sync"}, {at(6, "Free"), "f", "c.Free"},
		{at(7, "Size"), "f", "d.Size"}, {at(8, "Zero"), "g", "e.Zero"}}
	excused := map[string]bool{"f c.Free": true, "g e.Zero": true, "gone x.Sync": true}
	v := s.judge(calls, excused)
	if v.all != 6 || v.excused != 1 || strings.Join(v.missed, ";") != "p.go:7 f d.Size" || strings.Join(v.unfailed, ";") != "p.go:5 f b.Sync;p.go:9 hidden Open" {
		t.Errorf("%+v", v)
	}
	if len(excused) != 2 || !excused["f c.Free"] || !excused["gone x.Sync"] {
		t.Errorf("excused for nothing: %v", excused)
	}
}

// The calls are found by their types, whatever the names they are made by.
func TestCallsOfTheSource(t *testing.T) {
	calls, err := callsIn("..") // ioengine itself calls files through its interface
	if err == nil && len(calls) == 0 || err != nil && !strings.Contains(err.Error(), "no call") {
		t.Errorf("%v", err)
	}
	dir := filepath.Join("..", "..", "journal", "scrub")
	if _, err := callsIn(dir); err == nil || !strings.Contains(err.Error(), "no call of the disk interface") {
		t.Errorf("a package that calls no disk: %v", err)
	}
	dir = filepath.Join("..", "..", "journal", "replica")
	calls, err = callsIn(dir)
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, c := range calls {
		found[c.op] = true
		if c.folder != "replica" || c.function == "" || c.line == 0 {
			t.Errorf("%+v", c)
		}
	}
	for _, op := range []string{"Open", "ReadAt", "WriteAt", "Sync", "SyncDir"} {
		if !found[op] {
			t.Errorf("no call of %s", op)
		}
	}
}

func TestExcuses(t *testing.T) {
	name := filepath.Join(t.TempDir(), "sites.txt")
	if m, err := excuses(name); err != nil || len(m) != 0 {
		t.Errorf("none: %v %v", m, err)
	}
	if err := os.WriteFile(name, []byte("f w.file.Truncate as a test says\ng w.file.Sync\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := excuses(name)
	if err != nil || len(m) != 1 || !m["f w.file.Truncate"] {
		t.Errorf("an excuse needs a reason: %v %v", m, err)
	}
}

// Run again and again, a fault comes to each place that calls the disk, and then to none.
func TestOncePerSite(t *testing.T) {
	once := &OncePerSite{}
	work := func(d *Disk) (failed string) {
		f, err := d.Open("a", ioengine.Create)
		if err != nil {
			t.Fatal(err)
		}
		p := make([]byte, 1)
		for range 3 {
			if _, err := io.NewSectionReader(f, 0, 9).ReadAt(p, 0); errors.Is(err, syscall.EIO) {
				failed += "r"
			}
			if _, err := io.NewOffsetWriter(f, 0).WriteAt(p, 0); errors.Is(err, syscall.EIO) {
				failed += "w"
			}
		}
		return failed
	}
	var all []string
	for range 4 {
		d := New(1)
		d.Inject(Fault{Ops: OpAny, Once: once, Err: syscall.EIO})
		all = append(all, work(d))
	}
	if got := strings.Join(all, ","); got != "r,w,," || once.Found() != 2 {
		t.Errorf("failed %q, found %d", got, once.Found())
	}
	d := New(1)
	d.Inject(Fault{Ops: OpAny, Once: &OncePerSite{Folder: "journal"}, Err: syscall.EIO})
	if got := work(d); got != "" {
		t.Errorf("%q failed in another folder", got)
	}
	d = New(1)
	d.Inject(Fault{Ops: OpAny, Once: &OncePerSite{}, Ever: true, Err: syscall.EIO})
	if got := work(d); got != "rwrwrw" {
		t.Errorf("%q failed for good", got)
	}
}
