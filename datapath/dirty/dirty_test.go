package dirty

import (
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/holdfast-dr/holdfast/wire/record"
)

// TestPassReadsEverything walks random maps with random pages: every dirty byte
// is read once, in reads that keep to the read size and its grid.
func TestPassReadsEverything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) { walk(t, false) })
}

// TestSweepReadsEverything: the same where a read takes in what is dirty near by; what it skips over is not.
func TestSweepReadsEverything(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) { walk(t, true) })
}

func walk(t *rapid.T, sweep bool) {
	readBytes := rapid.Int64Range(1, 64).Draw(t, "readBytes")
	var volumes []record.VolumeID
	maps := map[record.VolumeID][]Extent{}
	for v := range rapid.IntRange(0, 3).Draw(t, "volumes") {
		id := record.VolumeID(v + 1)
		volumes = append(volumes, id)
		at := int64(0)
		for range rapid.IntRange(0, 6).Draw(t, "extents") {
			at += rapid.Int64Range(0, 100).Draw(t, "gap")
			n := rapid.Int64Range(1, 300).Draw(t, "len")
			maps[id] = append(maps[id], Extent{id, at, n})
			at += n
		}
	}
	var want, got int64
	for _, m := range maps {
		for _, e := range m {
			want += e.Len
		}
	}
	p := NewPass(slices.Clone(volumes), readBytes)
	if sweep {
		p = NewSweep(slices.Clone(volumes), readBytes)
	}
	for {
		s := p.Next()
		if s.Kind == Over {
			break
		}
		if s.Kind == Ask {
			var page []Extent
			for _, e := range maps[s.Volume] {
				if e.Off >= s.Off {
					page = append(page, e)
				}
			}
			page = page[:min(len(page), rapid.IntRange(1, 4).Draw(t, "page"))]
			if err := p.Told(slices.Clone(page)); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if s.Len <= 0 || s.Len > readBytes || s.Off/readBytes != (s.Off+s.Len-1)/readBytes {
			t.Fatalf("read %+v breaks the grid of %d", s.Extent, readBytes)
		}
		within := dirtyIn(maps[s.Volume], s.Off, s.Off+s.Len)
		if within != s.Dirty || !sweep && within != s.Len {
			t.Fatalf("read %+v says that %d bytes are dirty, and %d are", s.Extent, s.Dirty, within)
		}
		if dirtyIn(maps[s.Volume], s.Off, s.Off+1) == 0 || dirtyIn(maps[s.Volume], s.Off+s.Len-1, s.Off+s.Len) == 0 {
			t.Fatalf("read %+v begins or ends with what is not dirty", s.Extent)
		}
		got += within
	}
	if got != want {
		t.Fatalf("read %d bytes of %d dirty", got, want)
	}
}

// dirtyIn is how many bytes of [from, to) are dirty.
func dirtyIn(m []Extent, from, to int64) (n int64) {
	for _, e := range m {
		n += max(0, min(to, e.Off+e.Len)-max(from, e.Off))
	}
	return n
}

// TestSweep: what a page tells of one cell is one read, and no more is.
func TestSweep(t *testing.T) {
	p := NewSweep([]record.VolumeID{1}, 100)
	var got []Step
	pages := [][]Extent{{{1, 10, 5}, {1, 30, 5}, {1, 90, 20}, {1, 150, 10}}, {{1, 170, 10}, {1, 300, 1}}, nil}
	for s := p.Next(); s.Kind != Over; s = p.Next() {
		if s.Kind == Read {
			got = append(got, s)
			continue
		}
		if err := p.Told(pages[0]); err != nil {
			t.Fatal(err)
		}
		pages = pages[1:]
	}
	want := []Step{{Read, Extent{1, 10, 90}, 20}, {Read, Extent{1, 100, 60}, 20}, {Read, Extent{1, 170, 10}, 10}, {Read, Extent{1, 300, 1}, 1}}
	if !slices.Equal(got, want) {
		t.Errorf("reads %v, want %v", got, want)
	}
}

func TestToldRefusesNonsense(t *testing.T) {
	f := func(page ...Extent) {
		t.Helper()
		p := NewPass([]record.VolumeID{1}, 10)
		p.Next()
		if err := p.Told([]Extent{{1, 100, 50}}); err != nil {
			t.Fatal(err)
		}
		for p.Next().Kind == Read {
		}
		if err := p.Told(page); err == nil {
			t.Errorf("%+v was taken", page)
		}
	}
	f(Extent{2, 200, 1})
	f(Extent{1, 149, 1})
	f(Extent{1, 200, 0})
	f(Extent{1, 1 << 62, 1 << 62}, Extent{1, 5, 1})
	f(Extent{1, 200, 10}, Extent{1, 205, 10})
}

func TestMeter(t *testing.T) {
	start := time.Unix(1000, 0)
	var m Meter
	if _, ok := m.Left(1); ok {
		t.Error("a time left is told before anything was done")
	}
	m.Add(start, 0)
	m.Add(start.Add(time.Second), 1<<30)
	if d, ok := m.Left(1); ok {
		t.Errorf("after one second a time left is told: %s", d)
	}
	m.Reset()
	m.Add(start.Add(-time.Hour), 1<<30)
	m.Skip(start)
	for i := range 100 {
		m.Add(start.Add(time.Duration(i+1)*100*time.Millisecond), 1000)
	}
	if r := m.Rate(); r < 9900 || r > 10100 {
		t.Errorf("rate %.0f, want 10000", r)
	}
	if d, ok := m.Left(50000); !ok || d < 4900*time.Millisecond || d > 5100*time.Millisecond {
		t.Errorf("50000 bytes take %s (%t)", d, ok)
	}
	m.Add(start.Add(2*time.Minute), 0)
	if d, ok := m.Left(1); ok {
		t.Errorf("nothing is done for minutes and one byte takes %s", d)
	}
	if d, ok := m.Left(0); !ok || d != 0 {
		t.Errorf("nothing takes %s (%t)", d, ok)
	}
}

// TestProgress synchronises a volume of 1000 bytes while a guest dirties it: the total
// is what was dirty, done is what is durable, and in the end both are the same.
func TestProgress(t *testing.T) {
	var p Progress
	read := uint64(5000) // of an earlier one
	want := func(done, total int64) {
		t.Helper()
		if p.Done() != done || p.Total() != total {
			t.Errorf("done %d of %d, want %d of %d", p.Done(), p.Total(), done, total)
		}
	}
	p.Read(1, 1)
	p.Begin(read)
	p.Durable(99)
	want(0, 0)
	p.Left(read, 1000)
	want(0, 1000)
	for i := range int64(10) {
		p.Read(read+uint64(i)*50, record.Ticket(100+i))
	}
	p.Left(read+450, 550)
	want(0, 1000) // read, and not durable
	p.Durable(104)
	want(200, 1000)
	p.Durable(103)
	p.Acked(199)
	want(200, 1000)
	p.Acked(210)
	want(210, 1000)
	p.Left(read+450, 750) // a guest's writes
	want(210, 1200)
	p.Left(read+500, 600) // asked while it was read
	want(210, 1200)
	for i := range uint64(1000) { // more than is kept
		p.Read(read+451+i*700/1000, record.Ticket(200+i))
	}
	p.Read(read+1190, 1300)
	p.Left(read+1190, 0)
	p.Durable(1299)
	if d := p.Done(); d < 450 || d >= 1190 {
		t.Errorf("done %d", d)
	}
	p.Durable(1300)
	want(1190, 1190)
}
