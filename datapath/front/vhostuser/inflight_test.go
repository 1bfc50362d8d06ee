package vhostuser

import (
	"slices"
	"testing"
)

// TestInFlightRecovers takes the table through the life of some requests, and asks at each step
// what a successor would do.
func TestInFlightRecovers(t *testing.T) {
	const size = 8
	mem := make([]byte, flightBytes(size))
	var used uint16 // the queue's own
	table := &flightTable{p: mem, size: size}
	successor := func(want ...uint16) {
		t.Helper()
		next := &flightTable{p: slices.Clone(mem), size: size}
		if got := next.recover(used); !slices.Equal(got, want) {
			t.Errorf("repeats %v, want %v", got, want)
		}
		again := &flightTable{p: next.p, size: size} // who recovers may be killed too
		if got := again.recover(used); !slices.Equal(got, want) {
			t.Errorf("then repeats %v, want %v", got, want)
		}
	}
	successor()
	if redo := table.recover(0); len(redo) > 0 {
		t.Fatal(redo)
	}
	for _, head := range []uint16{3, 7, 0} {
		table.enter(head)
	}
	successor(3, 7, 0)
	table.answering(7, used)
	successor(3, 7, 0)
	used++ // the guest has been answered
	successor(3, 0)
	table.answered(7, used)
	successor(3, 0)
	table.enter(7)
	successor(3, 0, 7)
	for _, head := range []uint16{0, 3, 7} {
		table.answering(head, used)
		used++
		table.answered(head, used)
	}
	successor()
	table.enter(1)
	successor(1)
}

// TestInFlightOfNonsense: a front end may write there what it likes.
func TestInFlightOfNonsense(t *testing.T) {
	const size = 8
	mem := make([]byte, flightBytes(size))
	for i := range mem {
		mem[i] = 0xff
	}
	table := &flightTable{p: mem, size: size}
	if redo := table.recover(5); len(redo) > size {
		t.Errorf("repeats %v", redo)
	}
	for _, f := range []struct {
		info inflightInfo
		good bool
	}{
		{inflightInfo{flightBytesOf(2, 8), 0, 2, 8}, true},
		{inflightInfo{flightBytesOf(2, 8) - 1, 0, 2, 8}, false},
		{inflightInfo{1 << 40, 0, 2, 8}, false},
		{inflightInfo{flightBytesOf(2, 8), 1 << 60, 2, 8}, false},
		{inflightInfo{flightBytesOf(2, 8), 4096, 2, 8}, false}, // the file is shorter
	} {
		made, fd, err := newFlightFile(2, 8)
		if err != nil {
			t.Fatal(err)
		}
		opened, err := openFlightFile(f.info, fd)
		if (err == nil) != f.good {
			t.Errorf("%+v: %v", f.info, err)
		}
		if err == nil {
			if _, err := opened.queue(2, 8); err == nil {
				t.Error("a third of two queues")
			}
			if _, err := opened.queue(1, 16); err == nil {
				t.Error("16 entries in a table of 8")
			}
			opened.close()
		}
		made.close()
		closeAll([]int{fd})
	}
}

func flightBytesOf(queues, size uint16) uint64 { return uint64(int(queues) * flightBytes(size)) }
