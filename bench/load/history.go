package load

import "sync"

// OpKind says what an operation does to its sectors.
type OpKind uint8

// The kinds of operation that change a disk.
const (
	OpWrite OpKind = iota + 1
	OpZero
	OpTrim // each sector zero, or as before
)

func (k OpKind) String() string {
	return [...]string{"?", "write", "zeroing", "trim"}[min(int(k), 3)]
}

// Op is one operation of a workload. Times are of the history's logical clock.
type Op struct {
	Number  uint64 // from 1, in order of issue
	Kind    OpKind
	Volume  int
	Sector  int64
	Sectors int64
	Issued  uint64
	Done    uint64 // 0: not answered
}

// History is what a workload did, in the order it was issued. It may be written to
// from many goroutines.
type History struct {
	mu    sync.Mutex
	clock uint64
	ops   []Op
}

// Issue notes that an operation is about to be sent, and returns its number.
func (h *History) Issue(kind OpKind, volume int, sector, sectors int64) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	h.ops = append(h.ops, Op{Number: uint64(len(h.ops) + 1), Kind: kind, Volume: volume, Sector: sector, Sectors: sectors, Issued: h.clock})
	return uint64(len(h.ops))
}

// Done notes that the operation was answered.
func (h *History) Done(number uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.clock++
	h.ops[number-1].Done = h.clock
}

// Ops returns a copy of what was issued so far.
func (h *History) Ops() []Op {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]Op(nil), h.ops...)
}

// Len returns how many operations were issued.
func (h *History) Len() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.ops)
}
