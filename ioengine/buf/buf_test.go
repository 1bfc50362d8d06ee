package buf

import (
	"sync"
	"testing"
	"testing/synctest"
	"unsafe"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

func TestAligned(t *testing.T) {
	for _, n := range []int{1, 511, 4096, 4097, 1 << 20} {
		b := Aligned(n)
		if len(b) != n || cap(b) != n || uintptr(unsafe.Pointer(&b[0]))%Align != 0 {
			t.Errorf("Aligned(%d): len %d, cap %d, address %p", n, len(b), cap(b), b)
		}
	}
}

func TestPoolIsBounded(t *testing.T) {
	p := NewPool(5000, 2)
	a, b := p.Get(), p.Get()
	if len(a.Bytes()) != 8192 || uintptr(unsafe.Pointer(&b.Bytes()[0]))%Align != 0 {
		t.Errorf("a buffer of %d bytes at %p", len(a.Bytes()), b.Bytes())
	}
	if _, ok := p.TryGet(); ok || p.Out() != 2 {
		t.Error("a pool of two gives three")
	}
	a.SetLen(10)
	a.Release()
	c, ok := p.TryGet()
	if !ok || c != a || c.Len() != c.Cap() {
		t.Error("a buffer that came home is not given out whole")
	}
	b.Release()
	c.Release()
	if p.Out() != 0 {
		t.Errorf("%d buffers out", p.Out())
	}
}

func TestGetWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := NewPool(1, 1)
		b := p.Get()
		got := false
		var wg sync.WaitGroup
		wg.Go(func() {
			p.Get().Release()
			got = true
		})
		synctest.Wait()
		if got {
			t.Error("Get did not wait")
		}
		b.Release()
		wg.Wait()
	})
}

func TestMisuse(t *testing.T) {
	panics := func(what string, f func()) {
		t.Helper()
		defer func() {
			if recover() == nil {
				t.Errorf("%s: no panic", what)
			}
		}()
		f()
	}
	p := NewPool(1, 0)
	b := p.Get()
	panics("length beyond the memory", func() { b.SetLen(b.Cap() + 1) })
	b.Release()
	panics("second Release", b.Release)
	panics("empty pool", func() { NewPool(0, 1) })
}

func TestReleasedIsPoisoned(t *testing.T) {
	p := NewPool(16, 1)
	b := p.Get()
	late := b.Bytes()
	late[5] = 1
	b.Release()
	if invariant.Enabled && (late[5] != 0xCC || late[0] != 0xCC) {
		t.Errorf("released memory holds %x", late[:8])
	}
}

func TestSteadyStateAllocatesNothing(t *testing.T) {
	p := NewPool(4096, 2)
	if n := testing.AllocsPerRun(100, func() { p.Get().Release() }); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

// Buffers of a row are aligned, of the size asked for, zero, and apart.
func TestRow(t *testing.T) {
	for _, count := range []int{1, 2, 4, 5} {
		for _, n := range []int{1, Align, 512 << 10, 1<<20 - 1, 1 << 20, 3 << 20} {
			row := Row(n, count)
			if len(row) != count {
				t.Fatalf("%d buffers, want %d", len(row), count)
			}
			for i, b := range row {
				if len(b) != RoundUp(n) || cap(b) != len(b) || uintptr(unsafe.Pointer(&b[0]))%Align != 0 {
					t.Errorf("%d x %d: buffer %d: %d bytes, room for %d, at %p", count, n, i, len(b), cap(b), b)
				}
				for _, at := range []int{0, len(b) - 1} {
					if b[at] != 0 {
						t.Errorf("%d x %d: buffer %d at %d is not zero, or not apart", count, n, i, at)
					}
					b[at]++
				}
			}
		}
	}
}
