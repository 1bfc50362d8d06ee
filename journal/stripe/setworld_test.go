package stripe

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"sync"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
)

// world is the stores of a set, each on a disk of its own, and a host's disk for the witness.
type world struct {
	disks map[string]*faultdisk.Disk // by folder
	dirs  []string
}

const witnessName = "/host/witness"

func newWorld(t testing.TB, n int) *world {
	t.Helper()
	w := &world{disks: map[string]*faultdisk.Disk{}}
	for i := range n {
		w.dirs = append(w.dirs, w.disk(t, fmt.Sprintf("/s%d", i)))
	}
	w.disk(t, "/host")
	return w
}

// disk adds an empty store.
func (w *world) disk(t testing.TB, dir string) string {
	t.Helper()
	d := faultdisk.New(512)
	ok(t, d.Mkdir(dir))
	ok(t, d.SyncDir("/"))
	w.disks[dir] = d
	return dir
}

func (w *world) open(g Geometry) (*Set, error) {
	return OpenSet(Options{Stores: w.dirs, Geometry: g, Witness: witnessName, FS: func(dir string) ioengine.FS { return w.disks[dir] }})
}

// each returns the world with every disk changed.
func (w *world) each(change func(dir string, d *faultdisk.Disk) *faultdisk.Disk) *world {
	c := &world{disks: map[string]*faultdisk.Disk{}, dirs: w.dirs}
	for dir, d := range w.disks {
		c.disks[dir] = change(dir, d)
	}
	return c
}

func (w *world) kill() *world {
	return w.each(func(_ string, d *faultdisk.Disk) *faultdisk.Disk { return d.Kill() })
}

func (w *world) crash(seed int, keep faultdisk.Keep) *world {
	return w.each(func(dir string, d *faultdisk.Disk) *faultdisk.Disk {
		return d.Crash(seeded(seed+len(dir)+int(dir[len(dir)-1])), keep)
	})
}

// lose takes a store away: its folder is empty from the next opening on.
func (w *world) lose(t testing.TB, dirs ...string) *world {
	t.Helper()
	k := w.kill()
	for _, dir := range dirs {
		k.disk(t, dir)
	}
	return k
}

// dead has every operation of a store fail from now on.
func dead(d *faultdisk.Disk) {
	d.Inject(faultdisk.Fault{Ops: faultdisk.OpAny, Ever: true, Err: syscall.EIO})
}

// promises are what a file may hold: the last of them, once it is durable.
type promises struct {
	mu  sync.Mutex
	may map[string][][]byte // nil: there is none
}

func newPromises() *promises { return &promises{may: map[string][][]byte{}} }

func (p *promises) clone() *promises {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := newPromises()
	for n, m := range p.may {
		c.may[n] = append([][]byte(nil), m...)
	}
	return c
}

func (p *promises) begin(name string, content []byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.may[name]) == 0 {
		p.may[name] = [][]byte{nil}
	}
	p.may[name] = append(p.may[name], content)
}

func (p *promises) kept(names ...string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, n := range names {
		p.may[n] = p.may[n][len(p.may[n])-1:]
	}
}

// check reads every file, twice through one set.
func (p *promises) check(s *Set) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	for name, may := range p.may {
		got, err := get(s, name)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("%s: %w", name, err)
		}
		found := len(may) == 0
		for _, m := range may {
			found = found || (m == nil) == (err != nil) && bytes.Equal(got, m)
		}
		if !found {
			return fmt.Errorf("%s: %d bytes (%v) are none of the %d contents that it may have", name, len(got), err, len(may))
		}
	}
	return nil
}

const sealedBytes = 5*BlockBytes + 700

// story uses a set in every way that a journal does, and promises what it must.
func story(s *Set, p *promises) error {
	if err := errors.Join(s.Mkdir("/j"), s.Mkdir("/j/g"), s.SyncDir("/")); err != nil {
		return err
	}
	make := func(name string, content []byte) (ioengine.File, error) {
		f, err := s.Open(name, ioengine.Create|ioengine.Exclusive|ioengine.Direct)
		if err != nil {
			return nil, err
		}
		_, err = f.WriteAt(content, 0)
		return f, errors.Join(err, f.Sync())
	}
	put := func(name string, content []byte) error {
		f, err := make(name, content)
		if err != nil {
			return err
		}
		return f.Close()
	}
	// a small file, replaced by rename
	for i := range 2 {
		p.begin("/j/current", noise(10+i, 1024))
		if err := put("/j/current.new", noise(10+i, 1024)); err != nil {
			return err
		}
		if err := errors.Join(s.Rename("/j/current.new", "/j/current"), s.SyncDir("/j")); err != nil {
			return err
		}
		p.kept("/j/current")
	}
	// a segment: written in rounds, then sealed
	whole := noise(20, buf4(sealedBytes))
	p.begin("/j/g/1.seg", whole[:4096])
	p.begin("/j/g/1.seg", []byte{})
	p.begin("/j/g/1.seg", whole[:4096])
	seg, err := make("/j/g/1.seg", whole[:4096])
	if err != nil {
		return err
	}
	if err := s.SyncDir("/j/g"); err != nil {
		return err
	}
	p.kept("/j/g/1.seg")
	raw, err := s.Open("/j/raw", ioengine.Create)
	if err != nil {
		return err
	}
	p.mu.Lock()
	p.may["/j/g/1.seg"] = nil // rounds that are under way: what of them is there is looked at by the next part
	p.mu.Unlock()
	done := newDone()
	seg.WriteStart([][]byte{whole[4096:8192]}, 4096, done.take)
	if err := errors.Join(seg.WriteParts([][]byte{whole[8192:12288], whole[12288:]}, 8192), done.wait(1)); err != nil {
		return err
	}
	if err := raw.Truncate(2 * BlockBytes); err != nil {
		return err
	}
	if err := s.SyncFiles([]ioengine.File{seg, raw}); err != nil {
		return err
	}
	p.begin("/j/g/1.seg", whole)
	p.kept("/j/g/1.seg")
	if err := errors.Join(seg.Close(), s.SyncDir("/j")); err != nil {
		return err
	}
	p.begin("/j/raw", noiseless(2*BlockBytes))
	p.kept("/j/raw")
	if err := s.Seal("/j/g/1.seg", nil); err != nil {
		return err
	}
	// a file that is removed, one that changes in place
	if err := put("/j/old", noise(30, 512)); err != nil {
		return err
	}
	if err := s.SyncDir("/j"); err != nil {
		return err
	}
	p.begin("/j/old", noise(30, 512))
	p.kept("/j/old")
	p.begin("/j/old", nil)
	if err := errors.Join(s.Remove("/j/old"), s.SyncDir("/j")); err != nil {
		return err
	}
	p.kept("/j/old")
	changed := noiseless(2 * BlockBytes)
	copy(changed[4096:], noise(40, 512))
	p.begin("/j/raw", changed)
	if _, err := raw.WriteAt(noise(40, 512), 4096); err != nil {
		return err
	}
	if err := raw.Sync(); err != nil {
		return err
	}
	p.kept("/j/raw")
	return raw.Close()
}

func noiseless(n int) []byte { return make([]byte, n) }

func buf4(n int) int { return (n + 4095) &^ 4095 }

// done counts asynchronous writes.
type done struct{ ch chan error }

func newDone() *done           { return &done{make(chan error, 16)} }
func (d *done) take(err error) { d.ch <- err }
func (d *done) wait(n int) (err error) {
	for range n {
		err = errors.Join(err, <-d.ch)
	}
	return err
}

func mend(s *Set) error { return s.Mend(context.Background(), nil) }

// objectFile returns the file of the named one in a store; "": it has none.
func objectFile(s *Set, name string, dir string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.names.objects[s.names.files[name]]
	for _, id := range o.places {
		if id != 0 && s.stores[id].dir == dir {
			return path.Join(dir, objectsName, o.fileName())
		}
	}
	return ""
}
