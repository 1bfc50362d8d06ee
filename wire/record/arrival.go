package record

import (
	"github.com/holdfast-dr/holdfast/ioengine/crc32c"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Arrival is a record of which the payload comes bit by bit. The blocks' checksums are taken of
// each bit as it comes, while the caches hold it: to read all of a record again once it stands
// costs as much as to copy it. Not safe for concurrent use.
type Arrival struct {
	rec   Record
	seed  uint32
	at    int // as much stands
	block int // the block that comes
	end   int // and where it ends
	sum   uint32
	wrong bool
}

// Arrive begins with the record whose header is h, in p, which is as long as the record and
// holds the bytes before its payload. It borrows p. Errors are those of ParseTables.
func Arrive(h Header, p []byte) (Arrival, error) {
	rec, err := ParseTables(h, p[:h.Size])
	if err != nil {
		return Arrival{}, err
	}
	a := Arrival{rec: rec, seed: seedOf(h.Identity), at: h.TablesEnd(), block: -1}
	a.turn()
	return a, nil
}

// Left is where the bytes that did not come yet belong.
func (a *Arrival) Left() []byte { return a.rec.p[a.at:] }

// Stand says that the next n bytes stand where they belong.
func (a *Arrival) Stand(n int) {
	for n > 0 {
		k := min(n, a.end-a.at)
		a.sum = crc32c.Update(a.sum, a.rec.p[a.at:a.at+k])
		a.came(k)
		n -= k
	}
}

// Far puts the next bytes where they belong, past the caches: see crc32c.CopyFar.
func (a *Arrival) Far(p []byte) {
	for len(p) > 0 {
		k := min(len(p), a.end-a.at)
		a.sum = crc32c.CopyFar(a.sum, a.rec.p[a.at:], p[:k])
		a.came(k)
		p = p[k:]
	}
}

func (a *Arrival) came(n int) {
	if a.at += n; a.at == a.end {
		a.wrong = a.wrong || a.sum != a.rec.Block(a.block).CRC && !invariant.Planted("record/believes-what-came")
		a.turn()
	}
}

// turn goes on to the next block, if there is one.
func (a *Arrival) turn() {
	if a.block++; a.block < a.rec.Blocks {
		b := a.rec.Block(a.block)
		a.sum, a.end = b.seed(a.seed, a.block), a.at+b.Stored
	}
}

// Record is the record that came. If all checksums were right VerifyPayload has no more to do; if not
// it says which. It panics while bytes are missing.
func (a *Arrival) Record() Record {
	if len(a.Left()) > 0 {
		panic("BUG: a record that has not come yet")
	}
	r := a.rec
	r.verified = !a.wrong
	return r
}
