package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/journal"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/stripe"
	"github.com/holdfast-dr/holdfast/journal/view"
	"github.com/holdfast-dr/holdfast/wire/record"
)

const volumeBytes = 512 << 10

// made is a store on disk, and what each of its checkpoints must give back.
type made struct {
	dir    string
	images map[uint64][]byte
}

// makeStore writes a store with one volume and three checkpoints, and closes it.
func makeStore(t *testing.T) made {
	t.Helper()
	m := made{dir: filepath.Join(t.TempDir(), "store")}
	m.images = fill(t, ioengine.OS(), m.dir)
	return m
}

// fill makes that store there.
func fill(t *testing.T, fsys ioengine.FS, dir string) map[uint64][]byte {
	t.Helper()
	images := map[uint64][]byte{}
	s, err := journal.Open(journal.Config{FS: fsys, Dir: dir, SegmentBytes: 128 << 10, OpenCatalogue: func() (index.Map, error) { return new(index.Memory), nil }})
	ok(t, err)
	g, err := s.OpenGroup(journal.GroupInfo{ID: 0xa1, Name: "shop", Lineage: 5})
	ok(t, err)
	ok(t, g.SetVolumes([]journal.VolumeInfo{{ID: 1, Name: "data", Bytes: volumeBytes}}))
	_, err = g.Admit(9, 1, 1)
	ok(t, err)
	id, ticket := record.Identity{Stream: 9, Epoch: 1, Incarnation: 1}, record.Ticket(0)
	sizes := []record.VolumeSize{{ID: 1, Bytes: volumeBytes}}
	rng, image := rand.New(rand.NewPCG(1, 2)), make([]byte, volumeBytes)
	next := func() (record.Identity, record.Time, record.Ticket) {
		id.Seq++
		ticket++
		return id, record.Time(1e18 + int64(id.Seq)), ticket
	}
	send := func(p []byte) {
		t.Helper()
		r, err := record.Parse(p)
		ok(t, err)
		done := make(chan error, 1)
		ok(t, g.Append(r, func(err error) { done <- err }))
		ok(t, <-done)
	}
	write := func(n int) {
		b := record.NewBatch(record.Limits{})
		for range n {
			p := make([]byte, 4096)
			for i := range p {
				p[i] = byte(rng.Uint32())
			}
			off := rng.Int64N(volumeBytes/4096) * 4096
			ticket++
			b.Add(record.Piece{Volume: 1, Off: off, Len: 4096, Ticket: ticket, Data: p})
			copy(image[off:], p)
		}
		id, at, _ := next()
		send(b.Seal(nil, id, at, record.NewCompressor()))
	}
	i, at, tick := next()
	send(record.AppendResyncOpen(nil, i, at, tick, record.Resync{Initial: true, Reason: "first", Volumes: sizes}))
	write(20)
	i, at, tick = next()
	send(record.AppendResyncClose(nil, i, at, tick, record.Resync{Initial: true, Volumes: sizes}))
	for range 3 {
		for range 4 {
			write(20)
		}
		i, at, tick = next()
		send(record.AppendCut(nil, i, at, tick, record.Cut{Checkpoint: uint64(i.Seq), Wall: int64(at), Tag: "tag " + strconv.Itoa(len(images)), Solo: true, Volumes: sizes}))
		images[uint64(i.Seq)] = bytes.Clone(image)
	}
	ok(t, s.Close())
	return images
}

func ok(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// dumped runs the command and returns what it printed.
func dumped(t *testing.T, args ...string) (string, error) {
	t.Helper()
	var out, log bytes.Buffer
	err := run(context.Background(), args, &out, &log)
	return out.String(), err
}

// files are the bytes of everything below a folder.
func files(t *testing.T, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	ok(t, filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		p, err := os.ReadFile(path)
		all[path] = string(p)
		return err
	}))
	return all
}

// TestDumpNeedsNoCache lists, prints, verifies and extracts, with index and catalogue
// spoiled, and leaves every byte of the store as it was.
func TestDumpNeedsNoCache(t *testing.T) {
	m := makeStore(t)
	for _, dir := range []string{"catalogue", "groups/00000000000000a1/index"} {
		names, _ := os.ReadDir(filepath.Join(m.dir, dir))
		for _, n := range names {
			ok(t, os.WriteFile(filepath.Join(m.dir, dir, n.Name()), []byte("spoiled"), 0o600))
		}
	}
	before := files(t, m.dir)
	out, err := dumped(t, "-o", "json", "list", m.dir)
	ok(t, err)
	var groups []groupView
	ok(t, json.Unmarshal([]byte(out), &groups))
	if len(groups) != 1 || groups[0].Name != "shop" || groups[0].State != "ok" || len(groups[0].Checkpoints) != len(m.images) || len(groups[0].Segments) < 2 {
		t.Fatalf("list: %s", out)
	}
	out, err = dumped(t, "-kind", "cut", "print", m.dir, "shop")
	ok(t, err)
	if n := strings.Count(out, "\n"); n != len(m.images) || !strings.Contains(out, `"tag 1"`) {
		t.Errorf("print: %s", out)
	}
	out, err = dumped(t, "verify", m.dir)
	ok(t, err)
	if !strings.Contains(out, "; 0 damaged") {
		t.Errorf("verify: %s", out)
	}
	for number, want := range m.images {
		dir := t.TempDir()
		_, err = dumped(t, "extract", m.dir, "00000000000000a1", strconv.FormatUint(number, 10), dir)
		ok(t, err)
		got, err := os.ReadFile(filepath.Join(dir, "data"))
		ok(t, err)
		if !bytes.Equal(got, want) {
			t.Errorf("checkpoint %d differs", number)
		}
	}
	if !maps.Equal(before, files(t, m.dir)) {
		t.Error("the store was changed")
	}
}

// Of a set of stores the dump shows all that as many of them hold as parity leaves, wherever
// they lie now, and changes none.
func TestDumpOfASet(t *testing.T) {
	root := t.TempDir()
	var dirs []string
	for _, n := range []string{"a", "b", "c"} {
		dir := filepath.Join(root, n)
		ok(t, os.Mkdir(dir, 0o700))
		dirs = append(dirs, dir)
	}
	set, err := stripe.OpenSet(stripe.Options{Stores: dirs, Geometry: stripe.Geometry{K: 2, M: 1}})
	ok(t, err)
	images := fill(t, set, stripe.JournalRoot)
	if _, err := dumped(t, "list", dirs[0]); !errors.Is(err, ioengine.ErrLocked) || !strings.Contains(err.Error(), "stop the daemon") {
		t.Errorf("beside a daemon: %v", err)
	}
	ok(t, set.Close())
	shows := func(args string) {
		t.Helper()
		before := files(t, root)
		out, err := dumped(t, "list", args)
		ok(t, err)
		if strings.Count(out, "tag ") != len(images) {
			t.Errorf("list %s: %s", args, out)
		}
		if out, err = dumped(t, "verify", args); err != nil || !strings.Contains(out, "; 0 damaged") {
			t.Errorf("verify %s: %s, %v", args, out, err)
		}
		for number, want := range images {
			dir := t.TempDir()
			_, err := dumped(t, "extract", args, "shop", strconv.FormatUint(number, 10), dir)
			ok(t, err)
			if got, err := os.ReadFile(filepath.Join(dir, "data")); err != nil || !bytes.Equal(got, want) {
				t.Errorf("%s: checkpoint %d differs (%v)", args, number, err)
			}
		}
		if !maps.Equal(before, files(t, root)) {
			t.Errorf("%s: the stores were changed", args)
		}
	}
	shows(dirs[1])
	ok(t, os.Rename(dirs[1], filepath.Join(root, "moved")))
	shows(dirs[0] + "," + filepath.Join(root, "moved"))
	ok(t, os.RemoveAll(filepath.Join(root, "moved")))
	shows(dirs[2])
	ok(t, os.RemoveAll(dirs[0]))
	if _, err := dumped(t, "list", dirs[2]); err == nil || !strings.Contains(err.Error(), "1 of 3 stores") {
		t.Errorf("with more missing than parity makes up for: %v", err)
	}
	if _, err := dumped(t, "-accept-stale", "list", dirs[2]); !errors.Is(err, stripe.ErrLost) {
		t.Errorf("and when it is asked for all the same: %v", err)
	}
}

// TestVerifyFindsDamage flips a byte in the middle of every file that holds data.
func TestVerifyFindsDamage(t *testing.T) {
	for _, name := range []string{"log/0000000000000001.seg", "replica/*.raw", "manifest"} {
		m := makeStore(t)
		found, err := filepath.Glob(filepath.Join(m.dir, "groups/00000000000000a1", name))
		ok(t, err)
		if len(found) == 0 {
			entries := files(t, m.dir)
			t.Fatalf("no %s; there are %v", name, maps.Keys(entries))
		}
		p, err := os.ReadFile(found[0])
		ok(t, err)
		at := min(20000, len(p)/2)
		for p[at] == 0 {
			at++
		}
		p[at] ^= 1
		ok(t, os.WriteFile(found[0], p, 0o600))
		if out, err := dumped(t, "verify", m.dir); !errors.Is(err, errDamaged) {
			t.Errorf("%s: %v: %s", name, err, out)
		}
	}
}

// TestPinsAndBrokenGroupsAreListed: what a group's manifest pins, and, when it does not
// open, that and what to do.
func TestRemovedGroupsAreListed(t *testing.T) {
	m := makeStore(t)
	s, err := journal.Open(journal.Config{FS: ioengine.OS(), Dir: m.dir, SegmentBytes: 128 << 10})
	ok(t, err)
	r, err := s.RemoveGroup(0xa1, journal.RemoveOptions{Keep: true}, nil)
	ok(t, err)
	kept, err := os.ReadFile(r.Disks[0].File)
	if err != nil || !bytes.Equal(kept, m.images[r.Checkpoint]) {
		t.Errorf("what is kept is not checkpoint %d: %v", r.Checkpoint, err)
	}
	ok(t, s.Close())
	out, err := dumped(t, "list", m.dir)
	ok(t, err)
	if !strings.Contains(out, "group shop  00000000000000a1  lineage 5  removed") || !strings.Contains(out, "kept/00000000000000a1/00000001.raw") || strings.Contains(out, "SEGMENT") {
		t.Errorf("%s", out)
	}
}

func TestPinsAndBrokenGroupsAreListed(t *testing.T) {
	m := makeStore(t)
	s, err := journal.Open(journal.Config{FS: ioengine.OS(), Dir: m.dir, SegmentBytes: 128 << 10})
	ok(t, err)
	c, err := s.Groups()[0].Latest()
	ok(t, err)
	_, err = s.Groups()[0].Pin(c.Number, "audit")
	ok(t, err)
	ok(t, s.Close())
	out, err := dumped(t, "list", m.dir)
	ok(t, err)
	if strings.Count(out, "pinned") != 1 || !strings.Contains(out, `pinned: "audit"`) {
		t.Errorf("%s", out)
	}
	name := filepath.Join(m.dir, "groups/00000000000000a1/manifest")
	p, err := os.ReadFile(name)
	ok(t, err)
	p[20] ^= 1
	ok(t, os.WriteFile(name, p, 0o600))
	out, err = dumped(t, "list", m.dir)
	ok(t, err)
	for _, want := range []string{"does not open", "put back from a copy what is damaged in " + filepath.Dir(name), "as a group with another id", "SEGMENT"} {
		if !strings.Contains(out, want) {
			t.Errorf("%s\nno %q", out, want)
		}
	}
}

func TestFileNames(t *testing.T) {
	var volumes []view.Volume
	for i, name := range []string{"data", "data", "../x", "", ".x", "vol1.raw"} {
		volumes = append(volumes, view.Volume{ID: record.VolumeID(i + 1), Name: name})
	}
	want := []string{"data", "volume 2.raw", "volume 3.raw", "volume 4.raw", "volume 5.raw", "vol1.raw"}
	if got := fileNames(volumes); !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestErrorsSayWhatToDo(t *testing.T) {
	m := makeStore(t)
	f := func(want string, args ...string) {
		t.Helper()
		if _, err := dumped(t, args...); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: %v, want %q", args, err, want)
		}
	}
	f("no command", "look", m.dir)
	f("arguments", "list")
	f("is no journal", "list", t.TempDir())
	f("there are: shop", "print", m.dir, "bar")
	f("list shows", "extract", m.dir, "shop", "7777", t.TempDir())
	f("want one of data, cut, confirm, resize, resync-open, resync-close, folded", "-kind", "bla", "print", m.dir, "shop")
	f("a number", "extract", m.dir, "shop", "x", t.TempDir())
	s, err := journal.Open(journal.Config{FS: ioengine.OS(), Dir: m.dir})
	ok(t, err)
	f("stop the daemon", "list", m.dir)
	ok(t, s.Close())
}
