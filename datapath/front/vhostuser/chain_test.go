package vhostuser

import (
	"errors"
	"slices"
	"testing"
	"unsafe"
)

// testMemory is two pieces that lie behind each other for the guest, and apart for us.
func testMemory() *memory {
	a, b := make([]byte, 64<<10), make([]byte, 64<<10)
	return &memory{regions: []region{{guest: 0x1000, user: 0x100000, mem: a}, {guest: 0x11000, user: 0x200000, mem: b}}}
}

func putDesc(table []byte, i int, d descriptor) {
	p := table[descBytes*i:]
	le.PutUint64(p, d.addr)
	le.PutUint32(p[8:], d.bytes)
	le.PutUint16(p[12:], d.flags)
	le.PutUint16(p[14:], d.next)
}

func TestChain(t *testing.T) {
	const size = 16
	f := func(name string, list []descriptor, wantOut, wantIn []int, good bool) {
		t.Helper()
		m := testMemory()
		table := make([]byte, size*descBytes)
		inner := m.regions[0].mem[0x8000:]
		for i, d := range list {
			if i >= 8 { // what stands from the eighth on is the inner table
				putDesc(inner, i-8, d)
			} else {
				putDesc(table, i, d)
			}
		}
		var c chain
		err := c.walk(m, table, 0)
		if good != (err == nil) || err != nil && !errors.Is(err, errChain) {
			t.Errorf("%s: %v", name, err)
			return
		}
		lengths := func(parts [][]byte) (n []int) {
			for _, p := range parts {
				n = append(n, len(p))
			}
			return n
		}
		if good && (!slices.Equal(lengths(c.out), wantOut) || !slices.Equal(lengths(c.in), wantIn)) {
			t.Errorf("%s: %v and %v, want %v and %v", name, lengths(c.out), lengths(c.in), wantOut, wantIn)
		}
	}
	inner := func(n int, list ...descriptor) []descriptor {
		all := make([]descriptor, 8)
		all[0] = descriptor{0x9000, uint32(n) * descBytes, descIndirect, 0}
		return append(all, list...)
	}
	f("one", []descriptor{{0x1000, 16, 0, 0}}, []int{16}, nil, true)
	f("read", []descriptor{{0x1000, 16, descNext, 1}, {0x2000, 4096, descNext | descWrite, 2}, {0x3000, 1, descWrite, 0}}, []int{16}, []int{4096, 1}, true)
	f("across pieces", []descriptor{{0x10ff0, 0x20, 0, 0}}, []int{16, 16}, nil, true)
	f("to the end", []descriptor{{0x20fff, 1, descWrite, 0}}, nil, []int{1}, true)
	f("nothing", []descriptor{{0x1000, 0, descNext, 1}, {0x1000, 4, 0, 0}}, []int{4}, nil, true)
	f("beyond", []descriptor{{0x20fff, 2, 0, 0}}, nil, nil, false)
	f("below", []descriptor{{0xfff, 2, 0, 0}}, nil, nil, false)
	f("wraps", []descriptor{{^uint64(0), 2, 0, 0}}, nil, nil, false)
	f("4 GiB", []descriptor{{0x1000, ^uint32(0), 0, 0}}, nil, nil, false)
	f("next beyond", []descriptor{{0x1000, 16, descNext, size}}, nil, nil, false)
	f("loop", []descriptor{{0x1000, 1, descNext, 1}, {0x1000, 1, descNext, 0}}, nil, nil, false)
	f("read behind write", []descriptor{{0x1000, 1, descWrite | descNext, 1}, {0x1000, 1, 0, 0}}, nil, nil, false)
	f("indirect", inner(2, descriptor{0x1000, 16, descNext, 1}, descriptor{0x2000, 1, descWrite, 0}), []int{16}, []int{1}, true)
	f("indirect beyond", inner(2, descriptor{0x1000, 16, descNext, 2}), nil, nil, false)
	f("indirect in indirect", inner(2, descriptor{0x9000, 32, descIndirect, 0}), nil, nil, false)
	f("indirect of nothing", inner(0), nil, nil, false)
	f("indirect and more", []descriptor{{0x9000, 32, descIndirect | descNext, 1}}, nil, nil, false)
	f("indirect of half", []descriptor{{0x9000, 17, descIndirect, 0}}, nil, nil, false)
	f("indirect of many", []descriptor{{0x1000, (maxChain + 1) * descBytes, descIndirect, 0}}, nil, nil, false)
	f("indirect across pieces", []descriptor{{0x10ff0, 32, descIndirect, 0}}, nil, nil, false)
	f("indirect nowhere", []descriptor{{0x90000, 32, descIndirect, 0}}, nil, nil, false)
}

// FuzzChain: whatever stands in the tables, what a request reaches is the guest's memory, and
// its ranges are within the disk.
func FuzzChain(f *testing.F) {
	seed := make([]byte, 64*descBytes)
	putDesc(seed, 0, descriptor{0x1000, 16, descNext, 1})
	putDesc(seed, 1, descriptor{0x2000, 512, descNext | descWrite, 2})
	putDesc(seed, 2, descriptor{0x3000, 1, descWrite, 0})
	f.Add(seed, uint16(0))
	putDesc(seed, 0, descriptor{0x1000, 16 * 40, descIndirect, 1})
	f.Add(seed, uint16(0))
	f.Fuzz(func(t *testing.T, p []byte, head uint16) {
		const size = 64
		m := testMemory()
		table := make([]byte, size*descBytes)
		copy(table, p)
		copy(m.regions[0].mem, p) // headers and inner tables
		var r request
		if r.plain.walk(m, table, head) != nil {
			return
		}
		pieces := 0
		for _, part := range append(slices.Clone(r.plain.out), r.plain.in...) {
			pieces++
			if len(part) == 0 || !within(m, part) {
				t.Fatal("not the guest's memory")
			}
		}
		if pieces > 2*maxChain+2 {
			t.Fatalf("%d pieces", pieces)
		}
		const disk = 1 << 20
		if r.parse(disk) != nil {
			return
		}
		if r.kind <= blkWrite && (r.n <= 0 || r.off < 0 || r.off > disk-r.n) {
			t.Fatalf("%d bytes at %d", r.n, r.off)
		}
		for _, z := range r.ranges {
			if z.n < 0 || z.off < 0 || z.off > disk-z.n {
				t.Fatalf("%+v", z)
			}
		}
		if len(r.status) != 1 || !within(m, r.status) {
			t.Fatal("status")
		}
	})
}

func within(m *memory, p []byte) bool {
	at := uintptr(unsafe.Pointer(unsafe.SliceData(p)))
	for _, r := range m.regions {
		if begin := uintptr(unsafe.Pointer(unsafe.SliceData(r.mem))); at >= begin && at+uintptr(len(p)) <= begin+uintptr(len(r.mem)) {
			return true
		}
	}
	return false
}
