package stripe

import (
	"bytes"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
)

func ok(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func seeded(seed int) *rand.Rand { return rand.New(rand.NewPCG(uint64(seed), 1)) }

// noise returns n bytes of the seed, aligned.
func noise(seed, n int) []byte {
	p := buf.Aligned(n)
	var key [32]byte
	le.PutUint64(key[:], uint64(seed))
	_, _ = rand.NewChaCha8(key).Read(p) // never fails; at the price of a copy
	return p
}

// put makes a durable file.
func put(t testing.TB, fs ioengine.FS, name string, p []byte) {
	t.Helper()
	f, err := fs.Open(name, ioengine.Create)
	ok(t, err)
	_, err = f.WriteAt(p, 0)
	ok(t, err)
	ok(t, f.Sync())
	ok(t, f.Close())
	ok(t, fs.SyncDir("/"))
}

func get(fs ioengine.FS, name string) ([]byte, error) {
	f, err := fs.Open(name, ioengine.ReadOnly)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	n, err := f.Size()
	if err != nil {
		return nil, err
	}
	p := make([]byte, n)
	if _, err := f.ReadAt(p, 0); err != nil && err != io.EOF {
		return nil, err
	}
	return p, nil
}

var testID = Identity{Group: 7, Number: 3, Life: 99}

const testSegment = "0000000000000003.seg"

// protectedDisk is a disk with a protected file of so many bytes.
func protectedDisk(t testing.TB, n int) (*faultdisk.Disk, []byte) {
	t.Helper()
	d := faultdisk.New(512)
	want := noise(n, n)
	put(t, d, testSegment, want)
	ok(t, Protect(d, testSegment, testID, nil))
	return d, want
}

func repaired(d ioengine.FS) ([]byte, Found, error) {
	var b bytes.Buffer
	f, err := Repair(d, testSegment, testID, &b, nil)
	return b.Bytes(), f, err
}
