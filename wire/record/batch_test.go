package record

import (
	"bytes"
	"fmt"
	"testing"
)

// TestBatchShapes holds down which extents and blocks a batch becomes.
func TestBatchShapes(t *testing.T) {
	data := randomData(256<<10, 5)
	piece := func(off, n int64, ticket Ticket) Piece {
		return Piece{Volume: 1, Off: off, Len: n, Ticket: ticket, Data: data[:n]}
	}
	zero := func(off, n int64, ticket Ticket) Piece { return Piece{Volume: 1, Off: off, Len: n, Ticket: ticket} }
	const K = 1024
	f := func(name, want string, pieces ...Piece) {
		t.Helper()
		b := NewBatch(Limits{})
		for _, p := range pieces {
			if !b.Add(p) {
				t.Fatalf("%s: refused", name)
			}
		}
		r := mustParse(t, b.Seal(nil, testID, testTime, NewCompressor()))
		var got bytes.Buffer
		for i := range r.Extents {
			e := r.Extent(i)
			fmt.Fprintf(&got, "%c%d@%d+%d", " dz"[e.Kind], e.Ticket, e.Off, e.Len)
			if e.Kind == ExtentData {
				fmt.Fprintf(&got, "=%d:%d", e.Block, e.BlockOff)
			}
			got.WriteByte(' ')
		}
		if s := got.String(); s != want+" " {
			t.Errorf("%s: %swant %s", name, s, want)
		}
	}
	f("small writes share a block", "d1@0+4096=0:0 d2@40960+4096=0:4096", piece(0, 4*K, 1), piece(40*K, 4*K, 2))
	f("slots of one write become one extent", "d1@0+16384=0:0", piece(0, 8*K, 1), piece(8*K, 8*K, 1))
	f("neighbours of other tickets stay apart", "d1@0+4096=0:0 d2@4096+4096=0:4096", piece(0, 4*K, 1), piece(4*K, 4*K, 2))
	f("a write is cut at lines", "d1@28672+4096=0:0 d1@32768+32768=1:0 d1@65536+100=2:0", piece(28*K, 36*K+100, 1))
	f("no merge over a line", "d1@24576+8192=0:0 d1@32768+8192=0:8192", piece(24*K, 8*K, 1), piece(32*K, 8*K, 1))
	f("zeros are not cut", "z1@100+1099511627776", zero(100, 1<<40, 1))
	f("zeros of one ticket merge", "z1@0+8192 z2@8192+1", zero(0, 4*K, 1), zero(4*K, 4*K, 1), zero(8*K, 1, 2))
	f("zeros at the end of all volumes", "z9@72057594037927935+1", zero(VolumeLimit-1, 1, 9))
	f("zero data is found", "d1@0+4096=0:0 z2@4096+8192", piece(0, 4*K, 1), Piece{Volume: 1, Off: 4 * K, Len: 8 * K, Ticket: 2, Data: make([]byte, 8*K)})
	f("both writes to one place stay", "d1@0+512=0:0 d2@0+512=0:512", piece(0, 512, 1), piece(0, 512, 2))
	f("the widest delta", "d1@0+512=0:0 d4294967296@0+512=0:512", piece(0, 512, 1), piece(0, 512, 1<<32))
}

func TestBatchRefuses(t *testing.T) {
	data := make([]byte, 8<<20)
	data[0], data[LineBytes] = 1, 1
	add := func(b *Batch, n int64, ticket Ticket, want bool) {
		t.Helper()
		raw, extents := b.Raw(), b.Extents()
		got := b.Add(Piece{Volume: 1, Off: 512, Len: n, Ticket: ticket, Data: data[:n]})
		if got != want {
			t.Errorf("Add of %d bytes, ticket %d: %v", n, ticket, got)
		}
		if !got && (b.Raw() != raw || b.Extents() != extents) {
			t.Error("a refused piece left something behind")
		}
	}
	b := NewBatch(Limits{Raw: 1, Extents: 1})
	add(b, 64<<10, 1, true)
	add(b, 1, 2, false)
	b.Reset()
	add(b, 4096, 7, true)

	b = NewBatch(Limits{})
	add(b, 512, 1, true)
	add(b, 512, 1<<32+1, false) // the delta overflows
	b = NewBatch(Limits{})
	add(b, MaxRawBytes, 1, true)
	b = NewBatch(Limits{Raw: 64 << 20, Extents: 1 << 20})
	n := 0
	for b.Add(Piece{Volume: 1, Off: int64(n) * 8192, Len: 512, Ticket: 1}) {
		n++
	}
	if n != MaxExtents {
		t.Errorf("%d extents fit, want %d", n, MaxExtents)
	}
	mustParse(t, b.Seal(nil, testID, testTime, NewCompressor()))
}

func TestBugsOfCallers(t *testing.T) {
	f := func(name string, run func(b *Batch)) {
		t.Helper()
		defer func() {
			if recover() == nil {
				t.Errorf("%s: no panic", name)
			}
		}()
		run(NewBatch(Limits{}))
	}
	ok := Piece{Volume: 1, Len: 1, Ticket: 2}
	f("no volume", func(b *Batch) { b.Add(Piece{Len: 1, Ticket: 1}) })
	f("no ticket", func(b *Batch) { b.Add(Piece{Volume: 1, Len: 1}) })
	f("no length", func(b *Batch) { b.Add(Piece{Volume: 1, Ticket: 1}) })
	f("other length", func(b *Batch) { b.Add(Piece{Volume: 1, Ticket: 1, Len: 2, Data: []byte{1}}) })
	f("beyond", func(b *Batch) { b.Add(Piece{Volume: 1, Ticket: 1, Off: VolumeLimit, Len: 1}) })
	f("falling ticket", func(b *Batch) { b.Add(ok); b.Add(Piece{Volume: 1, Len: 1, Ticket: 1}) })
	f("too long", func(b *Batch) { b.Add(Piece{Volume: 1, Len: 5 << 20, Ticket: 1, Data: make([]byte, 5<<20)}) })
	f("empty", func(b *Batch) { b.Seal(nil, testID, testTime, NewCompressor()) })
	f("no identity", func(b *Batch) { b.Add(ok); b.Seal(nil, Identity{}, testTime, NewCompressor()) })
	f("no time", func(b *Batch) { b.Add(ok); b.Seal(nil, testID, 0, NewCompressor()) })
	f("tag", func(*Batch) {
		AppendCut(nil, testID, 1, 1, Cut{Checkpoint: 1, Wall: 1, Tag: string(make([]byte, 257))})
	})
	f("twice the same volume", func(*Batch) {
		AppendResyncOpen(nil, testID, 1, 1, Resync{Volumes: []VolumeSize{{1, 1}, {1, 2}}})
	})
}

// TestSealInPlace: Seal appends, and keeps what stood before.
func TestSealInPlace(t *testing.T) {
	b := NewBatch(Limits{})
	fill(b, dbData(1<<20, 1), 4096)
	alone := b.Seal(nil, testID, testTime, NewCompressor())
	both := b.Seal([]byte("before"), testID, testTime, NewCompressor())
	if string(both[:6]) != "before" || !bytes.Equal(both[6:], alone) {
		t.Error("a record appended differs from one alone")
	}
}

func TestAllZero(t *testing.T) {
	for _, n := range []int{0, 1, 7, 8, 9, 4095, 4096, 4097, 8192, 32768} {
		p := make([]byte, n)
		if !allZero(p) {
			t.Errorf("%d zeros are not all zero", n)
		}
		for _, i := range []int{0, 7, 8, n / 2, n - 1} {
			if i < 0 || i >= n {
				continue
			}
			p[i] = 1
			if allZero(p) {
				t.Errorf("%d bytes with one at %d are all zero", n, i)
			}
			p[i] = 0
		}
	}
}

// Short writes at scattered places lie in short blocks; what is written or read in a row does not.
func TestScatteredWritesLieInShortBlocks(t *testing.T) {
	const pieces = 32
	data := dbData(pieces*16<<10, 1)
	for _, c := range []struct {
		name        string
		size, apart int // bytes of a piece; from one piece to the next
		want        int // bytes of a block
	}{
		{"scattered 4K", 4 << 10, 1 << 20, LineBytes / 2},
		{"scattered 8K", 8 << 10, 1 << 20, LineBytes / 2},
		{"scattered 16K", 16 << 10, 1 << 20, LineBytes},
		{"4K in a row", 4 << 10, 4 << 10, LineBytes},
		{"4K in a row, backwards", 4 << 10, -4 << 10, LineBytes / 2},
	} {
		b, f, z := NewBatch(Limits{}), Fold{}, NewCompressor()
		for i := range pieces {
			p := Piece{Volume: 1, Off: pieces<<20 + int64(i)*int64(c.apart), Len: int64(c.size), Ticket: Ticket(i + 1), Data: data[i*c.size:][:c.size]}
			if !b.Add(p) {
				t.Fatal("full")
			}
			f.Data(p.Volume, p.Off, p.Data, z)
		}
		for kind, p := range map[string][]byte{"batch": b.Seal(nil, testID, testTime, z), "fold": f.Seal(nil, 1, 1, 1234, z)} {
			r := mustParse(t, p)
			for i := range r.Blocks {
				if got := r.Block(i).Raw; got != c.want {
					t.Errorf("%s, %s: block %d of %d bytes, want %d", c.name, kind, i, got, c.want)
				}
			}
		}
	}
}
