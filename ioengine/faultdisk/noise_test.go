package faultdisk

import (
	"bytes"
	"testing"
)

func TestNoise(t *testing.T) {
	make := func(n int, seed uint64) []byte {
		p := make([]byte, n)
		Noise(p, seed)
		return p
	}
	if !bytes.Equal(make(1001, 7), make(1001, 7)) {
		t.Error("two of one seed differ")
	}
	a := make(4096, 7)
	if bytes.Equal(a, make(4096, 8)) {
		t.Error("two seeds make the same")
	}
	var seen [256]bool
	for _, b := range a {
		seen[b] = true
	}
	for b, ok := range seen {
		if !ok {
			t.Errorf("no byte of 4096 is %#x", b)
		}
	}
}
