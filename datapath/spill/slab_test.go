package spill

import "testing"

func TestSlabs(t *testing.T) {
	var s Slabs
	for _, n := range []int{1, 4096, 4097, 1 << 20, 8 << 20} {
		b := s.Get(n)
		if cap(b.P) < n || n > 4096 && cap(b.P) >= 2*n || len(b.P) != 0 {
			t.Errorf("%d bytes get a slab of %d", n, cap(b.P))
		}
		b.Release()
	}
	b := s.Get(1 << 20)
	b.P = append(b.P, "short"...)
	if b = s.Fit(b); cap(b.P) != 4096 || string(b.Bytes()) != "short" || b.Held() != 4096 {
		t.Errorf("%q stands in %d bytes", b.Bytes(), b.Held())
	}
	b.Release()
	defer func() {
		if recover() == nil {
			t.Error("a slab was released twice")
		}
	}()
	b.Release()
}
