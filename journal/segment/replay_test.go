package segment

import (
	"bytes"
	"errors"
	"fmt"
	"path"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// replayed is what Replay gives.
func replayed(l *Log, from, to Pos, o ReplayOptions) (found []placed, err error) {
	err = l.Replay(from, to, o, func(pos Pos, r record.Record) error {
		found = append(found, placed{pos, bytes.Clone(r.Bytes())})
		return nil
	})
	return found, err
}

// order is the seqs of the control records and of those left out, as they are told.
func order(t *testing.T, l *Log, from, to Pos) (seqs []record.Seq) {
	t.Helper()
	o := ReplayOptions{ControlOnly: true, Skipped: func(_ record.StreamID, seq record.Seq) { seqs = append(seqs, seq) }}
	ok(t, l.Replay(from, to, o, func(_ Pos, r record.Record) error {
		seqs = append(seqs, r.Seq)
		return nil
	}))
	return seqs
}

func seqsOf(recs []placed) (seqs []record.Seq) {
	for _, p := range recs {
		if h, err := record.ParseHeader(p.rec); err == nil {
			seqs = append(seqs, h.Seq)
		}
	}
	return seqs
}

// between returns those of the records in [from, to), by their tables.
func between(recs []placed, from, to Pos, only func(record.Header) bool) (in []placed) {
	for _, p := range recs {
		if h, err := record.ParseHeader(p.rec); err == nil && p.pos >= from && p.pos < to && only(h) {
			in = append(in, placed{p.pos, p.rec[:h.TablesEnd()]})
		}
	}
	return in
}

func samePlaced(a, b placed) bool { return a.pos == b.pos && bytes.Equal(a.rec, b.rec) }

// mixed writes a log of data and control records in rounds of all sizes.
func mixed(t *testing.T, l *Log, n int) (recs []placed, edges []Pos) {
	t.Helper()
	rng := seeded(n)
	edges = append(edges, l.Durable())
	for seq := record.Seq(1); int(seq) <= n; seq++ {
		rec := sealed(seq, 1+rng.IntN([]int{300, 5000, 40000}[rng.IntN(3)]), rng)
		if rng.IntN(5) == 0 {
			id := record.Identity{Stream: testStream, Epoch: 1, Incarnation: 1, Seq: seq}
			rec = record.AppendConfirm(nil, id, record.Time(seq), 900, 1)
		}
		pos, err := l.Append(rec)
		ok(t, err)
		recs = append(recs, placed{pos, rec})
		if rng.IntN(3) == 0 || int(seq) == n {
			ok(t, l.Commit())
			edges = append(edges, l.Durable())
		}
	}
	return recs, edges
}

func every(record.Header) bool     { return true }
func control(h record.Header) bool { return isControl(h.Kind) }

// Any range of the log is replayed whole and in order: of the life that wrote it and of
// the next, with footers and without, few records and many.
func TestReplay(t *testing.T) {
	for _, segmentBytes := range []int64{24 << 10, 400 << 10, 4 << 20} {
		for _, sealing := range []bool{true, false} {
			t.Run(fmt.Sprintf("segment=%d/sealed=%v", segmentBytes, sealing), func(t *testing.T) {
				disk := faultdisk.New(512)
				o := testOptions()
				o.SegmentBytes = segmentBytes
				if !sealing {
					o.Go = func(work func()) {
						disk.Inject(faultdisk.Fault{Ops: faultdisk.OpWrite, Err: errors.New("no footer"), Ever: true})
						work()
						disk.Heal()
					}
				}
				ok(t, disk.Mkdir("store"))
				l, err := Open(disk, testDir, testGroup, Watermark{}, o, nil)
				ok(t, err)
				recs, edges := mixed(t, l, 150)
				durable := l.Durable()
				rng := seeded(1)
				for life := range 2 {
					for range max(20/sample, 5) {
						from, to := edges[rng.IntN(len(edges))], edges[rng.IntN(len(edges))]
						if rng.IntN(3) == 0 {
							from = recs[rng.IntN(len(recs))].pos
						}
						if from, to = min(from, to), max(from, to); rng.IntN(5) == 0 {
							from, to = Start, durable
						}
						for _, c := range []bool{false, true} {
							only := every
							if c {
								only = control
							}
							got, err := replayed(l, from, to, ReplayOptions{ControlOnly: c})
							ok(t, err)
							if want := between(recs, from, to, only); !slices.EqualFunc(got, want, samePlaced) {
								t.Fatalf("life %d: [%s, %s), control %v: %d records, want %d", life, from, to, c, len(got), len(want))
							}
						}
						if got, want := order(t, l, from, to), seqsOf(between(recs, from, to, every)); !slices.Equal(got, want) {
							t.Fatalf("life %d: [%s, %s), with those left out: %v, want %v", life, from, to, got, want)
						}
					}
					for _, bad := range [][2]Pos{{Start - 1, durable}, {Start, durable + 1}, {durable, Start}} {
						if _, err := replayed(l, bad[0], bad[1], ReplayOptions{}); !errors.Is(err, ErrRange) {
							t.Errorf("[%s, %s): %v, want ErrRange", bad[0], bad[1], err)
						}
					}
					ok(t, l.Close())
					if _, err := replayed(l, Start, durable, ReplayOptions{}); !errors.Is(err, ErrClosed) {
						t.Errorf("closed: %v", err)
					}
					l, err = Open(disk, testDir, testGroup, Watermark{Durable: durable}, o, nil)
					ok(t, err)
				}
			})
		}
	}
}

// Control records are found without a look at the others.
func TestReplayControlReadsLittle(t *testing.T) {
	disk := faultdisk.New(512)
	o := testOptions()
	o.SegmentBytes = 1 << 20
	ok(t, disk.Mkdir("store"))
	l, err := Open(disk, testDir, testGroup, Watermark{}, o, nil)
	ok(t, err)
	for len(l.Segments()) < 3 {
		mixed(t, l, 20)
	}
	first := l.Segments()[0]
	counted := &countedFS{FS: disk}
	l.fs = counted
	all, err := replayed(l, first.First, first.To, ReplayOptions{})
	ok(t, err)
	whole := counted.bytes.Swap(0)
	some, err := replayed(l, first.First, first.To, ReplayOptions{ControlOnly: true})
	ok(t, err)
	if len(some) == 0 || counted.bytes.Load() > int64(len(some)+4)*2*pageBytes {
		t.Errorf("%d control records cost %d bytes", len(some), counted.bytes.Load())
	}
	if size := int64(first.End - first.First); len(all) < 30 || whole > size*2/3 {
		t.Errorf("the tables of %d records in %d bytes cost %d bytes", len(all), size, whole)
	}
}

// countedFS counts the bytes that are asked for, by whomever.
type countedFS struct {
	ioengine.FS
	bytes, reads atomic.Int64
}

func (c *countedFS) Open(name string, flags ioengine.Flags) (ioengine.File, error) {
	f, err := c.FS.Open(name, flags)
	return countedFile{f, c}, err
}

type countedFile struct {
	ioengine.File
	c *countedFS
}

func (f countedFile) ReadAt(p []byte, off int64) (int, error) {
	f.c.bytes.Add(int64(len(p)))
	f.c.reads.Add(1)
	return f.File.ReadAt(p, off)
}

// Opening without each reads the ends of closed segments, and of the last one what is
// above the watermark.
func TestOpenReadsLittle(t *testing.T) {
	disk := faultdisk.New(512)
	o := testOptions()
	o.SegmentBytes = 1 << 20
	ok(t, disk.Mkdir("store"))
	l, err := Open(disk, testDir, testGroup, Watermark{}, o, nil)
	ok(t, err)
	for len(l.Segments()) < 20 {
		mixed(t, l, 60)
	}
	ok(t, l.Commit())
	durable := l.Durable()
	counted := &countedFS{FS: disk.Kill()}
	o.Go = func(func()) {} // what is sealed then is read by itself
	l, err = Open(counted, testDir, testGroup, Watermark{Durable: durable}, o, nil)
	ok(t, err)
	if n := len(l.Segments()); counted.reads.Load() > int64(3*n+12) || l.Durable() != durable {
		t.Errorf("%d segments cost %d reads; durable up to %s, want %s", n, counted.reads.Load(), l.Durable(), durable)
	}
}

// A segment whose footer rots is read without, and nothing is missed.
func TestReplayWithoutFooter(t *testing.T) {
	disk, f := written(t, 14)
	l, _, _, err := openStore(disk)
	ok(t, err)
	s := l.Segments()[0]
	for off := offset(s.First, s.End); off < sizeOf(t, disk, path.Join(testDir, fileName(1))); off += 13 {
		d := disk.Kill()
		ok(t, d.Rot(path.Join(testDir, fileName(1)), off, 1))
		_, _, found, err := openStore(d)
		if err != nil || len(found) != len(f.acked) {
			t.Fatalf("the footer rots at %d: %d records of %d: %v", off, len(found), len(f.acked), err)
		}
	}
}

// Life is the same for the same log, in this life and the next, and for no other one.
func TestLife(t *testing.T) {
	disk := faultdisk.New(512)
	ok(t, disk.Mkdir("store"))
	l, err := Open(disk, testDir, testGroup, Watermark{}, testOptions(), nil)
	ok(t, err)
	recs, edges := mixed(t, l, 60)
	lives := map[Pos]uint64{}
	for _, pos := range edges {
		_, life, known := l.Life(pos)
		if !known || life == 0 {
			t.Fatalf("the log does not know %s", pos)
		}
		lives[pos] = life
	}
	for _, pos := range []Pos{Start - 1, l.Durable() + pageBytes, recs[3].pos + 1} {
		if _, _, known := l.Life(pos); known {
			t.Errorf("%s is no edge of a round", pos)
		}
	}
	durable := l.Durable()
	ok(t, l.Close())
	l, err = Open(disk.Kill(), testDir, testGroup, Watermark{}, testOptions(), nil)
	ok(t, err)
	for pos, want := range lives {
		if _, life, known := l.Life(pos); !known || life != want {
			t.Errorf("life at %s: %x, want %x", pos, life, want)
		}
	}
	ok(t, disk.Mkdir("other"))
	other, err := Open(disk, "other/log", testGroup, Watermark{}, testOptions(), nil)
	ok(t, err)
	_, err = other.Append(sealed(1, 100, seeded(9)))
	ok(t, errors.Join(err, other.Commit()))
	for other.Durable() < durable {
		mixed(t, other, 1)
	}
	for pos, is := range lives {
		if _, life, known := other.Life(pos); known && life == is && pos != Start {
			t.Errorf("another log has the same life at %s", pos)
		}
	}
}
