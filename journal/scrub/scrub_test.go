package scrub

import (
	"bytes"
	"errors"
	"flag"
	"math/rand/v2"
	"os"
	"reflect"
	"testing"
	"time"
)

var update = flag.Bool("update", false, "write the golden files")

const day = 24 * time.Hour

func segment(number uint64) Unit { return Unit{ID{1, Segment, number, 7}, 256 << 20} }

// TestOrder: what was never read, the newest first; then what was read longest ago.
func TestOrder(t *testing.T) {
	units := []Unit{segment(1), segment(2), {ID{1, Replica, 1 << 32, 9}, 1 << 30}, segment(3), segment(4)}
	var b Book
	b.Read(units[1].ID, 3*day)
	b.Read(units[0].ID, 5*day)
	now := 20 * day
	var order []int
	for {
		s := Plan(units, &b, Policy{}, nil, now)
		if s.Unit < 0 {
			if s.Wait <= 0 || s.Wait > 7*day {
				t.Errorf("nothing to do for %s", s.Wait)
			}
			break
		}
		order = append(order, s.Unit)
		b.Read(units[s.Unit].ID, now)
	}
	if want := []int{4, 3, 2, 1, 0}; !reflect.DeepEqual(order, want) {
		t.Errorf("read in the order %v, want %v", order, want)
	}
}

// TestInTime reads a store that grows and shrinks at the rates that are planned: nothing
// goes unread for longer than the policy says, and the rate stays below the cap.
func TestInTime(t *testing.T) {
	for _, bytes := range []int64{1 << 20, 256 << 20, 16 << 30} {
		rng := rand.New(rand.NewPCG(1, uint64(bytes)))
		p := Policy{}
		var units []Unit
		made := map[ID]time.Duration{}
		var b Book
		var now, read time.Duration
		for number := uint64(1); now < 60*day; {
			for len(units) < 300 || rng.IntN(20) == 0 && len(units) < 600 {
				u := Unit{ID{1, Segment, number, 7}, bytes}
				made[u.ID] = now
				units = append(units, u)
				number++
			}
			s := Plan(units, &b, p, nil, now)
			if s.Unit < 0 {
				now += min(max(s.Wait, time.Minute), time.Hour)
				if rng.IntN(100) == 0 {
					units = units[rng.IntN(50):]
				}
			} else {
				if s.Rate > 64<<20 || s.Rate < 1<<20 {
					t.Fatalf("a rate of %d", s.Rate)
				}
				d := time.Duration(float64(bytes) / float64(s.Rate) * float64(time.Second))
				now, read = now+d, read+d
				b.Read(units[s.Unit].ID, now)
			}
			for _, u := range units {
				last := made[u.ID]
				if e, ok := b.Get(u.ID, now); ok {
					last = max(last, e.At)
				}
				if now-last > 14*day {
					t.Fatalf("units of %d bytes: %v was not read for %s", bytes, u.ID, now-last)
				}
			}
		}
		t.Logf("units of %d bytes: read for %s of %s", bytes, read.Round(time.Minute), now.Round(time.Minute))
	}
}

// TestAsked: what somebody asks for is read at once, at the cap, and each unit once; what
// cannot be read is tried again only after a while.
func TestAsked(t *testing.T) {
	units := []Unit{segment(1), segment(2), {ID{2, Segment, 1, 7}, 1 << 20}}
	var b Book
	now := 10 * day
	for _, u := range units {
		b.Read(u.ID, now-time.Hour)
	}
	if s := Plan(units, &b, Policy{}, nil, now); s.Unit >= 0 {
		t.Errorf("read again after an hour: %+v", s)
	}
	done := map[ID]bool{}
	asked := func(id ID) bool { return id.Group == 1 && !done[id] }
	for i := range 2 {
		s := Plan(units, &b, Policy{}, asked, now)
		if s.Unit < 0 || units[s.Unit].Group != 1 || s.Rate != 64<<20 || s.Left != int64(2-i)*256<<20 {
			t.Fatalf("asked, and then %+v", s)
		}
		b.Tried(units[s.Unit].ID, now)
		done[units[s.Unit].ID] = true
	}
	if s := Plan(units, &b, Policy{}, asked, now); s.Unit >= 0 || s.Wait > time.Hour {
		t.Errorf("once more: %+v", s)
	}
	if s := Plan(units, &b, Policy{}, nil, now+time.Hour); s.Unit < 0 {
		t.Errorf("what could not be read is never tried again: %+v", s)
	}
	if s := Plan(units, &b, Policy{Every: -1}, nil, now+100*day); s.Unit >= 0 {
		t.Errorf("read though nothing should be: %+v", s)
	}
	if s := Plan(units, &b, Policy{Every: -1}, func(ID) bool { return true }, now+100*day); s.Unit < 0 {
		t.Error("not read though somebody asked")
	}
}

// TestFuture: a clock that began anew makes everything unread, and nothing verified.
func TestFuture(t *testing.T) {
	var b Book
	b.Read(segment(1).ID, 100*day)
	if s := Plan([]Unit{segment(1)}, &b, Policy{}, nil, day); s.Unit != 0 {
		t.Errorf("%+v", s)
	}
}

func golden() *Book {
	b := &Book{}
	b.Read(segment(1).ID, 3*day)
	b.Tried(segment(2).ID, 4*day)
	b.Read(ID{2, Replica, 5<<32 | 1, 9}, 5*day)
	b.SetGroup(1, Group{Upto: 77, Lineage: 9, Full: Never})
	b.SetGroup(2, Group{Upto: 78, Lineage: 10, Full: day})
	return b
}

func TestGoldenBook(t *testing.T) {
	const name = "testdata/scrubbed-v1.bin"
	p := golden().AppendTo(nil)
	if *update {
		if err := os.WriteFile(name, p, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil || !bytes.Equal(p, want) {
		t.Errorf("the format changed: %v", err)
	}
	b, err := ParseBook(want)
	if err != nil || !reflect.DeepEqual(b, golden()) {
		t.Errorf("%+v, %v", b, err)
	}
	for i := range want {
		q := bytes.Clone(want)
		if q[i] ^= 4; !isBad(ParseBook(q)) {
			t.Errorf("byte %d is flipped, and it reads", i)
		}
	}
}

func isBad(_ *Book, err error) bool { return errors.Is(err, ErrBook) || errors.Is(err, ErrVersion) }

func FuzzBook(f *testing.F) {
	f.Add(golden().AppendTo(nil))
	f.Add((&Book{}).AppendTo(nil))
	f.Fuzz(func(t *testing.T, p []byte) {
		b, err := ParseBook(p)
		if err != nil {
			if !isBad(b, err) {
				t.Fatal(err)
			}
			return
		}
		if !bytes.Equal(b.AppendTo(nil), p) {
			t.Fatal("it encodes to something else")
		}
	})
}
