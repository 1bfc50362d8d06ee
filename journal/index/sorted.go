package index

import (
	"bytes"
	"iter"
	"slices"
)

// change is a key's new value, or that the key is gone.
type change struct {
	key, value []byte
	gone       bool
}

func (c *change) bytes() int64 { return int64(len(c.key)+len(c.value)) + changeBytes }

// changeBytes is what a change takes beside its key and value: two slices, a flag, and
// what their allocations are rounded up by.
const changeBytes = 96

// sorted is changes ordered by key, in chunks so that none is far to move. The zero value
// is empty. It is not for concurrent use.
type sorted struct {
	chunks [][]change // none empty
	bytes  int64
}

const chunkChanges = 512

// find returns the place of the first change with a key not below k.
func (s *sorted) find(k []byte) (chunk, at int, found bool) {
	chunk, _ = slices.BinarySearchFunc(s.chunks, k, func(c []change, k []byte) int { return bytes.Compare(c[len(c)-1].key, k) })
	if chunk == len(s.chunks) {
		return chunk, 0, false
	}
	at, found = slices.BinarySearchFunc(s.chunks[chunk], k, func(c change, k []byte) int { return bytes.Compare(c.key, k) })
	return chunk, at, found
}

func (s *sorted) get(k []byte) (change, bool) {
	i, j, found := s.find(k)
	if !found {
		return change{}, false
	}
	return s.chunks[i][j], true
}

// set keeps the change, in place of one with the same key.
func (s *sorted) set(c change) {
	i, j, found := s.find(c.key)
	s.bytes += c.bytes()
	if found {
		s.bytes -= s.chunks[i][j].bytes()
		s.chunks[i][j] = c
		return
	}
	if i == len(s.chunks) { // beyond all
		if i == 0 {
			s.chunks = [][]change{{c}}
			return
		}
		i--
		j = len(s.chunks[i])
	}
	s.chunks[i] = slices.Insert(s.chunks[i], j, c)
	if len(s.chunks[i]) > chunkChanges {
		// Keys that come in order fill their chunks.
		half := len(s.chunks[i]) / 2
		if j == len(s.chunks[i])-1 {
			half = j
		}
		rest := slices.Clone(s.chunks[i][half:])
		s.chunks[i] = slices.Delete(s.chunks[i], half, len(s.chunks[i]))
		s.chunks = slices.Insert(s.chunks, i+1, rest)
	}
}

func (s *sorted) remove(k []byte) {
	i, j, found := s.find(k)
	if !found {
		return
	}
	s.bytes -= s.chunks[i][j].bytes()
	s.chunks[i] = slices.Delete(s.chunks[i], j, j+1)
	if len(s.chunks[i]) == 0 {
		s.chunks = slices.Delete(s.chunks, i, i+1)
	}
}

func (s *sorted) empty() bool { return len(s.chunks) == 0 }

// within gives the changes with keys in [from, to), in order or backwards.
func (s *sorted) within(back bool, from, to []byte) iter.Seq[change] {
	return func(yield func(change) bool) {
		if !back {
			i, j, _ := s.find(from)
			for ; i < len(s.chunks); i, j = i+1, 0 {
				for _, c := range s.chunks[i][j:] {
					if bytes.Compare(c.key, to) >= 0 || !yield(c) {
						return
					}
				}
			}
			return
		}
		i, j, _ := s.find(to)
		for ; i >= 0; i-- {
			if i < len(s.chunks) {
				for _, c := range slices.Backward(s.chunks[i][:j]) {
					if bytes.Compare(c.key, from) < 0 || !yield(c) {
						return
					}
				}
			}
			if i > 0 {
				j = len(s.chunks[i-1])
			}
		}
	}
}
