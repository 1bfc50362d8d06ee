package stripe

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
)

// shapes are the sets that every test of losses is run on.
var shapes = []struct {
	g      Geometry
	stores int
}{
	{Geometry{1, 1}, 2},
	{Geometry{2, 1}, 3},
	{Geometry{2, 2}, 4},
	{Geometry{1, 1}, 3},
}

func eachShape(t *testing.T, f func(t *testing.T, g Geometry, n int)) {
	for _, sh := range shapes {
		t.Run(fmt.Sprintf("%s/%d", sh.g, sh.stores), func(t *testing.T) { f(t, sh.g, sh.stores) })
	}
}

func TestStory(t *testing.T) {
	eachShape(t, func(t *testing.T, g Geometry, n int) {
		w, p := newWorld(t, n), newPromises()
		s, err := w.open(g)
		ok(t, err)
		ok(t, story(s, p))
		ok(t, p.check(s))
		if st := s.State(); st.Err != nil || st.Spare != g.M || st.Thin != 0 {
			t.Errorf("state %+v", st)
		}
		ok(t, s.Close())
		s, err = w.open(g)
		ok(t, err)
		ok(t, p.check(s))
		ok(t, s.Close())
	})
}

// Any m stores are lost between two lives: everything is there, and writing goes on. One more
// and the set refuses, and says which are missing.
func TestLoseStoresBetweenLives(t *testing.T) {
	eachShape(t, func(t *testing.T, g Geometry, n int) {
		w, p := newWorld(t, n), newPromises()
		s, err := w.open(g)
		ok(t, err)
		ok(t, story(s, p))
		ok(t, s.Close())
		for mask := range 1 << n {
			var gone []string
			for i, dir := range w.dirs {
				if mask>>i&1 != 0 {
					gone = append(gone, dir)
				}
			}
			l := w.lose(t, gone...)
			s, err := l.open(g)
			if len(gone) > g.M {
				if !errors.Is(err, ErrLost) || len(gone) < n && !strings.Contains(err.Error(), gone[0]) {
					t.Fatalf("without %v: %v", gone, err)
				}
				continue
			}
			ok(t, err)
			if err := p.check(s); err != nil {
				t.Fatalf("without %v: %v", gone, err)
			}
			put(t, s, "/j/more", noise(1, 512))
			if st := s.State(); (st.Err != nil) != (len(gone) > 0) || st.Spare != g.M-len(gone) {
				t.Fatalf("without %v: state %+v", gone, st)
			}
			ok(t, s.Close())
		}
	})
}

// A crash at every operation: what was promised is there, whatever of the rest is.
func TestSetCrashAtEveryOperation(t *testing.T) {
	eachShape(t, func(t *testing.T, g Geometry, n int) {
		type point struct {
			w *world
			p *promises
		}
		keeps := []faultdisk.Keep{faultdisk.KeepNone, faultdisk.KeepSome, faultdisk.KeepTorn}
		w, p := newWorld(t, n), newPromises()
		s, err := w.open(g)
		ok(t, err)
		var mu sync.Mutex
		var points []point
		count := 0
		for dir, d := range w.disks {
			d.OnOp(func(faultdisk.Op, string) {
				mu.Lock()
				defer mu.Unlock()
				count++
				pp := p.clone()
				points = append(points, point{w.crash(count, keeps[count%3]), pp})
				_ = dir
			})
		}
		ok(t, story(s, p))
		for _, d := range w.disks {
			d.OnOp(nil)
		}
		if len(points) < 50 {
			t.Fatalf("%d operations", len(points))
		}
		step := 1
		if testing.Short() {
			step = 7
		}
		for i := 0; i < len(points); i += step {
			pt := points[i]
			s, err := pt.w.open(g)
			if err != nil {
				t.Fatalf("after operation %d: %v", i, err)
			}
			if err := pt.p.check(s); err != nil {
				t.Fatalf("after operation %d: %v", i, err)
			}
			if st := s.State(); st.Err != nil {
				t.Fatalf("after operation %d: %+v", i, st)
			}
			ok(t, s.Close())
			// and what was there then is there without any one store
			seen := newPromises()
			for name := range pt.p.may {
				got, err := get(mustOpen(t, pt.w.kill(), g), name)
				if err != nil {
					got = nil
				}
				seen.may[name] = [][]byte{got}
			}
			dir := w.dirs[i%n]
			l := mustOpen(t, pt.w.lose(t, dir), g)
			if err := pt.p.check(l); err != nil {
				t.Fatalf("after operation %d, without %s: %v", i, dir, err)
			}
		}
	})
}

func mustOpen(t testing.TB, w *world, g Geometry) *Set {
	t.Helper()
	s, err := w.open(g)
	ok(t, err)
	return s
}

// Each store fails for good at every one of its operations: the story goes on and is whole,
// also in the next life, without the store; and after it was replaced and the set mended, any
// other may go.
func TestStoreDiesAtEveryOperation(t *testing.T) {
	eachShape(t, func(t *testing.T, g Geometry, n int) {
		dry := newWorld(t, n)
		ok(t, story(mustOpen(t, dry, g), newPromises()))
		step := 1
		if testing.Short() {
			step = 13
		}
		for i, dir := range dry.dirs {
			for at := 1 + i%step; at <= dry.disks[dir].Ops(); at += step {
				w, p := newWorld(t, n), newPromises()
				victim := w.disks[dir]
				s := mustOpen(t, w, g)
				var mu sync.Mutex
				count := 0
				victim.OnOp(func(faultdisk.Op, string) {
					mu.Lock()
					defer mu.Unlock()
					if count++; count == at {
						dead(victim)
					}
				})
				if err := story(s, p); err != nil {
					t.Fatalf("%s dies at %d: %v", dir, at, err)
				}
				if err := p.check(s); err != nil {
					t.Fatalf("%s died at %d: %v", dir, at, err)
				}
				ok(t, s.Close())
				after := w.crash(at, faultdisk.KeepNone)
				dead(after.disks[dir])
				s = mustOpen(t, after, g)
				if err := p.check(s); err != nil {
					t.Fatalf("%s died at %d, next life: %v", dir, at, err)
				}
				if at%(3*step) != 1 {
					continue
				}
				ok(t, s.Add(after.disk(t, "/spare")))
				after.dirs = append(slices.Clone(after.dirs), "/spare")
				ok(t, mend(s))
				if st := s.State(); st.Err != nil || st.Spare != g.M {
					t.Fatalf("%s died at %d and was replaced: %+v", dir, at, st)
				}
				ok(t, s.Close())
				for _, other := range after.dirs {
					if other == dir {
						continue
					}
					l := after.lose(t, other)
					dead(l.disks[dir])
					if err := p.check(mustOpen(t, l, g)); err != nil {
						t.Fatalf("%s replaced, then %s lost: %v", dir, other, err)
					}
				}
			}
		}
	})
}

// One error at every operation of one store: the store is out or the error passes by, and
// what was promised is there.
func TestErrorAtEveryOperation(t *testing.T) {
	g, n := Geometry{2, 1}, 3
	dry := newWorld(t, n)
	ok(t, story(mustOpen(t, dry, g), newPromises()))
	for _, fault := range []faultdisk.Fault{{Err: syscall.EIO}, {Err: syscall.ENOSPC, Short: true}, {Err: syscall.EROFS, Ever: true}, {Err: syscall.ENOSPC, Ever: true}} {
		step := 2
		if testing.Short() {
			step = 5
		}
		for at := 1; at <= dry.disks["/s1"].Ops(); at += step {
			w, p := newWorld(t, n), newPromises()
			fault.At = at
			w.disks["/s1"].Inject(fault)
			s, err := w.open(g)
			if err != nil { // it may fail while the set is made
				continue
			}
			if err := story(s, p); err != nil {
				t.Fatalf("%v at %d: %v", fault.Err, at, err)
			}
			ok(t, p.check(s))
			s.Close()
			after := w.crash(at, faultdisk.KeepSome)
			if err := p.check(mustOpen(t, after, g)); err != nil {
				t.Fatalf("%v at %d, next life: %v", fault.Err, at, err)
			}
		}
	}
}

// A store that missed something never comes back as if it had not.
func TestStaleStoreIsNotRead(t *testing.T) {
	g := Geometry{1, 1}
	w, p := newWorld(t, 2), newPromises()
	s := mustOpen(t, w, g)
	put(t, s, "/a", noise(1, 512))
	w.disks["/s0"].Inject(faultdisk.Fault{Err: syscall.EIO, Ever: true, Only: func(n string) bool { return strings.Contains(n, objectsName+"/") }})
	f, err := s.Open("/a", 0)
	ok(t, err)
	_, err = f.WriteAt(noise(2, 512), 0)
	ok(t, err)
	ok(t, f.Sync())
	ok(t, f.Close())
	p.begin("/a", noise(2, 512))
	p.kept("/a")
	ok(t, s.Close())
	w.disks["/s0"].Heal()
	ok(t, p.check(mustOpen(t, w.kill(), g)))
	// the one that went on is gone: only the witness knows that there was one
	if s, err := w.lose(t, "/s1").open(g); !errors.Is(err, ErrLost) {
		t.Errorf("the stale store opens: %v, %v", s, err)
	}
	blind := w.lose(t, "/s1", "/host")
	if _, err := blind.open(g); !errors.Is(err, ErrLost) {
		t.Errorf("the stale store opens without a witness: %v", err)
	}
	if _, err := OpenSet(Options{Stores: w.dirs, Geometry: g, AcceptStale: true, FS: func(d string) ioengine.FS { return blind.kill().disks[d] }}); err != nil {
		t.Errorf("and not when an operator says so: %v", err)
	}
}

// What an operator accepted as stale is the newest from then on, also when the store that had
// gone further comes back, and whether a witness remembers that one or not.
func TestAcceptedIsTheNewest(t *testing.T) {
	g := Geometry{1, 1}
	for _, host := range []string{"/host", "/nothing"} { // the witness is lost, or is not
		w := newWorld(t, 2)
		s := mustOpen(t, w, g)
		put(t, s, "/a", noise(1, 512))
		ok(t, s.Close())
		further := w.lose(t, "/s0")
		for range 5 {
			s := mustOpen(t, further, g)
			put(t, s, "/further", noise(2, 512))
			ok(t, s.Close())
			further = further.kill()
		}
		left := w.lose(t, "/s1", host)
		if d := further.disks["/host"]; host != "/host" {
			left.disks["/host"] = d
		}
		if s, err := left.open(g); !errors.Is(err, ErrLost) {
			t.Fatalf("the stale store opens: %v, %v", s, err)
		}
		s, err := OpenSet(Options{Stores: w.dirs, Geometry: g, Witness: witnessName, AcceptStale: true, FS: func(d string) ioengine.FS { return left.disks[d] }})
		ok(t, err)
		put(t, s, "/mine", noise(3, 512))
		ok(t, s.Close())
		left = left.kill()
		s = mustOpen(t, left, g) // no word is needed twice, with a witness that is the set's
		ok(t, s.Close())
		left = left.kill()
		left.disks["/s1"] = further.disks["/s1"]
		s = mustOpen(t, left, g)
		if p, err := get(s, "/mine"); err != nil || !bytes.Equal(p, noise(3, 512)) {
			t.Errorf("what was written after the operator's word: %v", err)
		}
		if _, err := get(s, "/further"); err == nil {
			t.Error("what was given up is there")
		}
		ok(t, s.Close())
	}
}

// Without a geometry a set opens as it is, and none is made.
func TestOpenedAsItIs(t *testing.T) {
	w, p := newWorld(t, 3), newPromises()
	if s, err := w.open(Geometry{}); !errors.Is(err, ErrStore) {
		t.Fatalf("a set was made: %v, %v", s, err)
	}
	s := mustOpen(t, w, Geometry{2, 1})
	ok(t, story(s, p))
	ok(t, s.Close())
	s = mustOpen(t, w.kill(), Geometry{})
	if g := s.State().Geometry; g != (Geometry{2, 1}) {
		t.Errorf("its geometry is %s now", g)
	}
	ok(t, p.check(s))
	ok(t, s.Close())
}

// More than m: refused, named, and what is left goes on being read.
func TestMoreThanM(t *testing.T) {
	g := Geometry{2, 1}
	w, p := newWorld(t, 3), newPromises()
	s := mustOpen(t, w, g)
	ok(t, story(s, p))
	dead(w.disks["/s0"])
	put(t, s, "/j/after", noise(1, 512))
	dead(w.disks["/s2"])
	f, err := s.Open("/j/late", ioengine.Create)
	if err == nil {
		if _, err = f.WriteAt(noise(1, 512), 0); err == nil {
			err = f.Sync()
		}
		err = errors.Join(err, s.SyncDir("/j"))
	}
	if !errors.Is(err, ErrLost) && !errors.Is(err, syscall.EIO) {
		t.Errorf("with two of three gone: %v", err)
	}
	if _, err := get(s, "/j/g/1.seg"); !errors.Is(err, ErrLost) {
		t.Errorf("a stripe with two of three gone: %v", err)
	}
}

func TestShardsAreVerifiedAndScrubbed(t *testing.T) {
	g := Geometry{2, 2}
	w, p := newWorld(t, 4), newPromises()
	s := mustOpen(t, w, g)
	ok(t, story(s, p))
	var hurt []string
	for _, dir := range w.dirs {
		if name := objectFile(s, "/j/g/1.seg", dir); name != "" && len(hurt) < 2 {
			ok(t, w.disks[dir].Rot(name, 4096+100, 1))
			if len(hurt) == 1 {
				ok(t, w.disks[dir].Rot(name, 4, 1)) // its table
			}
			hurt = append(hurt, dir)
		}
	}
	ok(t, p.check(s))
	ok(t, s.Scrub(t.Context(), nil))
	ok(t, p.check(s))
	ok(t, s.Close())
	for _, dir := range w.dirs { // all four are whole again
		if !slices.Contains(hurt, dir) {
			w = w.lose(t, dir)
		}
	}
	ok(t, p.check(mustOpen(t, w, g)))
}

// Three shards of 2+2 are damaged in one row: an error, never bytes.
func TestTooManyShardsDamaged(t *testing.T) {
	g := Geometry{2, 2}
	w, p := newWorld(t, 4), newPromises()
	s := mustOpen(t, w, g)
	ok(t, story(s, p))
	for _, dir := range w.dirs[:3] {
		ok(t, w.disks[dir].Rot(objectFile(s, "/j/g/1.seg", dir), 4096+100, 1))
	}
	if _, err := get(s, "/j/g/1.seg"); !errors.Is(err, ErrLost) {
		t.Errorf("read: %v", err)
	}
}

func TestMirrorsWithLatentSectors(t *testing.T) {
	g := Geometry{1, 1}
	w := newWorld(t, 2)
	s := mustOpen(t, w, g)
	put(t, s, "/a", noise(1, 8192))
	name := objectFile(s, "/a", "/s0")
	w.disks["/s0"].Inject(faultdisk.Fault{Ops: faultdisk.OpRead, Only: func(n string) bool { return n == name }, Err: syscall.EIO, Ever: true})
	got, err := get(s, "/a")
	if err != nil || !bytes.Equal(got, noise(1, 8192)) {
		t.Fatalf("read: %v", err)
	}
	ok(t, s.Scrub(t.Context(), nil)) // makes the copy anew
	w.disks["/s0"].Heal()
	ok(t, s.Close())
	got, err = get(mustOpen(t, w.lose(t, "/s1"), g), "/a")
	if err != nil || !bytes.Equal(got, noise(1, 8192)) {
		t.Fatalf("the copy made anew: %v", err)
	}
}

func TestRetireAndAdd(t *testing.T) {
	for _, g := range []Geometry{{1, 1}, {2, 1}} {
		w, p := newWorld(t, g.width()), newPromises()
		s := mustOpen(t, w, g)
		ok(t, story(s, p))
		if err := s.Retire("/s0"); err == nil {
			t.Fatalf("%s: retired with no other store in its place", g)
		}
		ok(t, s.Add(w.disk(t, "/new")))
		if err := s.Add("/new"); !errors.Is(err, fs.ErrExist) {
			t.Errorf("added twice: %v", err)
		}
		ok(t, s.Retire("/s0"))
		ok(t, mend(s))
		ok(t, p.check(s))
		if st := s.State(); st.Err != nil || len(st.Stores) != g.width() || st.Spare != g.M {
			t.Fatalf("%s: %+v", g, st)
		}
		ok(t, s.Close())
		w = w.lose(t, "/s0")
		s = mustOpen(t, w, g) // found without its new folder being configured
		ok(t, p.check(s))
		ok(t, s.Close())
		w.dirs = append(w.dirs, "/new")
		for _, dir := range []string{"/s1", "/new"} {
			ok(t, p.check(mustOpen(t, w.lose(t, dir), g)))
		}
	}
}

// Writes go on while a file is copied to another store.
func TestFillBesideWriters(t *testing.T) {
	g := Geometry{1, 1}
	w := newWorld(t, 2)
	s := mustOpen(t, w, g)
	put(t, s, "/a", noise(1, 3*fillChunk))
	want := noise(1, 3*fillChunk)
	f, err := s.Open("/a", 0)
	ok(t, err)
	ok(t, s.Add(w.disk(t, "/new")))
	ok(t, s.Retire("/s0"))
	chunk := 0
	ok(t, s.Mend(t.Context(), func(int) error {
		chunk++
		for _, at := range []int{0, fillChunk, 3*fillChunk - 512} {
			copy(want[at:], noise(chunk, 512))
			if _, err := f.WriteAt(noise(chunk, 512), int64(at)); err != nil {
				return err
			}
		}
		p, d := noise(100+chunk, 1024), newDone() // and one in parts
		copy(want[1024:], p)
		f.WriteStart([][]byte{p[:512], p[512:]}, 1024, d.take)
		copy(want[2048:], noise(200+chunk, 1024))
		p = noise(200+chunk, 1024)
		return errors.Join(f.WriteParts([][]byte{p[:512], p[512:]}, 2048), d.wait(1))
	}))
	if chunk < 3 {
		t.Fatalf("%d chunks", chunk)
	}
	copy(want[512:], noise(99, 512))
	_, err = f.WriteAt(noise(99, 512), 512)
	ok(t, err)
	ok(t, f.Sync())
	ok(t, f.Close())
	ok(t, s.Close())
	w.dirs = append(w.dirs, "/new")
	for _, dir := range []string{"/s1", "/new"} {
		got, err := get(mustOpen(t, w.lose(t, "/s0", dir), g), "/a")
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("without %s: %v", dir, err)
		}
	}
}

// A crash and a dying store at every operation of mending.
func TestMendCrashAtEveryOperation(t *testing.T) {
	for _, g := range []Geometry{{1, 1}, {2, 1}} {
		base, p := newWorld(t, g.width()), newPromises()
		s := mustOpen(t, base, g)
		ok(t, story(s, p))
		ok(t, s.Close())
		base.disk(t, "/new")
		run := func(w *world) error {
			s, err := w.open(g)
			if err != nil {
				return err
			}
			return errors.Join(s.Add("/new"), s.Retire("/s0"), mend(s), s.Close())
		}
		dry := base.kill()
		var crashed []*world
		var mu sync.Mutex
		for _, d := range dry.disks {
			d.OnOp(func(faultdisk.Op, string) {
				mu.Lock()
				defer mu.Unlock()
				crashed = append(crashed, dry.crash(len(crashed), []faultdisk.Keep{faultdisk.KeepNone, faultdisk.KeepSome, faultdisk.KeepTorn}[len(crashed)%3]))
			})
		}
		ok(t, run(dry))
		for i, w := range crashed {
			if testing.Short() && i%4 != 0 {
				continue
			}
			w.dirs = append(slices.Clone(w.dirs), "/new")
			l := w.kill()
			s := mustOpen(t, l, g)
			if err := p.check(s); err != nil {
				t.Fatalf("%s: crash at %d: %v", g, i, err)
			}
			ok(t, mend(s))
			ok(t, p.check(s))
			ok(t, s.Close())
			if err := p.check(mustOpen(t, w.lose(t, "/s1"), g)); err != nil {
				t.Fatalf("%s: crash at %d, then /s1 lost: %v", g, i, err)
			}
		}
		for _, dir := range append(slices.Clone(base.dirs), "/new") {
			step := 3
			if testing.Short() {
				step = 7
			}
			for at := 1; at <= 40; at += step {
				w := base.kill()
				w.disks[dir].Inject(faultdisk.Fault{Ops: faultdisk.OpMutating, At: at, Ever: true, Err: syscall.EIO})
				run(w) // it may fail
				k := w.kill()
				if err := p.check(mustOpen(t, k, g)); err != nil {
					t.Fatalf("%s: %s dies at %d: %v", g, dir, at, err)
				}
			}
		}
	}
}

// Copies that a crash left different are made alike before the file is synced again.
func TestCopiesAreMadeAlike(t *testing.T) {
	g := Geometry{1, 1}
	w := newWorld(t, 2)
	s := mustOpen(t, w, g)
	put(t, s, "/a", noise(1, 8192))
	f, err := s.Open("/a", 0)
	ok(t, err)
	_, err = f.WriteAt(noise(2, 512), 4096)
	ok(t, err)
	// one disk had written it out before the power went, the other had not
	torn := w.each(func(dir string, d *faultdisk.Disk) *faultdisk.Disk {
		if dir == "/s1" {
			return d.Crash(seeded(1), faultdisk.KeepNone)
		}
		return d.Kill()
	})
	s = mustOpen(t, torn, g)
	before, err := get(s, "/a")
	ok(t, err)
	f, err = s.Open("/a", 0)
	ok(t, err)
	_, err = f.WriteAt(noise(3, 512), 0)
	ok(t, err)
	ok(t, f.Sync())
	copy(before, noise(3, 512))
	for _, dir := range w.dirs {
		got, err := get(mustOpen(t, torn.lose(t, dir), g), "/a")
		if err != nil || !bytes.Equal(got, before) {
			t.Errorf("without %s: %v, at %d", dir, err, firstDifference(got, before))
		}
	}
}

// A copy that cannot be read when the copies are made alike may be the one that differs: it
// is not left as it is.
func TestUnreadCopyIsMadeAlike(t *testing.T) {
	g := Geometry{1, 1}
	for at, unread := range []string{"/s0", "/s1"} {
		w := newWorld(t, 2)
		s := mustOpen(t, w, g)
		put(t, s, "/a", noise(1, 8192))
		f, err := s.Open("/a", 0)
		ok(t, err)
		_, err = f.WriteAt(noise(2, 512), 4096)
		ok(t, err)
		torn := w.each(func(dir string, d *faultdisk.Disk) *faultdisk.Disk {
			if dir == "/s1" {
				return d.Crash(seeded(1), faultdisk.KeepNone)
			}
			return d.Kill()
		})
		torn.disks[unread].Inject(faultdisk.Fault{Ops: faultdisk.OpRead, Err: syscall.EIO, At: at + 1, // the size is asked of /s1
			Only: func(n string) bool { return strings.Contains(n, objectsName+"/") }})
		s = mustOpen(t, torn, g)
		f, err = s.Open("/a", 0)
		ok(t, err)
		ok(t, f.Sync())
		served, err := get(s, "/a")
		ok(t, err)
		for _, dir := range w.dirs {
			got, err := get(mustOpen(t, torn.lose(t, dir), g), "/a")
			if err != nil || !bytes.Equal(got, served) {
				t.Errorf("%s was not read once; without %s: %v, at %d", unread, dir, err, firstDifference(got, served))
			}
		}
	}
}

func firstDifference(a, b []byte) int {
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

func TestProbeFindsARemovedStore(t *testing.T) {
	g := Geometry{1, 1}
	w := newWorld(t, 2)
	s := mustOpen(t, w, g)
	ok(t, w.disks["/s0"].Remove("/s0/set.names"))
	ok(t, s.Probe())
	if st := s.State(); st.Spare != 0 || st.Stores[0].State != "out" {
		t.Errorf("%+v", st)
	}
}

// TestStoreThatIsBackIsToldOnce: a folder that was out and is added again is one store,
// rebuilding until what it held is there again.
func TestStoreThatIsBackIsToldOnce(t *testing.T) {
	g := Geometry{1, 1}
	w := newWorld(t, 3)
	s := mustOpen(t, w, g)
	p := newPromises()
	ok(t, story(s, p))
	ok(t, w.disks["/s0"].Remove("/s0/set.names"))
	ok(t, s.Probe())
	ok(t, s.Add("/s0"))
	st := s.State()
	states := map[string]string{}
	for _, one := range st.Stores {
		states[one.Dir] += one.State
	}
	if len(st.Stores) != 3 || states["/s0"] != "rebuilding" || states["/s1"] != "in" || st.Err == nil ||
		st.Err.Error() != "degraded: /s0 being rebuilt, 0 more may be lost until that is done" {
		t.Errorf("added again: %+v", st)
	}
	ok(t, s.Mend(t.Context(), nil))
	if st = s.State(); st.Err != nil || len(st.Stores) != 3 || st.Stores[2].State != "in" || st.Spare != 1 {
		t.Errorf("mended: %+v", st)
	}
	ok(t, s.Close())
}

func TestStoresAreTakenAlone(t *testing.T) {
	w := newWorld(t, 2)
	s := mustOpen(t, w, Geometry{1, 1})
	if _, err := w.open(Geometry{1, 1}); !errors.Is(err, ioengine.ErrLocked) {
		t.Errorf("opened twice: %v", err)
	}
	ok(t, s.Close())
	put(t, w.disks["/s0"], "/s0/strange", []byte("x"))
	ok(t, w.disks["/s0"].Remove("/s0/set.names"))
	w.disk(t, "/s1")
	if _, err := w.open(Geometry{1, 1}); !errors.Is(err, ErrStore) {
		t.Errorf("made over other files: %v", err)
	}
}

// A file that is open for writing is sealed when it is closed, and one that is sealed while
// it is opened for writing again keeps its copies.
func TestSealWaitsForWriters(t *testing.T) {
	g := Geometry{2, 1}
	w := newWorld(t, 3)
	s := mustOpen(t, w, g)
	put(t, s, "/a", noise(1, sealedBytes))
	f, err := s.Open("/a", 0)
	ok(t, err)
	if err := s.Seal("/a", nil); !errors.Is(err, ErrBusy) {
		t.Fatalf("sealed under a writer: %v", err)
	}
	ok(t, f.Close())
	ok(t, mend(s))
	if s.Copies("/a") != 1 || s.Reusable("/a") {
		t.Errorf("not sealed after its writer closed: %d copies", s.Copies("/a"))
	}
	if _, err := s.Open("/a", 0); !errors.Is(err, ErrSealed) {
		t.Errorf("a sealed file opens for writing: %v", err)
	}
	put(t, s, "/b", noise(2, sealedBytes))
	err = s.Seal("/b", func(int) error {
		f, err := s.Open("/b", 0)
		return errors.Join(err, f.Close())
	})
	if !errors.Is(err, ErrBusy) || s.Copies("/b") != 2 || !s.Reusable("/b") {
		t.Errorf("sealed while it was opened for writing: %v", err)
	}
	got, err := get(s, "/b")
	if err != nil || !bytes.Equal(got, noise(2, sealedBytes)) {
		t.Errorf("read: %v", err)
	}
}

// Of copies that differ, Repair finds the one that is not served.
func TestRepairFromAnotherCopy(t *testing.T) {
	g := Geometry{1, 1}
	w := newWorld(t, 2)
	s := mustOpen(t, w, g)
	want := noise(1, fillChunk+8192)
	put(t, s, "/a", want)
	served := s.stores[s.names.objects[s.names.files["/a"]].places[0]].dir
	ok(t, w.disks[served].Rot(objectFile(s, "/a", served), fillChunk+100, 1))
	var b bytes.Buffer
	ok(t, s.Repair("/a", []Part{{fillChunk, fillChunk + 4096}}, &b))
	if !bytes.Equal(b.Bytes(), want) {
		t.Error("repaired to other bytes")
	}
	if err := s.Repair("/a", []Part{{0, 4096}}, &b); !errors.Is(err, ErrLost) {
		t.Errorf("where no copy differs: %v", err)
	}
}

// A store whose sync fails is out before the sync is answered: what it has is not what it shows.
func TestFailedSyncTakesAStoreOut(t *testing.T) {
	for _, dir := range []string{"/s0", "/s1"} {
		g := Geometry{1, 1}
		w, p := newWorld(t, 2), newPromises()
		s := mustOpen(t, w, g)
		put(t, s, "/a", noise(1, 512))
		f, err := s.Open("/a", 0)
		ok(t, err)
		_, err = f.WriteAt(noise(2, 512), 0)
		ok(t, err)
		w.disks[dir].Inject(faultdisk.Fault{Ops: faultdisk.OpSync, Err: syscall.EIO, Only: func(n string) bool { return strings.Contains(n, objectsName+"/") }})
		ok(t, f.Sync())
		p.begin("/a", noise(2, 512))
		p.kept("/a")
		if st := s.State(); st.Spare != 0 {
			t.Errorf("%s failed a sync: %+v", dir, st)
		}
		if err := p.check(mustOpen(t, w.crash(1, faultdisk.KeepNone), g)); err != nil {
			t.Errorf("%s failed a sync: %v", dir, err)
		}
	}
}

// A crash at every operation of an opening that follows a crash.
func TestCrashWhileOpening(t *testing.T) {
	eachShape(t, func(t *testing.T, g Geometry, n int) {
		w, p := newWorld(t, n), newPromises()
		s := mustOpen(t, w, g)
		ok(t, story(s, p))
		f, err := s.Open("/j/raw", 0)
		ok(t, err)
		_, err = f.WriteAt(noise(7, 512), 0) // unsynced
		ok(t, err)
		delete(p.may, "/j/raw")
		first := w.crash(5, faultdisk.KeepSome)
		var mu sync.Mutex
		var again []*world
		for _, d := range first.disks {
			d.OnOp(func(faultdisk.Op, string) {
				mu.Lock()
				defer mu.Unlock()
				again = append(again, first.crash(len(again), []faultdisk.Keep{faultdisk.KeepNone, faultdisk.KeepSome, faultdisk.KeepTorn}[len(again)%3]))
			})
		}
		s = mustOpen(t, first, g)
		f, err = s.Open("/j/raw", 0) // its copies are made alike
		ok(t, err)
		ok(t, f.Close())
		for i, c := range again {
			for _, dir := range append([]string{""}, c.dirs...) {
				l := c.kill()
				if dir != "" {
					l = c.lose(t, dir)
				}
				s, err := l.open(g)
				if err != nil {
					t.Fatalf("crash at %d, without %q: %v", i, dir, err)
				}
				if err := p.check(s); err != nil {
					t.Fatalf("crash at %d, without %q: %v", i, dir, err)
				}
			}
		}
		if len(again) < 10 {
			t.Fatalf("%d operations", len(again))
		}
	})
}
