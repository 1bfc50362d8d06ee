package record

import (
	"math/rand/v2"
	"strconv"
	"strings"
	"testing"
)

var words = strings.Fields("order customer status pending shipped active address street berlin london paris total amount price item quantity email example com name first last created updated account balance true false null id ref note invoice tax currency EUR USD payment method card transfer")

// dbData resembles the pages of a database: 8 KiB slotted pages of rows with rising
// ids, times, random keys and words. LZ4 makes it about 2.2 times smaller.
func dbData(n int, seed uint64) []byte {
	r, b := rand.New(rand.NewPCG(seed, 1)), make([]byte, n)
	id := r.Uint64N(1 << 40)
	for p := 0; p+8192 <= n; p += 8192 {
		page, slot := b[p:p+8192], 24
		le.PutUint64(page, r.Uint64()>>20)
		for off := 8192; off > 2600; slot += 4 {
			id++
			row := le.AppendUint64(le.AppendUint64(nil, id), 1700000000000000+id*1000+r.Uint64N(1000))
			row = le.AppendUint64(row, r.Uint64())
			row = le.AppendUint16(row, uint16(r.Uint32()))
			for range 4 + r.IntN(6) {
				row = append(append(row, words[r.IntN(len(words))]...), ' ')
			}
			row = strconv.AppendInt(row, r.Int64N(1e7), 10)
			off -= len(row)
			copy(page[off:], row)
			le.PutUint16(page[slot:], uint16(off))
		}
	}
	return b
}

func randomData(n int, seed uint64) []byte {
	r, b := rand.New(rand.NewPCG(seed, 2)), make([]byte, n)
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return b
}

var testID = Identity{Stream: 0x5717ea0000000001, Epoch: 3, Incarnation: 2, Seq: 77}

const testTime Time = 1_700_000_000_123_456_789

func mustParse(t testing.TB, p []byte) Record {
	t.Helper()
	r, err := Parse(p)
	if err != nil {
		t.Fatalf("Parse: %v", err)
	}
	return r
}

// fill makes a batch of writes of one size at scattered places, until it is full.
func fill(b *Batch, data []byte, size int) {
	b.Reset()
	for i := 0; ; i++ {
		at := i * size % len(data)
		off := int64(i*7919%65536) * int64(size)
		if !b.Add(Piece{Volume: 1, Off: off, Len: int64(size), Ticket: Ticket(i + 1), Data: data[at : at+size]}) {
			return
		}
	}
}
