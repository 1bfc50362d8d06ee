package load

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
)

// TestJudge has a volume a line: ops as "kind volume sector+sectors issued-done", what
// each sector holds, and the verdict.
func TestJudge(t *testing.T) {
	w := func(volume int, sector, sectors int64, issued, done uint64) Op {
		return Op{Kind: OpWrite, Volume: volume, Sector: sector, Sectors: sectors, Issued: issued, Done: done}
	}
	as := func(k OpKind, o Op) Op { o.Kind = k; return o }
	f := func(name string, ops []Op, seen [][]uint64, whole bool, want string) {
		t.Helper()
		for i := range ops {
			ops[i].Number = uint64(i + 1)
		}
		_, err := judge(ops, seen, whole)
		if (err == nil) != (want == "") || (err != nil && !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", name, err, want)
		}
	}
	chain := []Op{w(0, 0, 2, 1, 2), w(1, 0, 2, 3, 4), w(0, 1, 2, 5, 6)}
	f("nothing is a prefix", chain, [][]uint64{{0, 0, 0}, {0, 0, 0}}, false, "")
	f("the first alone", chain, [][]uint64{{1, 1, 0}, {0, 0, 0}}, false, "")
	f("all", chain, [][]uint64{{1, 3, 3}, {2, 2, 0}}, false, "")
	f("nothing, where all is asked", chain, [][]uint64{{0, 0, 0}, {0, 0, 0}}, true, "write 1 is in the prefix")
	f("a dependent write without its cause on another volume", chain, [][]uint64{{0, 0, 0}, {2, 2, 0}}, false, "write 1 is in the prefix")
	f("half a write", chain, [][]uint64{{1, 0, 0}, {0, 0, 0}}, false, "write 1 is in the prefix")
	f("an old sector under a newer write", chain, [][]uint64{{1, 1, 3}, {2, 2, 0}}, false, "write 3 is in the prefix, and write 1")
	f("the cause is missing in the middle", chain, [][]uint64{{1, 3, 3}, {0, 0, 0}}, false, "write 2 is in the prefix")

	both := []Op{w(0, 0, 2, 1, 4), w(0, 1, 2, 2, 3)}
	f("concurrent: the second last", both, [][]uint64{{1, 2, 2}}, false, "")
	f("concurrent: the first last", both, [][]uint64{{1, 1, 2}}, false, "")
	f("concurrent: half of it", both, [][]uint64{{0, 2, 2}}, false, "")
	f("concurrent: torn", both, [][]uint64{{1, 2, 0}}, false, "write 2 is in the prefix, and zeros")

	zeroed := []Op{w(0, 0, 2, 1, 2), as(OpZero, w(0, 1, 2, 3, 4)), w(0, 3, 1, 5, 6)}
	f("before the zeroing", zeroed, [][]uint64{{1, 1, 0, 0}}, false, "")
	f("after the zeroing", zeroed, [][]uint64{{1, 0, 0, 0}}, false, "")
	f("all of it", zeroed, [][]uint64{{1, 0, 0, 3}}, false, "")
	f("the zeroing forgotten", zeroed, [][]uint64{{1, 1, 0, 3}}, false, "zeroing 2 is in the prefix")
	f("more zero than was zeroed", zeroed, [][]uint64{{0, 0, 0, 3}}, false, "zeros stand there that no zeroing explains")

	// A zero sector that only a late zeroing explains pulls in what came before that.
	late := []Op{w(0, 0, 1, 1, 2), w(1, 0, 1, 3, 4), as(OpZero, w(0, 0, 1, 5, 6)), w(0, 1, 1, 7, 0)}
	f("zeroed, and its cause is there", late, [][]uint64{{0, 4}, {2}}, false, "")
	f("zeroed, and its cause is not", late, [][]uint64{{0, 4}, {0}}, false, "write 2 is in the prefix")

	trimmed := []Op{w(0, 0, 2, 1, 2), as(OpTrim, w(0, 0, 2, 3, 4)), w(0, 2, 1, 5, 6)}
	f("a trim that did nothing", trimmed, [][]uint64{{1, 1, 3}}, false, "")
	f("a trim that zeroed half", trimmed, [][]uint64{{1, 0, 3}}, false, "")
	f("never answered: there or not", []Op{w(0, 0, 1, 1, 0), w(0, 1, 1, 2, 3)}, [][]uint64{{0, 2}}, true, "")
}

// memory is a disk of the tests; note sees each operation in disk order.
type memory struct {
	mu   sync.Mutex
	data []byte
	note func()
}

func (m *memory) do(off, n int64, p []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if copy(m.data[off:off+n], p); p == nil {
		clear(m.data[off : off+n])
	}
	if m.note != nil {
		m.note()
	}
	return nil
}
func (m *memory) WriteAt(p []byte, off int64) (int, error) {
	return len(p), m.do(off, int64(len(p)), p)
}
func (m *memory) WriteZeroes(off, n int64, _ bool) error { return m.do(off, n, nil) }
func (m *memory) Trim(off, n int64) error                { return m.do(off, n, nil) }
func (m *memory) Flush() error                           { return nil }
func (m *memory) Close() error                           { return nil }

// TestWildWorkloadAgainstOracle copies both disks at some moment of a wild workload,
// under a lock over both: that is a prefix. Then it harms the copies, and each harm
// must be seen.
func TestWildWorkloadAgainstOracle(t *testing.T) {
	corpus := Corpus(DB, 7)
	a, b := &memory{data: make([]byte, 4<<20)}, &memory{data: make([]byte, 4<<20)}
	var mu sync.Mutex
	count, snapshot := 0, [2][]byte{}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	note := func() { // called with one disk's lock held; mu makes the pair one disk
		count++
		if count == 300 {
			snapshot = [2][]byte{bytes.Clone(a.data), bytes.Clone(b.data)}
		}
		if count == 600 {
			stop()
		}
	}
	a.note, b.note = note, note
	s := &Stamper{Profile: ProfileWild, Workers: 3, Seed: 11, Corpus: corpus, History: &History{}}
	s.Profile.Max = 64 << 10
	one := &locked{mu: &mu}
	s.Volumes = []Volume{one.over(a), one.over(b)}
	if err := s.Run(ctx); err != nil {
		t.Fatal(err)
	}
	images := func(p [2][]byte) []Image {
		return []Image{{bytes.NewReader(p[0]), int64(len(p[0]))}, {bytes.NewReader(p[1]), int64(len(p[1]))}}
	}
	v, err := Check(s.History, corpus, images(snapshot), false)
	if err != nil || v.Included < 100 {
		t.Fatalf("a moment of the workload: %+v, %v", v, err)
	}
	if _, err := Check(s.History, corpus, images([2][]byte{a.data, b.data}), true); err != nil {
		t.Fatalf("the end of the workload: %v", err)
	}
	if _, err := Check(s.History, corpus, images(snapshot), true); err == nil {
		t.Error("an old moment passes for the end")
	}
	if _, err := Check(s.History, corpus, images([2][]byte{snapshot[0], b.data}), false); err == nil {
		t.Error("one volume of then and one of now pass for one moment")
	}
	rng := rand.New(rand.NewPCG(1, 1))
	for harm, do := range map[string]func(p []byte, at int){
		"a flipped bit":             func(p []byte, at int) { p[at+rng.IntN(SectorBytes)] ^= 4 },
		"a sector of another place": func(p []byte, at int) { copy(p[at:at+SectorBytes], p[(at+SectorBytes)%len(p):]) },
	} {
		p := [2][]byte{bytes.Clone(a.data), bytes.Clone(b.data)}
		at := -1
		for i := 0; i+SectorBytes < len(p[0]); i += SectorBytes {
			if !bytes.Equal(p[0][i:i+SectorBytes], zeroSector[:]) {
				at = i
			}
		}
		do(p[0], at)
		if _, err := Check(s.History, corpus, images(p), true); err == nil {
			t.Errorf("%s was not seen", harm)
		}
	}
}

// TestSectorOutOfPlace: a stamp alone tells its place, also in a volume of zeros, where
// the bytes behind it do not.
func TestSectorOutOfPlace(t *testing.T) {
	h, corpus := &History{}, Corpus(Zero, 1)
	var volumes [2][]byte
	for i := range volumes {
		volumes[i] = make([]byte, 4*SectorBytes)
		n := h.Issue(OpWrite, i, 0, 4)
		fill(volumes[i], corpus, i, n, 0)
		h.Done(n)
	}
	f := func(what string, volume int, wrong []byte) {
		t.Helper()
		images := []Image{{bytes.NewReader(volumes[0]), 4 * SectorBytes}, {bytes.NewReader(volumes[1]), 4 * SectorBytes}}
		if _, err := Check(h, corpus, images, true); err != nil {
			t.Fatal(err)
		}
		images[volume].Reader = bytes.NewReader(wrong)
		if _, err := Check(h, corpus, images, true); err == nil || !strings.Contains(err.Error(), "out of place") {
			t.Errorf("%s: %v", what, err)
		}
	}
	last := volumes[0][3*SectorBytes:]
	f("a sector twice", 0, slices.Concat(volumes[0][:2*SectorBytes], last, last))
	f("the other volume", 0, volumes[1])
}

// locked makes two disks one: an operation on either excludes the other.
type locked struct{ mu *sync.Mutex }

func (l *locked) over(m *memory) Volume {
	return Volume{Size: int64(len(m.data)), Dial: func(context.Context) (Disk, error) { return &lockedDisk{m, l.mu}, nil }}
}

type lockedDisk struct {
	*memory
	both *sync.Mutex
}

func (d *lockedDisk) WriteAt(p []byte, off int64) (int, error) {
	d.both.Lock()
	defer d.both.Unlock()
	return d.memory.WriteAt(p, off)
}
func (d *lockedDisk) WriteZeroes(off, n int64, u bool) error {
	d.both.Lock()
	defer d.both.Unlock()
	return d.memory.WriteZeroes(off, n, u)
}
func (d *lockedDisk) Trim(off, n int64) error {
	d.both.Lock()
	defer d.both.Unlock()
	return d.memory.Trim(off, n)
}

// flaky loses its connection at every tenth operation, after it was carried out or before.
type flaky struct {
	*memory
	n int
}

func (f *flaky) WriteAt(p []byte, off int64) (int, error) {
	if f.n++; f.n%10 == 5 {
		return 0, errors.New("lost before")
	}
	n, err := f.memory.WriteAt(p, off)
	if f.n%10 == 0 {
		return 0, errors.New("lost after")
	}
	return n, err
}

func TestLostConnectionsAreOpenedAgain(t *testing.T) {
	m := &memory{data: make([]byte, 1<<20)}
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	count := 0
	m.note = func() {
		if count++; count == 200 {
			stop()
		}
	}
	s := &Stamper{Profile: ProfileDB, Workers: 1, Seed: 3, Corpus: Corpus(Random, 3), History: &History{},
		Volumes: []Volume{{Size: 1 << 20, Dial: func(context.Context) (Disk, error) { return &flaky{m, 0}, nil }}}}
	if err := s.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if s.Stats().Redials < 10 {
		t.Errorf("%d redials", s.Stats().Redials)
	}
	if _, err := Check(s.History, s.Corpus, []Image{{bytes.NewReader(m.data), 1 << 20}}, true); err != nil {
		t.Error(err)
	}
}
