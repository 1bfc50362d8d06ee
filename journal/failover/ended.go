package failover

import "slices"

// Ended says how a failover was ended, or given up before it began, and that its id begins none any
// more: what asked for it may come late, or twice.
type Ended struct {
	ID   string // at most MaxID bytes
	By   Ender
	Wall int64 // wall clock, ns: a label
	// Machines is how many connections its disks had when the timer took them away.
	Machines uint32
}

// Ender is what ended a failover.
type Ender uint8

// The enders. Their numbers are on disk.
const (
	ByWord    Ender = iota + 1 // somebody asked for it
	ByTimer                    // its time was over
	BeforeIt                   // somebody asked for its end, and it had not begun
	Succeeded                  // another one began after it
)

// MaxEnded is how many are remembered, the last ones: what asks for an older one comes later than
// that many failovers.
const MaxEnded = 64

// Note adds how one ended to what is remembered; it returns another list. The first word on a failover
// stands.
func Note(list []Ended, e Ended) []Ended {
	if _, ok := Find(list, e.ID); ok {
		return list
	}
	list = append(slices.Clone(list), e)
	return list[max(0, len(list)-MaxEnded):]
}

// Find finds how the failover with the ID ended.
func Find(list []Ended, id string) (Ended, bool) {
	i := slices.IndexFunc(list, func(e Ended) bool { return e.ID == id })
	if i < 0 {
		return Ended{}, false
	}
	return list[i], true
}
