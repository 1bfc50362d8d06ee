package wire

import (
	"context"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/wire/faultlink"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// row is one pair of ends that repeats the scripted exchange: what a session begins with is sent
// whole, and suffers a fault; the session after it sends what the target lacks, as in exchange,
// and when all has come begins again. So a fault costs one session and not two, and nearly all
// the time of trying every byte goes into handshakes.
type row struct {
	t       *testing.T
	records [][]byte
	net     *faultlink.Net
	senders sync.WaitGroup

	mu      sync.Mutex
	durable record.Seq // at the target
	acked   record.Seq // as the source heard, in the session
	session *Session   // the newest that stood
	name    string     // of the fault
}

// perRow is how many faults there are for one pair of ends; handler counts up to 100 sessions.
const perRow = 64

// quiet is how long a fault may go unnoticed: longer than any end waits for a sign of life.
const quiet = time.Minute

// inARow has faults at each byte from first on, in steps, up to the last of the total that the data
// connection carries after its handshake. Each fault must be met.
func inARow(t *testing.T, name string, records [][]byte, fault func(at int64) faultlink.Way, first, step, total int64) {
	for first <= total && !t.Failed() {
		synctest.Test(t, func(t *testing.T) {
			r := &row{t: t, records: records, net: new(faultlink.Net)}
			w := newWorld(t, r.net, nil)
			defer w.stop()
			w.target.onMessage, w.target.onRecord = r.opened, r.came
			source := newHandler(t)
			source.onOpened = func(s *Session) error { return s.Send(openStream()) }
			source.onMessage = r.heard
			stop := w.connect(source, nil)
			r.settle(0)
			for range perRow {
				if first > total || t.Failed() {
					break
				}
				way := fault(first)
				r.suffer(fmt.Sprintf("%s at %d", name, first), way, way.StallAt == total)
				first += step
			}
			stop()
			r.senders.Wait()
		})
	}
}

// opened answers the source with how far the target is.
func (r *row) opened(s *Session, _ Message) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return s.Send(&Stand{Stream: testStream, Durable: r.durable, Epoch: 1})
}

// came takes a record at the target, whole, once and in order.
func (r *row) came(s *Session, got *Received) error {
	defer got.Release()
	rec, err := record.Parse(got.Bytes())
	if err == nil {
		err = rec.VerifyPayload()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if err != nil || string(got.Bytes()) != string(r.records[rec.Seq-1]) {
		r.t.Errorf("%s: half a record came: %v", r.name, err)
		return errTest
	}
	if rec.Seq != r.durable+1 {
		r.t.Errorf("%s: record %d after %d", r.name, rec.Seq, r.durable)
	}
	r.durable = rec.Seq
	return s.Send(&Durable{testStream, r.durable})
}

// heard is what the source is told: it sends what the target lacks.
func (r *row) heard(s *Session, m Message) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch m := m.(type) {
	case *Stand:
		r.session, r.acked = s, m.Durable
		r.send(s, m.Durable+1)
	case *Durable:
		r.acked = m.Seq
	}
	return nil
}

func (r *row) send(s *Session, from record.Seq) {
	r.senders.Go(func() {
		for seq := from; int(seq) <= len(r.records); seq++ {
			if s.SendRecord(context.Background(), r.records[seq-1]) != nil {
				return
			}
		}
	})
}

// suffer sends all records from the first on, of which a fault meets the connection. A silent one
// may go unnoticed: nothing is missing.
func (r *row) suffer(name string, way faultlink.Way, silent bool) {
	before := r.net.Dialled("data")
	r.mu.Lock()
	r.durable, r.acked, r.name = 0, 0, name
	s := r.session
	r.mu.Unlock()
	r.net.From("data", faultlink.Faults{Up: way})
	r.send(s, 1)
	if r.settle(before) {
		return
	}
	if !silent {
		r.t.Errorf("%s: nobody met it", name)
	}
	r.net.Down()
	r.net.Up()
	r.settle(before)
}

// settle waits until a session stands whose data connection is not one of those before, and all records
// are acknowledged. It returns false when nobody missed the connection for a while.
func (r *row) settle(before int) bool {
	began := time.Now()
	for {
		r.mu.Lock()
		all := int(r.acked) == len(r.records)
		up := r.session != nil && r.session.Context().Err() == nil
		durable, name := r.durable, r.name
		r.mu.Unlock()
		met := r.net.Dialled("data") > before
		switch took := time.Since(began); {
		case all && up && met:
			if int(durable) != len(r.records) {
				r.t.Errorf("%s: %d of %d records came", name, durable, len(r.records))
			}
			return true
		case all && !met && took > quiet:
			return false
		case took > 10*time.Minute:
			r.t.Errorf("%s: the exchange does not end: %d of %d", name, durable, len(r.records))
			return false
		}
		time.Sleep(100 * time.Millisecond)
	}
}
