package record

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
)

// mixed is a record with every sort of extent and block.
func mixed(t testing.TB) []byte {
	t.Helper()
	b, db, random := NewBatch(Limits{}), dbData(64<<10, 11), randomData(LineBytes, 12)
	for _, p := range []Piece{
		{1, 0, 8192, 100, db[:8192]},
		{1, 8192, 8192, 100, db[8192:16384]},
		{2, 512, 512, 101, db[300:812]},
		{2, 1 << 40, 1 << 33, 105, nil},
		{1, 1<<30 - 1000, 4096, 106, random[:4096]},
		{1, 0, 8192, 107, db[20000:28192]},
		{3, 7 * LineBytes, LineBytes, 110, random},
		{3, 0, 4096, 4000000000, make([]byte, 4096)},
	} {
		if !b.Add(p) {
			t.Fatal("does not fit")
		}
	}
	return b.Seal(nil, testID, testTime, NewCompressor())
}

// controls is one record of each control kind.
func controls() map[string][]byte {
	volumes := []VolumeSize{{2, 1 << 30}, {1, 512}} // sorted when stored
	return map[string][]byte{
		"cut":          AppendCut(nil, testID, testTime, 9, Cut{Checkpoint: 12, Wall: 1_700_000_000_000_000_000, Tag: "vor dem Umzug ✓", Listed: 10, Solo: true, Volumes: volumes}),
		"cut-shared":   AppendCut(nil, testID, testTime, 9, Cut{Checkpoint: 12, Wall: 1_700_000_000_000_000_000, Sources: 3, Volumes: volumes}),
		"cut-frozen":   AppendCut(nil, testID, testTime, 9, Cut{Checkpoint: 12, Wall: 1_700_000_000_000_000_000, Tag: "t", Solo: true, Freeze: Frozen, Volumes: volumes}),
		"confirm":      AppendConfirm(nil, testID, testTime, 9, 12),
		"resize":       AppendResize(nil, testID, testTime, 9, VolumeSize{2, 1 << 31}),
		"resync-open":  AppendResyncOpen(nil, testID, testTime, 9, Resync{Initial: true, Reason: "first synchronisation", Volumes: volumes}),
		"resync-close": AppendResyncClose(nil, testID, testTime, 9, Resync{}),
	}
}

func isOurs(err error) bool {
	for _, known := range []error{ErrShort, ErrMagic, ErrVersion, ErrKind, ErrCorrupt} {
		if errors.Is(err, known) {
			return true
		}
	}
	return false
}

// fixSums makes p pass every checksum and every length that follows from others, as
// far as p's lengths allow, so that the rules behind them are reached.
func fixSums(p []byte) []byte {
	p = bytes.Clone(p)
	if len(p) < HeaderBytes {
		return p
	}
	le.PutUint32(p[atMagic:], magic)
	p[atVersion] = version
	h := decodeHeader(p)
	le.PutUint32(p[atSize:], uint32(len(p)))
	if h.Blocks <= MaxBlocks && h.Extents <= MaxExtents && h.Body <= MaxBody && h.TablesEnd() <= len(p) {
		for i := range h.Blocks {
			entry := p[HeaderBytes+i*blockBytes:]
			if b, _ := decodeBlock(entry); b.At >= h.TablesEnd() && b.At <= len(p) && b.Stored <= len(p)-b.At {
				b.CRC = b.sum(seedOf(h.Identity), i, p[b.At:b.At+b.Stored])
				le.PutUint32(entry[blockCRC:], b.CRC)
			}
		}
		le.PutUint32(p[atTablesCRC:], sumOf(p[HeaderBytes:h.TablesEnd()]))
	}
	le.PutUint32(p[atHeaderCRC:], sumOf(p[:atHeaderCRC]))
	return p
}

// encodeAgain builds the record anew from what Parse made of it.
func encodeAgain(r Record) []byte {
	p := make([]byte, HeaderBytes, r.Size)
	h := r.Header
	switch r.Kind {
	case KindData, KindFolded:
		for i := range r.Blocks {
			p = append(p, make([]byte, blockBytes)...)
			r.Block(i).put(p[len(p)-blockBytes:])
		}
		for i := range r.Extents {
			p = append(p, make([]byte, extentBytes)...)
			r.Extent(i).put(p[len(p)-extentBytes:], r.First)
		}
		p = append(p, r.Bytes()[r.TablesEnd():]...)
		h.put(p)
		return p
	case KindCut:
		c, _ := ParseCut(r)
		return AppendCut(nil, r.Identity, r.Time, r.First, c)
	case KindConfirm:
		n, _ := ParseConfirm(r)
		return AppendConfirm(nil, r.Identity, r.Time, r.First, n)
	case KindResize:
		v, _ := ParseResize(r)
		return AppendResize(nil, r.Identity, r.Time, r.First, v)
	case KindResyncOpen, KindResyncClose:
		s, _ := ParseResync(r)
		return appendResync(nil, r.Kind, r.Identity, r.Time, r.First, s)
	}
	return nil // Parse knows no other
}

// check holds whatever Parse says of p to the package's promises.
func check(t *testing.T, p []byte) {
	t.Helper()
	r, err := Parse(p)
	if err != nil {
		if !isOurs(err) {
			t.Fatalf("an error that no caller knows: %v", err)
		}
		return
	}
	if again := encodeAgain(r); !bytes.Equal(again, p) {
		t.Fatalf("parse and encode disagree:\n%x\n%x", p, again)
	}
	if tables, err := ParseTables(r.Header, p[:r.TablesEnd()]); err != nil || tables.Header != r.Header {
		t.Fatalf("ParseTables: %v", err)
	}
	payload := r.VerifyPayload()
	covered := int64(0)
	for i := range r.Extents {
		e := r.Extent(i)
		if e.Volume == 0 || e.Off < 0 || e.Len < 1 || e.Off+e.Len > VolumeLimit || e.Ticket < r.First || e.Ticket > r.Last {
			t.Fatalf("extent %d: %+v", i, e)
		}
		if e.Kind == ExtentData {
			covered += e.Len
			if e.Off/LineBytes != (e.Off+e.Len-1)/LineBytes || e.BlockOff+int(e.Len) > r.Block(e.Block).Raw {
				t.Fatalf("extent %d: %+v", i, e)
			}
		}
	}
	if covered != r.Raw && (r.Kind != KindFolded || covered > r.Raw) {
		t.Fatalf("extents cover %d of %d bytes", covered, r.Raw)
	}
	for i := range r.Blocks {
		one, err := r.OpenBlock(bytes.Repeat([]byte{0x55}, LineBytes), i)
		two, err2 := r.OpenBlock(bytes.Repeat([]byte{0xAA}, LineBytes), i)
		if (err == nil) != (err2 == nil) || !bytes.Equal(one, two) {
			t.Fatalf("block %d depends on what was in the buffer", i)
		}
		if err == nil && len(one) != r.Block(i).Raw || err != nil && !isOurs(err) {
			t.Fatalf("block %d: %d bytes, %v", i, len(one), err)
		}
		if payload != nil && r.Blocks == 1 && err == nil {
			t.Fatal("a block opened that does not verify")
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, p := range controls() {
		f.Add(p, true)
	}
	small := NewBatch(Limits{}) // few bytes: long inputs are mostly spent on being made shorter
	small.Add(Piece{1, 0, 600, 1, bytes.Repeat([]byte{1, 2, 3}, 200)})
	small.Add(Piece{2, 0, 600, 1, nil})
	small.Add(Piece{1, LineBytes, LineBytes, 3, bytes.Repeat([]byte{1}, LineBytes)})
	small.Add(Piece{1, 9, 40, 3, randomData(40, 1)})
	f.Add(foldedMixed(f), true)
	p := small.Seal(nil, testID, testTime, NewCompressor())
	f.Add(p, false)
	f.Add(p, true)
	f.Fuzz(func(t *testing.T, p []byte, fix bool) {
		if fix {
			p = fixSums(p)
		}
		check(t, p)
		if h, err := ParseHeader(p); err == nil {
			if h.Size > MaxRecordBytes || h.TablesEnd() > h.Size {
				t.Fatalf("a header beyond its limits: %+v", h)
			}
			_, err = ParseTables(h, p)
			if err != nil && !isOurs(err) {
				t.Fatal(err)
			}
		}
	})
}

// TestEveryByteMatters: change any one byte of a record and some check says so,
// and cut it anywhere and it is short.
func TestEveryByteMatters(t *testing.T) {
	all := controls()
	all["mixed"] = mixed(t)
	for name, p := range all {
		tables := mustParse(t, p).TablesEnd()
		for i := 0; i < len(p); i++ {
			if i > tables {
				i = min(i+12, len(p)-1) // the payload has but one rule
			}
			p[i] ^= 0x40
			r, err := Parse(p)
			if err == nil {
				err = r.VerifyPayload()
			}
			if !isOurs(err) {
				t.Errorf("%s: byte %d changed: %v", name, i, err)
			}
			p[i] ^= 0x40
		}
		for n := 0; n < len(p); n += 1 + n/tables*6 {
			if _, err := Parse(p[:n]); !errors.Is(err, ErrShort) {
				t.Errorf("%s: cut to %d bytes: %v", name, n, err)
			}
		}
		if _, err := Parse(append(bytes.Clone(p), 0)); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: a byte more: %v", name, err)
		}
	}
}

// TestRules breaks one rule at a time behind right checksums.
func TestRules(t *testing.T) {
	good := mixed(t)
	r := mustParse(t, good)
	blocks, extents := HeaderBytes, HeaderBytes+r.Blocks*blockBytes
	f := func(name string, want error, change func(p []byte)) {
		t.Helper()
		p := bytes.Clone(good)
		change(p)
		if _, err := Parse(fixSums(p)); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	put64 := func(at int, v uint64) func(p []byte) { return func(p []byte) { le.PutUint64(p[at:], v) } }
	put32 := func(at int, v uint32) func(p []byte) { return func(p []byte) { le.PutUint32(p[at:], v) } }
	put16 := func(at int, v uint16) func(p []byte) { return func(p []byte) { le.PutUint16(p[at:], v) } }
	put8 := func(at int, v byte) func(p []byte) { return func(p []byte) { p[at] = v } }
	entry := func(i int) int { return extents + i*extentBytes }

	f("nothing", nil, func([]byte) {})
	f("folded, of a source", ErrCorrupt, put8(atKind, byte(KindFolded)))
	f("kind 7", ErrKind, put8(atKind, 7))
	f("kind 0", ErrKind, put8(atKind, 0))
	f("data as cut", ErrCorrupt, put8(atKind, byte(KindCut)))
	f("reserved 1", ErrCorrupt, put8(atZero1, 1))
	f("reserved 2", ErrCorrupt, put8(atZero2+5, 1))
	f("no stream", ErrCorrupt, put64(atStream, 0))
	f("no epoch", ErrCorrupt, put32(atEpoch, 0))
	f("no incarnation", ErrCorrupt, put32(atIncarnation, 0))
	f("no seq", ErrCorrupt, put64(atSeq, 0))
	f("no time", ErrCorrupt, put64(atTime, 0))
	f("time before 1970", ErrCorrupt, put64(atTime, 1<<63))
	f("no ticket", ErrCorrupt, put64(atFirst, 0))
	f("last below first", ErrCorrupt, put64(atLast, 99))
	f("last not the last", ErrCorrupt, put64(atLast, 4000000001))
	f("delta too wide", ErrCorrupt, put64(atLast, 1<<33))
	f("tickets that wrap", ErrCorrupt, func(p []byte) { put64(atFirst, 1<<64-1)(p); put64(atLast, 1<<64-1)(p) })
	f("many blocks", ErrCorrupt, put32(atBlocks, 1<<31))
	f("many extents", ErrCorrupt, put32(atExtents, 1<<31))
	f("a block fewer", ErrCorrupt, put32(atBlocks, uint32(r.Blocks-1)))
	f("body", ErrCorrupt, put32(atBody, 1))
	f("much raw", ErrCorrupt, put32(atRaw, MaxRawBytes+1))
	f("other raw", ErrCorrupt, put32(atRaw, uint32(r.Raw+1)))
	f("stored above raw", ErrCorrupt, put32(atStored, uint32(r.Raw+1)))

	f("block codec", ErrCorrupt, put8(blocks+blockCodec, 3))
	f("block reserved", ErrCorrupt, put8(blocks+blockCodec+1, 1))
	f("block of LZ4 called raw", ErrCorrupt, put8(blocks+blockCodec, byte(CodecRaw)))
	f("block raw 0", ErrCorrupt, put16(blocks+blockRaw, 0))
	f("block raw above a line", ErrCorrupt, put16(blocks+blockRaw, LineBytes+1))
	f("block stored", ErrCorrupt, put32(blocks+blockStored, uint32(r.Block(0).Stored+1)))
	f("block stored far", ErrCorrupt, put32(blocks+blockStored, 1<<31))
	f("block at", ErrCorrupt, put32(blocks+blockAt, uint32(r.Block(0).At+1)))

	f("extent volume", ErrCorrupt, put32(entry(0)+extentVolume, 0))
	f("extent kind", ErrCorrupt, put8(entry(0)+extentKind, 3))
	f("extent data as zero", ErrCorrupt, put8(entry(0)+extentKind, byte(ExtentZero)))
	f("extent length 0", ErrCorrupt, put16(entry(0)+extentLen, 0))
	f("extent shorter", ErrCorrupt, put16(entry(0)+extentLen, 100))
	f("extent of another block", ErrCorrupt, put16(entry(0)+extentBlock, 1))
	later := 0
	for r.Extent(later).BlockOff == 0 {
		later++
	}
	f("extent elsewhere in its block", ErrCorrupt, put16(entry(later)+extentBlockOff, 0))
	f("extent reserved", ErrCorrupt, put16(entry(0)+extentBlockOff+2, 1))
	f("extent over a line", ErrCorrupt, put16(entry(0)+extentOff, LineBytes-1))
	f("first extent late", ErrCorrupt, put32(entry(0)+extentTicket, 1))
	f("ticket falls", ErrCorrupt, put32(entry(2)+extentTicket, 1<<31))
	f("last ticket falls", ErrCorrupt, put32(entry(r.Extents-1)+extentTicket, 0))
	if e := r.Extent(2); e.Kind != ExtentZero {
		t.Fatalf("extent 2 is %+v", e)
	}
	f("zeros of no length", ErrCorrupt, put64(entry(2)+extentLen, 0))
	f("zeros beyond the end", ErrCorrupt, put64(entry(2)+extentLen, VolumeLimit))
	f("zeros of negative length", ErrCorrupt, put64(entry(2)+extentLen, 1<<63))

	p := bytes.Clone(good)
	p[atVersion]++
	le.PutUint32(p[atHeaderCRC:], sumOf(p[:atHeaderCRC]))
	if _, err := ParseHeader(p); !errors.Is(err, ErrVersion) {
		t.Errorf("next version: %v", err)
	}
	if _, err := ParseHeader(make([]byte, HeaderBytes)); !errors.Is(err, ErrMagic) {
		t.Errorf("space never written: %v", err)
	}
}

// TestBlockIdentity: a block opens only as itself, in its record, at its number.
func TestBlockIdentity(t *testing.T) {
	b := NewBatch(Limits{})
	same := dbData(LineBytes, 1)
	for i := range 3 {
		b.Add(Piece{1, int64(i) * LineBytes, LineBytes, 1, same})
	}
	r := mustParse(t, b.Seal(nil, testID, testTime, NewCompressor()))
	open := func(id Identity, number int, change func(*Block)) error {
		block := r.Block(0)
		stored := r.Bytes()[block.At : block.At+block.Stored]
		change(&block)
		got, err := OpenStored(nil, id, number, block, stored)
		if err == nil && !bytes.Equal(got, same) {
			t.Error("other bytes")
		}
		return err
	}
	nothing := func(*Block) {}
	if err := open(testID, 0, nothing); err != nil {
		t.Fatal(err)
	}
	for i, change := range []func(*Identity){
		func(id *Identity) { id.Stream++ }, func(id *Identity) { id.Epoch++ },
		func(id *Identity) { id.Incarnation++ }, func(id *Identity) { id.Seq++ },
	} {
		id := testID
		change(&id)
		if err := open(id, 0, nothing); !errors.Is(err, ErrCorrupt) {
			t.Errorf("identity change %d: %v", i, err)
		}
	}
	if err := open(testID, 1, nothing); !errors.Is(err, ErrCorrupt) {
		t.Errorf("as block 1: %v", err)
	}
	for i, change := range []func(*Block){
		func(b *Block) { b.Raw-- }, func(b *Block) { b.CRC++ }, func(b *Block) { b.Raw = LineBytes + 1 },
		func(b *Block) { b.Codec = CodecRaw }, func(b *Block) { b.Codec = CodecRaw; b.Raw = b.Stored },
	} {
		if err := open(testID, 0, change); !errors.Is(err, ErrCorrupt) {
			t.Errorf("block change %d: %v", i, err)
		}
	}
	if err := open(testID, 0, func(b *Block) { b.Stored++ }); !errors.Is(err, ErrShort) {
		t.Errorf("too few bytes: %v", err)
	}
}

// TestTablesOnly: without the payload everything but the payload can be read.
func TestTablesOnly(t *testing.T) {
	p := mixed(t)
	whole := mustParse(t, p)
	r, err := ParseTables(whole.Header, bytes.Clone(p[:whole.TablesEnd()]))
	if err != nil {
		t.Fatal(err)
	}
	for i := range r.Extents {
		if r.Extent(i) != whole.Extent(i) {
			t.Errorf("extent %d differs", i)
		}
	}
	if _, err := r.OpenBlock(nil, 0); !errors.Is(err, ErrShort) {
		t.Errorf("OpenBlock without payload: %v", err)
	}
	if err := r.VerifyPayload(); !errors.Is(err, ErrShort) {
		t.Errorf("VerifyPayload without payload: %v", err)
	}
	other := whole.Header
	other.Seq++
	if _, err := ParseTables(other, p); !errors.Is(err, ErrCorrupt) {
		t.Errorf("another header: %v", err)
	}
	if _, err := ParseTables(whole.Header, p[:whole.TablesEnd()-1]); !errors.Is(err, ErrShort) {
		t.Errorf("half the tables: %v", err)
	}
}

// TestLargest: the record of the most of everything stays in its limits and parses.
func TestLargest(t *testing.T) {
	b, data := NewBatch(Limits{}), randomData(MaxRawBytes, 1)
	if !b.Add(Piece{1, 1, MaxRawBytes, 1, data}) {
		t.Fatal("refused")
	}
	for i := 0; b.Add(Piece{2, int64(i) * 1024, 512, 2, nil}); i++ {
	}
	p := b.Seal(nil, testID, testTime, NewCompressor())
	r := mustParse(t, p)
	if r.Extents != MaxExtents || r.Raw != MaxRawBytes || len(p) > MaxRecordBytes {
		t.Errorf("%+v in %d bytes", r.Header, len(p))
	}
	r1, r2 := rand.New(rand.NewPCG(1, 1)), 0
	for range 200 { // damage behind right checksums never panics and never opens wrongly
		q := bytes.Clone(p[:r.TablesEnd()])
		for range 1 + r1.IntN(3) {
			q[HeaderBytes+r1.IntN(len(q)-HeaderBytes)] ^= 1 << r1.IntN(8)
		}
		le.PutUint32(q[atTablesCRC:], sumOf(q[HeaderBytes:]))
		le.PutUint32(q[atHeaderCRC:], sumOf(q[:atHeaderCRC]))
		h, err := ParseHeader(q)
		if err != nil {
			t.Fatal(err)
		}
		if _, err = ParseTables(h, q); err == nil {
			r2++ // a volume number, a CRC or a zero extent's place, which any value fits
		} else if !isOurs(err) {
			t.Fatal(err)
		}
	}
	if r2 == 0 {
		t.Error("no damage left a valid table: the test reaches nothing")
	}
}

func TestNames(t *testing.T) {
	if s := fmt.Sprint(KindData, Kind(7), KindFolded, Kind(99)); s != "data reserved folded kind-99" {
		t.Error(s)
	}
}
