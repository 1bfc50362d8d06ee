package delta

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// image makes a volume whose 4 KiB blocks are zeros, one of a few contents, or their own.
func image(rng *rand.Rand, size int64) []byte {
	p := make([]byte, size)
	for at := int64(0); at < size; at += BlockBytes {
		if rng.IntN(20) == 0 {
			p[at] = byte(1 + rng.IntN(250))
		}
	}
	return p
}

func block(p []byte, b int64) []byte {
	return p[b*BlockBytes : min((b+1)*BlockBytes, int64(len(p)))]
}

// regionOf is what a target knows of a region of p.
func regionOf(p []byte, number int64, unknown func(b int64) bool) *Region {
	r := NewRegion(number, int64(len(p)))
	if r == nil {
		return nil
	}
	for i := range r.Blocks() {
		if b := number*regionBlocks + int64(i); !unknown(b) {
			r.Put(i, block(p, b))
		}
	}
	return r
}

// TestSource compares two volumes, of which parts are not read or not known, over sessions that
// end at any message. What differs, or is not known, is found, and nothing else.
func TestSource(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		size := rapid.SampledFrom([]int64{4096, 65536, RegionBytes - 65536, 2*RegionBytes + 5000}).Draw(t, "size")
		cuts := rapid.SampledFrom([]int{0, 3, 20}).Draw(t, "cuts") // sessions that end
		ours := image(rng, size)
		theirs := bytes.Clone(ours)
		blocks := (size + BlockBytes - 1) / BlockBytes
		want, skip, unknown := map[int64]bool{}, map[int64]bool{}, map[int64]bool{}
		some := func(m map[int64]bool, most int) {
			for range rng.IntN(most + 1) {
				m[rng.Int64N(blocks)] = true
			}
		}
		// 100 are less than half of the 256 leaves of a region, however they fall: none is sent without comparing.
		some(want, rapid.SampledFrom([]int{0, 3, 100}).Draw(t, "differ"))
		some(skip, rapid.SampledFrom([]int{0, 3}).Draw(t, "unread"))
		some(unknown, rapid.SampledFrom([]int{0, 3}).Draw(t, "unknown"))
		for b := range want {
			theirs[b*BlockBytes] ^= 1
		}
		for b := range unknown {
			want[b] = true
		}
		for b := range skip {
			delete(want, b)
		}

		s := NewSource()
		var flight []Ask
		found := map[int64]bool{}
		target := map[int64]*Region{}
		pump := func() {
			for {
				a, ok := s.Next()
				if !ok {
					return
				}
				if err := a.Check(); err != nil {
					t.Fatal(err)
				}
				flight = append(flight, a)
				if n := answers(flight); n > flightBytes+16<<10 || len(flight) > FlightMost {
					t.Fatalf("%d questions for %d bytes are under way", len(flight), n)
				}
			}
		}
		begun := int64(0)
		regions := (size + RegionBytes - 1) / RegionBytes
		for begun < regions || !s.Idle() {
			if f, ok := s.Found(); ok {
				for _, r := range f.Differ {
					for b := r.Off / BlockBytes; b < (r.Off+r.Len)/BlockBytes; b++ {
						found[b] = true
					}
				}
				s.Forget(f.Key)
				continue
			}
			if begun < regions && s.Room() {
				k := Key{1, begun}
				if s.Begin(k, size) {
					for i := range NewRegion(begun, size).Blocks() {
						b := begun*regionBlocks + int64(i)
						if skip[b] {
							continue
						}
						if !s.Put(1, b, block(ours, b)) {
							t.Fatalf("block %d is not taken", b)
						}
					}
					s.Read(k)
				} else {
					t.Fatalf("region %d is not compared, and few differ", begun)
				}
				begun++
				continue
			}
			pump()
			if len(flight) == 0 {
				t.Fatalf("nothing is asked, and %d regions are not decided", len(s.pending))
			}
			if cuts > 0 && rng.IntN(3) == 0 {
				cuts--
				flight = nil
				s.Restart()
				continue
			}
			a := flight[0]
			flight = flight[1:]
			r := target[a.Region()]
			if r == nil {
				r = regionOf(theirs, a.Region(), func(b int64) bool { return unknown[b] })
				target[a.Region()] = r
			}
			if err := s.Answer(a, r.Append(nil, a)); err != nil {
				t.Fatal(err)
			}
		}
		if fmt.Sprint(sorted(found)) != fmt.Sprint(sorted(want)) {
			t.Fatalf("found %v, want %v", sorted(found), sorted(want))
		}
		if c := s.Counts(); c.Differ != int64(len(want))*BlockBytes || c.Bytes != (blocks-int64(len(skip)))*BlockBytes {
			t.Errorf("counts %+v", c)
		}
	})
}

func answers(as []Ask) (n int) {
	for _, a := range as {
		n += a.AnswerBytes()
	}
	return n
}

func sorted(m map[int64]bool) (s []int64) {
	for b := range m {
		s = append(s, b)
	}
	slices.Sort(s)
	return s
}

// TestBytes holds what travels to the sums that are needed: the bar of a host's crash.
func TestBytes(t *testing.T) {
	const size = 4 * RegionBytes
	f := func(changed int, most int64) {
		t.Helper()
		rng := rand.New(rand.NewPCG(1, 1))
		ours := image(rng, size)
		theirs := bytes.Clone(ours)
		for _, b := range rng.Perm(size / BlockBytes)[:changed] {
			theirs[b*BlockBytes] ^= 1
		}
		s, target := NewSource(), map[int64]*Region{}
		for n := range int64(4) {
			s.Begin(Key{1, n}, size)
			for i := range int64(regionBlocks) {
				s.Put(1, n*regionBlocks+i, block(ours, n*regionBlocks+i))
			}
			s.Read(Key{1, n})
		}
		for {
			a, ok := s.Next()
			if !ok {
				break
			}
			r := target[a.Region()]
			if r == nil {
				r = regionOf(theirs, a.Region(), func(int64) bool { return false })
				target[a.Region()] = r
			}
			if err := s.Answer(a, r.Append(nil, a)); err != nil {
				t.Fatal(err)
			}
		}
		c := s.Counts()
		if c.Differ != int64(changed)*BlockBytes || c.Heard > most || c.Heard != c.Asked {
			t.Errorf("%d blocks changed: %+v, want at most %d bytes of sums", changed, c, most)
		}
		if bar := 2*c.Differ + c.Bytes/BlockBytes*16; c.Differ+c.Heard > bar {
			t.Errorf("%d blocks changed: %d bytes of sums beside them, the bar is %d", changed, c.Heard, bar)
		}
	}
	f(0, 4*32)
	f(1, 4*32+256*32+16*16)
	f(100, 4*32+4*256*32+100*16*16)
	f(size/BlockBytes/2, 4*32+4*256*32+size/BlockBytes*16)
}

// TestEndOfARow: behind a row of regions that differ an eighth of it, at most, is sent in vain: what was written at one place
// before a failback does not double what it sends.
func TestEndOfARow(t *testing.T) {
	for row := range int64(200) {
		s := NewSource()
		for n := range row {
			oneRegion(t, s, n, false)
		}
		vain := int64(0)
		for n := row; !oneRegion(t, s, n, true); n++ {
			vain++
		}
		if vain > row/skipPart {
			t.Errorf("behind %d regions %d are sent whole", row, vain)
		}
	}
}

// TestSeldomTried: what differs everywhere is tried ever more seldom, until something is the same.
func TestSeldomTried(t *testing.T) {
	s := NewSource()
	tried, last := 0, int64(0)
	for n := range int64(1000) {
		if oneRegion(t, s, n, false) {
			tried, last = tried+1, n
		}
	}
	if tried < 10 || tried > 50 || s.Counts().Skipped != 1000-tried {
		t.Errorf("%d of 1000 regions were tried: %+v", tried, s.Counts())
	}
	for n := last + 1; n < last+200; n++ {
		oneRegion(t, s, n, true)
	}
	if !oneRegion(t, s, 5000, true) || !oneRegion(t, s, 5001, true) {
		t.Error("what is the same is not tried")
	}
}

// oneRegion has a region compared that is the same at the target, or is not; false: it is sent whole.
func oneRegion(t *testing.T, s *Source, n int64, same bool) bool {
	t.Helper()
	k := Key{1, n}
	if !s.Begin(k, 1<<40) {
		return false
	}
	s.Put(1, n*regionBlocks, []byte{1})
	s.Read(k)
	a, _ := s.Next()
	sum := make([]byte, a.AnswerBytes())
	if same {
		s.pending[k].Append(sum[:0], a)
	}
	if err := s.Answer(a, sum); err != nil {
		t.Fatal(err)
	}
	f, _ := s.Found()
	s.Forget(f.Key)
	return true
}

// TestGiveUp: what was read and is not decided may differ, all of it.
func TestGiveUp(t *testing.T) {
	s := NewSource()
	s.Begin(Key{1, 0}, RegionBytes)
	s.Put(1, 7, []byte{1})
	s.Put(1, 8, nil)
	s.Read(Key{1, 0})
	a, _ := s.Next()
	s.GiveUp()
	f, ok := s.Found()
	if !ok || len(f.Differ) != 1 || f.Differ[0] != (Range{7 * BlockBytes, 2 * BlockBytes}) {
		t.Errorf("found %+v", f)
	}
	if err := s.Answer(a, make([]byte, a.AnswerBytes())); err != nil { // it was under way
		t.Error(err)
	}
	if _, ok := s.Found(); ok || s.Idle() {
		t.Error("it is decided twice, or forgotten")
	}
	if s.Forget(f.Key); !s.Idle() {
		t.Error("it is not forgotten")
	}
}

// TestWrongAnswers: an answer to something else, or of another length, changes nothing.
func TestWrongAnswers(t *testing.T) {
	s := NewSource()
	if err := s.Answer(Ask{1, Node, 0, 1}, make([]byte, 32)); !errors.Is(err, ErrAnswer) {
		t.Errorf("nothing was asked: %v", err)
	}
	s.Begin(Key{1, 0}, RegionBytes)
	for b := range int64(regionBlocks) {
		s.Put(1, b, nil)
	}
	s.Read(Key{1, 0})
	a, _ := s.Next()
	if a != (Ask{1, Node, 0, 1}) {
		t.Fatalf("asked %+v", a)
	}
	for _, wrong := range []Ask{{2, Node, 0, 1}, {1, Leaf, 0, 1}, {1, Node, 1, 1}, {1, Node, 0, 2}} {
		if err := s.Answer(wrong, make([]byte, wrong.AnswerBytes())); !errors.Is(err, ErrAnswer) {
			t.Errorf("%+v: %v", wrong, err)
		}
	}
	for _, n := range []int{0, 31, 33} {
		if err := s.Answer(a, make([]byte, n)); !errors.Is(err, ErrAnswer) {
			t.Errorf("%d bytes: %v", n, err)
		}
	}
	if err := s.Answer(a, zeroNode[:]); err != nil {
		t.Error(err)
	}
	if f, ok := s.Found(); !ok || len(f.Differ) > 0 {
		t.Errorf("found %+v", f)
	}
}

func TestAsksAreHeldToWhatThereIs(t *testing.T) {
	f := func(good bool, a Ask) {
		t.Helper()
		if err := a.Check(); (err == nil) != good {
			t.Errorf("%+v: %v", a, err)
		}
	}
	f(true, Ask{1, Node, 0, 1})
	f(true, Ask{1, Leaf, 256, 256})
	f(true, Ask{1, Block, 4096, 1024})
	f(false, Ask{1, Node, 0, 2})
	f(false, Ask{1, Leaf, 255, 2})
	f(false, Ask{1, Block, 0, 1025})
	f(false, Ask{1, Block, 4095, 2})
	f(false, Ask{1, 0, 0, 1})
	f(false, Ask{1, 4, 0, 1})
	f(false, Ask{0, Node, 0, 1})
	f(false, Ask{1, Node, -1, 1})
	f(false, Ask{1, Node, 0, 0})
	f(false, Ask{1, Block, 1 << 62, 1})
}

// TestSums holds the tree to its definition, with and without memory for zeros.
func TestSums(t *testing.T) {
	p := make([]byte, RegionBytes)
	p[3*LeafBytes] = 1
	r := regionOf(p, 0, func(int64) bool { return false })
	var leaves []byte
	for l := range RegionBytes / LeafBytes {
		var sums []byte
		for b := range leafBlocks {
			s := sha256.Sum256(p[l*LeafBytes+b*BlockBytes:][:BlockBytes])
			if sums = append(sums, s[:]...); !bytes.Equal(r.Append(nil, Ask{1, Block, int64(l*leafBlocks + b), 1}), s[:16]) {
				t.Fatalf("block %d of leaf %d", b, l)
			}
		}
		s := sha256.Sum256(sums)
		if leaves = append(leaves, s[:]...); !bytes.Equal(r.Append(nil, Ask{1, Leaf, int64(l), 1}), s[:]) {
			t.Fatalf("leaf %d", l)
		}
	}
	if s := sha256.Sum256(leaves); !bytes.Equal(r.Append(nil, Ask{1, Node, 0, 1}), s[:]) {
		t.Error("node")
	}
	hole := NewRegion(0, RegionBytes)
	for b := range hole.Blocks() {
		hole.Put(b, nil)
	}
	if hole.sums != nil || hole.node() != zeroNode || hole.leaf(0) != zeroLeaf {
		t.Error("a hole is not cheap, or is something else")
	}
	if r := NewRegion(1, RegionBytes); r != nil || !bytes.Equal(r.Append(nil, Ask{1, Node, 1, 1}), make([]byte, 32)) {
		t.Error("beyond the end is something")
	}
}
