package record

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// arrive lets a record come in bits, some copied, some in place, and returns it as it stands.
func arrive(t testing.TB, rng *rand.Rand, p []byte) Record {
	t.Helper()
	h, err := ParseHeader(p)
	if err != nil {
		t.Fatal(err)
	}
	to := make([]byte, h.Size)
	copy(to, p[:h.TablesEnd()])
	a, err := Arrive(h, to)
	if err != nil {
		t.Fatal(err)
	}
	for at := h.TablesEnd(); at < len(p); {
		n := min(1+rng.IntN(20000), len(p)-at)
		if rng.IntN(2) == 0 {
			a.Far(p[at : at+n])
		} else {
			copy(a.Left(), p[at:at+n])
			a.Stand(n)
		}
		at += n
	}
	r := a.Record()
	if !bytes.Equal(r.Bytes(), p) {
		t.Fatal("another record stands there")
	}
	return r
}

func largeRecords(t testing.TB) [][]byte {
	b := NewBatch(Limits{Raw: 512 << 10})
	all := [][]byte{mixed(t)}
	for _, data := range [][]byte{randomData(512<<10, 4), dbData(512<<10, 4)} {
		fill(b, data, 8192)
		all = append(all, b.Seal(nil, testID, testTime, NewCompressor()))
	}
	for _, p := range controls() {
		all = append(all, p)
	}
	return all
}

// A record that came in whatever bits is the one that was sent, and verified.
func TestArrival(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 0xa))
	for i, p := range largeRecords(t) {
		for range 10 {
			if r := arrive(t, rng, p); !r.verified || r.VerifyPayload() != nil {
				t.Fatalf("record %d does not verify", i)
			}
		}
	}
}

// A bit that is wrong is noticed wherever it is, and named by VerifyPayload.
func TestArrivalNoticesDamage(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 0xa))
	for i, whole := range largeRecords(t) {
		h, _ := ParseHeader(whole)
		if h.Stored == 0 {
			continue
		}
		for range 60 {
			p := bytes.Clone(whole)
			bit := rng.IntN(8 * int(h.Stored))
			p[h.TablesEnd()+bit/8] ^= 1 << (bit % 8)
			if r := arrive(t, rng, p); r.verified || !errors.Is(r.VerifyPayload(), ErrCorrupt) {
				t.Fatalf("record %d: bit %d of the payload is wrong, and nobody noticed", i, bit)
			}
		}
		p := bytes.Clone(whole)
		p[h.TablesEnd()-1] ^= 1
		if _, err := Arrive(h, p); !errors.Is(err, ErrCorrupt) {
			t.Errorf("record %d: tables that are wrong: %v", i, err)
		}
	}
}

// What is verified once is not read again, but where invariants are checked.
func TestArrivalIsNotReadAgain(t *testing.T) {
	r := arrive(t, rand.New(rand.NewPCG(3, 0xa)), mixed(t))
	r.Bytes()[r.TablesEnd()] ^= 1
	if err := r.VerifyPayload(); (err != nil) != invariant.Enabled {
		t.Errorf("invariants %v: %v", invariant.Enabled, err)
	}
	if _, err := r.OpenBlock(nil, 0); !errors.Is(err, ErrCorrupt) {
		t.Errorf("a block that changed since: %v", err)
	}
}
