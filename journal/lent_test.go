package journal

import (
	"errors"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// A record that is refused while the disk writes it from its memory is given back only when
// the disk has done with it.
func TestRefusedWhileWritten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		disk := faultdisk.New(512)
		cfg := config(disk)
		cfg.stageBytes = 4 << 10 // a large record is written before its round begins
		w, err := openWith(cfg)
		ok(t, err)
		s := newSource(77)
		s.open(true)
		s.close()
		ok(t, w.feed(s, 2))
		s.write(1)
		b, data := record.NewBatch(record.Limits{}), make([]byte, 28<<10)
		for i := range data {
			data[i] = byte(s.rng.Uint32())
		}
		s.ticket++
		b.Add(record.Piece{Volume: 1, Len: int64(len(data)), Ticket: s.ticket, Data: data})
		id, now := s.next()
		s.add(b.Seal(nil, id, now, record.NewCompressor()))
		small, large := s.records[2], s.records[3]

		syncs, writes := make(chan struct{}), make(chan struct{})
		inLog := func(name string) bool { return strings.Contains(name, "/log/") }
		disk.Inject(faultdisk.Fault{Ops: faultdisk.OpSync, Stall: syncs, Only: inLog})
		before, after := make(chan error, 1), make(chan error, 1)
		ok(t, w.group.Append(small, func(err error) { before <- err }))
		synctest.Wait() // its round waits for the sync
		disk.Inject(faultdisk.Fault{Ops: faultdisk.OpWrite, Stall: writes, Only: inLog})
		ok(t, w.group.Append(large, func(err error) { after <- err }))
		synctest.Wait()
		failed := errors.New("it takes no more")
		_ = w.group.stopTaking(failed)
		close(syncs)
		synctest.Wait()
		select {
		case err := <-after:
			after <- err
			t.Error("it was given back while the disk read it")
		default:
		}
		close(writes)
		<-before
		if err := <-after; !errors.Is(err, failed) {
			t.Errorf("refused with %v", err)
		}
		ok(t, w.store.Close())
	})
}
