package wire

import (
	"bytes"
	"context"
	"errors"
	"testing"
	"testing/synctest"

	"github.com/holdfast-dr/holdfast/wire/faultlink"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Records are verified as they come, whether many are held or none, and one that is wrong is
// handed on all the same: who takes it finds out what is wrong.
func TestRecordsAreVerifiedAsTheyCome(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, &faultlink.Net{}, nil)
		defer w.stop()
		var held []*Received
		far := 0
		w.target.onRecord = func(_ *Session, r *Received) error {
			if held = append(held, r); r.far() {
				far++
			}
			return nil
		}
		source := newHandler(t)
		stop := w.connect(source, nil)
		defer stop()
		s := <-source.opened
		var records [][]byte
		for seq := range record.Seq(9) {
			records = append(records, large(seq+1, 600<<10))
		}
		r, err := record.Parse(records[0])
		if err != nil {
			t.Fatal(err)
		}
		tables := r.TablesEnd()
		records[0][tables+100] ^= 1
		records[6][tables+300<<10] ^= 1
		records[7][tables-1] ^= 1
		for _, rec := range records {
			if err := s.SendRecord(context.Background(), rec); err != nil {
				t.Fatal(err)
			}
		}
		synctest.Wait()
		if len(held) != len(records) || far == 0 || far == len(held) {
			t.Fatalf("%d of %d records came, %d of them past the caches", len(held), len(records), far)
		}
		for i, r := range held {
			if !bytes.Equal(r.Bytes(), records[i]) {
				t.Errorf("record %d: other bytes", i)
			}
			rec, err := r.Record()
			if err == nil {
				err = rec.VerifyPayload()
			}
			if wrong := i == 0 || i == 6 || i == 7; errors.Is(err, record.ErrCorrupt) != wrong || r.arrived != (i != 7) {
				t.Errorf("record %d: %v", i, err)
			}
			r.Release()
		}
	})
}
