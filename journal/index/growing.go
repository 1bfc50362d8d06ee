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
