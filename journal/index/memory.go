package index

import (
	"bytes"
	"slices"
	"sync"
)

// Memory is a Map without a disk: for tests, and wherever the catalogue need not
// outlive its store. The zero value is empty.
type Memory struct {
	mu    sync.RWMutex
	pairs []Pair // ordered by key
}

func byKey(p Pair, key []byte) int { return bytes.Compare(p.Key, key) }

// Get implements Map.
func (m *Memory) Get(key []byte) (value []byte, ok bool, err error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	i, ok := slices.BinarySearchFunc(m.pairs, key, byKey)
	if !ok {
		return nil, false, nil
	}
	return m.pairs[i].Value, true, nil
}

// within returns the pairs from one key to another, as they are now.
func (m *Memory) within(from, to []byte) []Pair {
	m.mu.RLock()
	defer m.mu.RUnlock()
	i, _ := slices.BinarySearchFunc(m.pairs, from, byKey)
	j, _ := slices.BinarySearchFunc(m.pairs, to, byKey)
	return slices.Clone(m.pairs[i:max(i, j)])
}

// Back implements Map. It walks the map as it was when it began.
func (m *Memory) Back(from, to []byte, emit func(key, value []byte) bool) error {
	for _, p := range slices.Backward(m.within(from, to)) {
		if !emit(p.Key, p.Value) {
			break
		}
	}
	return nil
}

// Scan implements Map. It walks the map as it was when it began.
func (m *Memory) Scan(from, to []byte, emit func(key, value []byte) bool) error {
	for _, p := range m.within(from, to) {
		if !emit(p.Key, p.Value) {
			break
		}
	}
	return nil
}

// Update implements Map.
func (m *Memory) Update(set []Pair, del [][]byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range set {
		p = Pair{Key: bytes.Clone(p.Key), Value: bytes.Clone(p.Value)}
		if i, ok := slices.BinarySearchFunc(m.pairs, p.Key, byKey); ok {
			m.pairs[i] = p
		} else {
			m.pairs = slices.Insert(m.pairs, i, p)
		}
	}
	for _, k := range del {
		if i, ok := slices.BinarySearchFunc(m.pairs, k, byKey); ok {
			m.pairs = slices.Delete(m.pairs, i, i+1)
		}
	}
	return nil
}

// Close implements Map. What it holds stays.
func (m *Memory) Close() error { return nil }
