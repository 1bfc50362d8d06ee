package group

import (
	"testing"
	"time"
)

// TestSpilling: what waits on disk is a state of its own, the link up or down, and says why no more goes there;
// what cannot be read back begins the group anew from its marks.
func TestSpilling(t *testing.T) {
	now, m := time.Unix(1e6, 0), new(Machine)
	f, protected := trial(t, m, &now, time.Hour)
	stood := Stood{Durable: 20, Incarnation: 9, Acked: 20, Sealed: 30}

	// The link is up, and slower than the guests.
	protected()
	f("[]", Spilling, "3 MiB of what waits are kept on disk, since the memory for them is used up: the oldest write not yet safe is 7.0 s old",
		Tick{Sense{OnDisk: 2<<20 + 1, Lag: 7 * time.Second}})
	since := m.Status().Since
	f("[]", Spilling, "; the spill takes no more: its disk is full", after(time.Second), Tick{Sense{OnDisk: 2 << 20, Full: true, NoSpill: "its disk is full"}})
	if m.Status().Since != since {
		t.Error("it spills since another time")
	}
	f("[Take]", Resync, "the buffers were full, or a disk has grown; the spill takes no more: its disk is full", Tick{Sense{OnDisk: 2 << 20, Full: true, NoSpill: "its disk is full", Lost: 1}})
	f("[Place Walk]", Resync, "the buffers were full, or a disk has grown; 2 MiB of what waits are kept on disk", Taken{Life: 1, Kind: Open, Lost: 1}, Placed{Life: 1, Kind: Open})
	protected()
	f("[]", Spilling, "", Tick{Sense{OnDisk: 1}})
	f("[]", Behind, "", Tick{Sense{Lag: 90 * time.Minute}}) // below two intervals, and not yet below one
	f("[]", Protected, "", Tick{Sense{Lag: time.Second}})

	// It is down.
	protected()
	f("[]", Disconnected, "with: cut", SessionDown{Reason: "cut"}, Tick{Sense{}})
	f("[]", Spilling, "1 MiB of what waits are kept on disk, since the memory for them is used up: connecting; the last try ended with: cut", Tick{Sense{OnDisk: 1}})
	f("[Take]", MarksOnly, "with: cut; the spill takes no more: its disk is full", Tick{Sense{OnDisk: 1, Lost: 1, NoSpill: "its disk is full"}})

	// What is there is lost.
	protected()
	f("[]", Spilling, "", SessionDown{Reason: "cut"}, Tick{Sense{OnDisk: 1}})
	f("[Draw]", MarksOnly, "what waited on the spill disk cannot be read back (it is damaged): ", SpillLost{"it is damaged"})
	f("[]", MarksOnly, "", SpillLost{"it is damaged"}, Drawn{2, 10})
	f("[OpenStream]", MarksOnly, "it is damaged", SessionUp{})
	for _, a := range m.Step(now, stood) {
		if b, ok := a.(Begin); ok && (b.MarkAll || b.Initial || b.Next != 21 || b.Incarnation != 10 || b.Life != 3) {
			t.Errorf("%+v", b)
		}
	}
	f("[]", Resync, "what waited on the spill disk could not be read back (it is damaged), so what had changed is read again", Tick{Sense{}})
	f("[Walk Draw]", MarksOnly, "it hangs", Begun{3}, SpillLost{"it hangs"}) // a resync's too
	protected()
	f("[OpenStream]", Protected, "", Retell{})
	f("[]", Protected, "", SpillLost{"it is damaged"}) // an answer for this life is under way
	f("[Resume]", Protected, "", Stood{Durable: 20, Incarnation: 9, Acked: 20, Sealed: 30})
	f("[Draw]", MarksOnly, "", SpillLost{"it is damaged"})
}
