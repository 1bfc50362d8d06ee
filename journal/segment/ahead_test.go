package segment

import (
	"bytes"
	"errors"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
)

// What is read ahead is what stands there, as far as its segment and the memory go; and errors are those
// of any read.
func TestReadAhead(t *testing.T) {
	disk := faultdisk.New(512)
	l, _, recs := recycler(t, disk, 4)
	segs := l.Segments()
	edges := 0
	for _, r := range recs {
		for _, more := range []int{1, 2, 16} {
			mem := buf.Aligned(buf.RoundUp(len(r.rec)) + more*buf.Align)
			p, err := l.ReadAhead(mem, r.pos, len(r.rec), 0)
			if err != nil || len(p) < len(r.rec) || !bytes.Equal(p[:len(r.rec)], r.rec) {
				t.Fatalf("%d bytes at %s, with %d of memory: %d bytes, %v", len(r.rec), r.pos, len(mem), len(p), err)
			}
			want := make([]byte, len(p))
			ok(t, l.ReadAt(want, r.pos))
			if !bytes.Equal(p, want) {
				t.Fatalf("what was read ahead behind %s is not what stands there", r.pos)
			}
			for _, held := range []int{0, 1, len(p) - 1, len(p)} { // the rest alone is read
				at := cap(mem) - cap(p)
				clear(mem[at+held:])
				if again, err := l.ReadAhead(mem, r.pos, len(r.rec), held); err != nil || !bytes.Equal(again, want) {
					t.Fatalf("%d of %d bytes at %s are held: %v", held, len(p), r.pos, err)
				}
			}
			end := r.pos + Pos(len(p))
			if endsThere(segs, end) {
				edges++
			}
			if len(p) < len(mem)-buf.Align && end != l.Durable() && !endsThere(segs, end) {
				t.Errorf("%d bytes at %s, for %d there was room", len(p), r.pos, len(mem))
			}
		}
	}
	if edges == 0 {
		t.Error("no segment's end was come to")
	}
	mem := buf.Aligned(4 * buf.Align)
	if _, err := l.ReadAhead(mem, segs[0].End-8, 16, 0); !errors.Is(err, ErrRange) {
		t.Errorf("of two segments: %v", err)
	}
	if _, err := l.ReadAhead(mem, l.Durable(), 1, 0); !errors.Is(err, ErrRange) {
		t.Errorf("of what is not durable: %v", err)
	}
	disk.Inject(faultdisk.Fault{Ops: faultdisk.OpRead, Err: syscall.EIO})
	if _, err := l.ReadAhead(mem, recs[0].pos, 16, 0); !errors.Is(err, syscall.EIO) {
		t.Errorf("an error of the disk: %v", err)
	}
	ok(t, l.Drop(segs[1].First))
	if _, err := l.ReadAhead(mem, recs[0].pos, 16, 0); !errors.Is(err, ErrRange) {
		t.Errorf("of what was dropped: %v", err)
	}
	ok(t, l.Close())
	if _, err := l.ReadAhead(mem, recs[len(recs)-1].pos, 16, 0); !errors.Is(err, ErrClosed) {
		t.Errorf("of a closed log: %v", err)
	}
}

// endsThere says whether a segment ends at pos.
func endsThere(segs []Info, pos Pos) bool {
	for _, s := range segs {
		if s.End == pos {
			return true
		}
	}
	return false
}
