package journal

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/wire/record"
)

// Which cuts are listed: rows of records, each "stream:what", and the checkpoints that
// come of them, as number@stream=seq.
func TestCuts(t *testing.T) {
	f := func(records, want string) {
		t.Helper()
		c := newCuts()
		seqs := map[record.StreamID]record.Seq{}
		var got []string
		for _, w := range strings.Fields(records) {
			r := durableRecord{stream: record.StreamID(w[0] - '0')}
			seqs[r.stream]++
			r.seq = seqs[r.stream]
			var n uint64
			fmt.Sscanf(w[3:], "%d", &n)
			switch w[2] {
			case 'o':
				r.kind = record.KindResyncOpen
			case 'c':
				r.kind = record.KindResyncClose
			case 'w':
				r.kind = record.KindData
			case 's', 'p': // solo, plural
				r.kind = record.KindCut
				r.cut = record.Cut{Checkpoint: n, Solo: w[2] == 's'}
			case 't': // of two, and says so
				r.kind = record.KindCut
				r.cut = record.Cut{Checkpoint: n, Sources: 2}
			case 'y':
				r.kind, r.confirm = record.KindConfirm, n
			}
			if cp, ok := c.step(r); ok {
				at := fmt.Sprint(cp.Number, "@")
				for _, a := range cp.At {
					at += fmt.Sprintf("%d=%d,", uint64(a.Stream), a.Seq)
				}
				got = append(got, strings.TrimSuffix(at, ","))
			}
		}
		if wanted := strings.Fields(want); !slices.Equal(got, wanted) {
			t.Errorf("%s: listed %v, want %v", records, got, wanted)
		}
	}
	f("1:o 1:w 1:c 1:s1 1:w 1:s2", "1@1=4 2@1=6")
	f("1:w 1:s1", "")               // a stream begins in its initial sync
	f("1:o 1:s1 1:c 1:s2", "2@1=4") // no cut in a resync
	f("1:o 1:c 1:s1 1:o 1:s2 1:w 1:c 1:s3", "1@1=3 3@1=8")
	f("1:o 1:o 1:c 1:s1", "1@1=4")                  // a closing boundary ends all open ones
	f("1:o 1:c 1:s2 1:s2 1:s1 1:s3", "2@1=3 3@1=6") // numbers rise
	// Two sources: the cut in both streams and its confirm in both.
	f("1:o 1:c 2:o 2:c 1:p1 2:p1 1:y1 2:y1", "1@1=3,2=3")
	f("1:o 1:c 2:o 2:c 1:p1 1:y1 2:w 2:p1 1:w 2:y1", "1@1=3,2=4")
	f("1:o 1:c 2:o 2:c 1:p1 2:p1 1:y1", "")
	f("1:o 1:c 2:o 2:c 1:p1 2:p1", "")
	f("1:o 1:c 2:o 2:c 1:p1 1:y1", "")
	f("1:o 1:c 2:o 1:p1 2:p1 1:y1 2:y1", "") // one is still in its sync
	f("1:o 1:c 2:o 2:c 1:p1 2:p1 1:y1 2:o 2:y1 2:c 2:y1", "")
	f("1:o 1:c 2:o 2:c 1:p1 2:p1 1:p2 2:p2 1:y2 2:y2 1:y1 2:y1", "2@1=4,2=4") // overtaken
	f("1:o 1:c 1:y9", "")
	// A cut that says how many there are waits for those that were never heard of, and for no other.
	f("1:o 1:c 1:t1 1:y1 2:o 2:c", "")
	f("1:o 1:c 1:t1 1:y1 2:o 2:c 1:t2 2:t2 2:y2 1:y2", "2@1=5,2=3")
	f("3:o 3:c 3:w 1:o 1:c 2:o 2:c 1:t1 1:y1 2:t1 2:y1", "1@1=3,2=3,3=3")
	f("3:o 3:w 1:o 1:c 2:o 2:c 1:t1 1:y1 2:t1 2:y1", "1@1=3,2=3,3=2")
	f("1:o 1:c 2:o 2:c 1:t1 1:y1 2:t1 2:o 2:y1 2:c", "")
	// A source alone does not wait for a stream that is gone.
	f("2:o 2:w 1:o 1:c 1:s1", "1@1=3,2=2")
}

// A source that cuts and never confirms costs a bounded number of cuts.
func TestPendingCutsAreBounded(t *testing.T) {
	c := newCuts()
	c.step(durableRecord{stream: 1, seq: 1, kind: record.KindResyncClose})
	c.step(durableRecord{stream: 2, seq: 1, kind: record.KindResyncClose})
	for n := uint64(1); n <= 10*maxPendingCuts; n++ {
		c.step(durableRecord{stream: 1, seq: record.Seq(n + 1), kind: record.KindCut, cut: record.Cut{Checkpoint: n}})
	}
	if len(c.pending) > maxPendingCuts {
		t.Errorf("%d cuts wait", len(c.pending))
	}
}
