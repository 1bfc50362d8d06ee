package index

// growing is a list that hardly moves what it holds: the first of its chunks grows, the
// others are whole at once. So a short list is small.
type growing[T any] struct {
	chunks [][]T
	n      int
}

const (
	growShift = 11
	growLen   = 1 << growShift
	growFirst = 16
)

// add puts v at the end and returns its index.
func (g *growing[T]) add(v T) uint32 {
	i := g.n
	if i>>growShift == len(g.chunks) {
		size := growLen
		if i == 0 {
			size = growFirst
		}
		g.chunks = append(g.chunks, make([]T, 0, size))
	}
	c := &g.chunks[i>>growShift]
	*c = append(*c, v)
	g.n++
	return uint32(i)
}

func (g *growing[T]) at(i uint32) *T { return &g.chunks[i>>growShift][i&(growLen-1)] }

// bytes is what the list takes, its elements of so many bytes each.
func (g *growing[T]) bytes(each int64) int64 {
	if len(g.chunks) == 0 {
		return 0
	}
	return (int64(cap(g.chunks[0])) + int64(len(g.chunks)-1)*growLen) * each
}

// hashed is a set of indexes, found by a hash of what they stand for. Zero is free.
type hashed struct {
	slots []uint32 // index plus one
	n     int
}

// find returns the slot that holds an index for which same says true, or the free one
// where it belongs.
func (h *hashed) find(hash uint64, same func(uint32) bool) (slot int, found bool) {
	if len(h.slots) == 0 {
		return -1, false
	}
	mask := len(h.slots) - 1
	for slot = int(hash>>20) & mask; ; slot = (slot + 1) & mask {
		i := h.slots[slot]
		if i == 0 {
			return slot, false
		}
		if same(i - 1) {
			return slot, true
		}
	}
}

// put sets the free slot that find returned to i; hash is of any index.
func (h *hashed) put(slot int, i uint32, hash func(uint32) uint64) {
	h.n++
	if h.n*4 <= len(h.slots)*3 {
		h.slots[slot] = i + 1
		return
	}
	old := h.slots
	h.slots = make([]uint32, max(2*len(old), 32))
	for _, o := range append(old, i+1) {
		if o != 0 {
			s, _ := h.find(hash(o-1), func(uint32) bool { return false })
			h.slots[s] = o
		}
	}
}
