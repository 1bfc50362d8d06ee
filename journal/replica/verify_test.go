package replica

import (
	"errors"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
)

// TestVerify flips bytes of either file, and has a sector refuse to be read: exactly these
// blocks are damaged, and holes cost nothing.
func TestVerify(t *testing.T) {
	disk := faultdisk.New(4096)
	if err := disk.Mkdir("/r"); err != nil {
		t.Fatal(err)
	}
	const blocks = 4000
	v, err := Create(disk, "/r", Place{9, 1}, blocks*BlockBytes-512)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	rng := rand.New(rand.NewPCG(1, 1))
	p := make([]byte, 300*BlockBytes)
	for i := range p {
		p[i] = byte(rng.Uint32())
	}
	for _, first := range []int64{0, 1000, 3699} {
		n := min(int64(len(p)), v.Bytes()-first*BlockBytes)
		if err := errors.Join(v.Write(p[:n], first*BlockBytes), v.Sync()); err != nil {
			t.Fatal(err)
		}
	}
	read := 0
	pace := func(n int) error { read += n; return nil }
	if found, err := v.Verify(0, v.Bytes(), pace); err != nil || len(found) > 0 {
		t.Fatalf("found %v, %v", found, err)
	}
	if read < 3*len(p) || read > 4*len(p) {
		t.Errorf("%d bytes were read", read)
	}
	rot := func(name string, at int64) {
		if err := disk.Rot("/r/00000001"+name, at, 1); err != nil {
			t.Fatal(err)
		}
	}
	rot(".raw", 5*BlockBytes+17)
	rot(".raw", 6*BlockBytes)
	rot(".raw", 2000*BlockBytes+5) // in a hole
	rot(".sum", sumAt(1100)+2)
	rot(".raw", (blocks-1)*BlockBytes+1)
	want := []Damage{{Off: 5 * BlockBytes, Len: 2 * BlockBytes}, {Off: 1100 * BlockBytes, Len: BlockBytes}, {Off: 2000 * BlockBytes, Len: BlockBytes},
		{Off: (blocks - 1) * BlockBytes, Len: BlockBytes}}
	found, err := v.Verify(0, v.Bytes(), nil)
	if err != nil {
		t.Fatal(err)
	}
	same := slices.EqualFunc(found, want, func(a, b Damage) bool { return a.Off == b.Off && a.Len == b.Len && errors.Is(a.Err, ErrCorrupt) })
	if !same {
		t.Errorf("found %+v, want %+v", found, want)
	}
	if found, err := v.Verify(1000*BlockBytes, 50*BlockBytes, nil); err != nil || len(found) > 0 {
		t.Errorf("where nothing is damaged: %v, %v", found, err)
	}
	if _, err := v.Verify(0, v.Bytes(), func(int) error { return syscall.EINTR }); !errors.Is(err, syscall.EINTR) {
		t.Errorf("pace does not end it: %v", err)
	}
}
