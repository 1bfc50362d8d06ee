package view

import (
	"bytes"
	"sync/atomic"
	"testing"

	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/segment"
)

// countedLog counts reads.
type countedLog struct {
	Log
	reads atomic.Int64
}

func (l *countedLog) ReadAt(p []byte, pos segment.Pos) error {
	l.reads.Add(1)
	return l.Log.ReadAt(p, pos)
}

// A block that is asked for once is only noted; asked for again it is kept, whole.
func TestKeptOnceAskedForAgain(t *testing.T) {
	w := newWorld(t, 3)
	log, cache := &countedLog{Log: w.log}, index.NewCache(4<<20)
	v, err := New(Config{Log: log, Versions: w.versions, At: at(12), Cache: cache, Owner: cache.Owner(),
		Disks: []Disk{{Volume: Volume{ID: 1, Bytes: testBytes}, Replica: w.replica}}})
	must(t, err)
	d, _ := v.Device(1)
	found, err := w.versions.Lookup(nil, 1, 0, testBytes, at(12))
	must(t, err)
	var piece *index.Piece
	for i := range found {
		if p := &found[i]; p.In == index.InLog && p.Len >= 2048 && p.BlockOff+1024 < p.Block.Raw {
			piece = p
		}
	}
	if piece == nil {
		t.Fatal("nothing of the log")
	}
	read := func(off, n int64) int64 {
		t.Helper()
		before, p := log.reads.Load(), make([]byte, n)
		must(t, d.ReadAt(p, off))
		if !bytes.Equal(p, w.images[12][off:off+n]) {
			t.Errorf("%d bytes at %d differ", n, off)
		}
		return log.reads.Load() - before
	}
	if n, kept := read(piece.Off, 512), cache.Bytes(); n != 1 || kept != 0 {
		t.Errorf("first: %d reads, %d bytes kept", n, kept)
	}
	if n, kept := read(piece.Off, 512), cache.Bytes(); n != 1 || kept < int64(piece.Block.Raw) {
		t.Errorf("again: %d reads, %d bytes kept", n, kept)
	}
	if n := read(piece.Off+1024, 1024); n != 0 {
		t.Errorf("then: %d reads", n)
	}
	must(t, v.Close())
}
