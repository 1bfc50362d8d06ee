package reorder

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/wire/record"
)

var start = time.Unix(1_000_000_000, 0)

func mark(opening uint32, seq record.Seq) Mark {
	return Mark{Stream: 7, Opening: opening, Seq: seq, Bytes: 1000, Checksum: uint32(seq)}
}

// take hands over records of opening 1 by their seqs, and says what came out of each.
func take(t *Target[record.Seq], seqs ...record.Seq) string {
	var said []string
	for _, seq := range seqs {
		v, err := t.Came(start, mark(1, seq), seq)
		if err != nil {
			said = append(said, "refused")
			continue
		}
		word := v.String()
		if v == Next {
			word = fmt.Sprint(seq)
			for {
				held, ok := t.Pop(start, 7)
				if !ok {
					break
				}
				word += fmt.Sprint(",", held)
			}
		}
		said = append(said, word)
	}
	return strings.Join(said, " ")
}

func TestTargetPutsInOrder(t *testing.T) {
	f := func(next record.Seq, seqs []record.Seq, want string) {
		t.Helper()
		var target Target[record.Seq]
		target.Open(7, next)
		if got := take(&target, seqs...); got != want {
			t.Errorf("%d then %v: %q, want %q", next, seqs, got, want)
		}
	}
	f(1, []record.Seq{1, 2, 3}, "1 2 3")
	f(5, []record.Seq{5, 4, 5}, "5 again again")
	f(1, []record.Seq{2, 1}, "early 1,2")
	f(1, []record.Seq{4, 2, 3, 1}, "early early early 1,2,3,4")
	f(1, []record.Seq{3, 3, 1, 3, 2, 3}, "early again 1 again 2,3 again")
	f(1, []record.Seq{3, 1, 2, 4}, "early 1 2,3 4")
	f(1, []record.Seq{384, 385}, "early refused") // 384 of the smallest rooms
	f(10, []record.Seq{10 + 383, 10 + 384, 10, 10 + 384}, "early refused 10 early")
}

func TestTargetRefusesALie(t *testing.T) {
	var target Target[int]
	f := func(name string, m Mark, want error) {
		t.Helper()
		if _, err := target.Came(start, m, 0); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
	}
	f("never opened", mark(1, 1), ErrOpening)
	target.Open(7, 1)
	f("no opening", mark(0, 1), ErrOpening)
	f("an opening to come", mark(2, 1), ErrOpening)
	f("early", mark(1, 2), nil)
	other := mark(1, 2)
	other.Checksum++
	f("another record of the seq", other, ErrDiffers)
	longer := mark(1, 2)
	longer.Bytes++
	f("a longer record of the seq", longer, ErrDiffers)
	large := mark(1, 3)
	large.Bytes = record.MaxRecordBytes
	for n := range Window / record.MaxRecordBytes {
		large.Seq = record.Seq(3 + n)
		f("a large one", large, nil)
	}
	large.Seq++
	f("one too many", large, ErrBeyond)
	if records, room := target.Held(); room > Window || records != 1+Window/record.MaxRecordBytes {
		t.Errorf("%d records of %d bytes are held", records, room)
	}
	if err := target.Stuck(start.Add(MaxGap)); err != nil {
		t.Error(err)
	}
	if err := target.Stuck(start.Add(MaxGap + time.Second)); !errors.Is(err, ErrGap) {
		t.Errorf("a gap for longer than a minute: %v", err)
	}
}

// What was under way before a reopening is dropped, whatever its seq.
func TestReopeningForgets(t *testing.T) {
	var target Target[int]
	target.Open(7, 1)
	target.Came(start, mark(1, 2), 22)
	target.Came(start, mark(1, 3), 33)
	dropped := target.Open(7, 2)
	slices.Sort(dropped)
	if !slices.Equal(dropped, []int{22, 33}) {
		t.Errorf("dropped %v", dropped)
	}
	for seq := record.Seq(1); seq < 500; seq++ {
		if v, err := target.Came(start, mark(1, seq), 0); v != Stale || err != nil {
			t.Fatalf("seq %d of the former opening: %v, %v", seq, v, err)
		}
	}
	if v, err := target.Came(start, mark(2, 2), 0); v != Next || err != nil {
		t.Errorf("the first of the new one: %v, %v", v, err)
	}
	target.Came(start, mark(2, 4), 44)
	if dropped := target.Close(7); !slices.Equal(dropped, []int{44}) {
		t.Errorf("the close dropped %v", dropped)
	}
	if v, err := target.Came(start, mark(2, 3), 0); v != Stale || err != nil {
		t.Errorf("after the close: %v, %v", v, err)
	}
	if records, room := target.Held(); records != 0 || room != 0 {
		t.Errorf("%d records of %d bytes are held", records, room)
	}
	if err := target.Stuck(start.Add(time.Hour)); err != nil {
		t.Error(err)
	}
}
