package index

// arena is a list that grows without moving what it holds.
type arena[T any] struct {
	chunks []*[chunkLen]T
	n      int
}

const chunkLen = 1 << 12

// add puts v at the end and returns its index.
func (a *arena[T]) add(v T) uint32 {
	i := a.n
	if i/chunkLen == len(a.chunks) {
		a.chunks = append(a.chunks, new([chunkLen]T))
	}
	a.chunks[i/chunkLen][i%chunkLen] = v
	a.n++
	return uint32(i)
}

func (a *arena[T]) at(i uint32) *T { return &a.chunks[i/chunkLen][i%chunkLen] }
