package datapath

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/holdfast-dr/holdfast/datapath/group"
	"github.com/holdfast-dr/holdfast/datapath/spill"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire"
	"github.com/holdfast-dr/holdfast/wire/record"
	"github.com/holdfast-dr/holdfast/wire/reorder"
)

// sendOrder says what to send where; ctx ends when that is no longer so.
type sendOrder struct {
	ctx     context.Context
	session *wire.Session
	from    record.Seq
	opening uint32          // of the stream, where the target orders records
	under   *reorder.Source // and what is under way; guarded by flow.mu
}

// send lends records from the window and puts them on the wire, as the latest order says.
func (f *flow) send(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case o := <-f.orders:
			carry := f.carry
			if o.under != nil {
				carry = f.carryOrdered
			}
			if err := carry(o); o.ctx.Err() == nil {
				f.log.Debug("sending pauses", "error", err)
			}
		}
	}
}

// carry sends until that is over, and says why it is: its error is never nil.
func (f *flow) carry(o sendOrder) error {
	defer f.turn.Withdraw()
	r, err := f.window.Lend(o.ctx, o.from)
	for err == nil {
		r, err = f.sendOne(o, r)
	}
	return err
}

// sendOne sends r when it is the group's turn, returns it, and lends the record after it.
// If that stands ready, it is offered before the turn ends, or another group would have
// the wire after each record.
func (f *flow) sendOne(o sendOrder, r *spill.Record) (next *spill.Record, err error) {
	f.turn.Offer(o.session, len(r.Buffer.Bytes()))
	if err = f.turn.Wait(o.ctx); err == nil {
		err = o.session.SendPaced(o.ctx, r.Buffer.Bytes(), f.turn)
	}
	if err == nil {
		f.count.sent.Add(int64(len(r.Buffer.Bytes())))
	}
	if err == nil && o.ctx.Err() == nil {
		next = f.window.TryLend(r.Seq + 1)
	}
	seq := r.Seq
	f.window.Return(r)
	if err != nil {
		return nil, fmt.Errorf("send seq %d: %w", seq, err)
	}
	if next != nil && !invariant.Planted("datapath/turn-lost") {
		f.turn.Done(0, len(next.Buffer.Bytes()))
		return next, nil
	}
	f.turn.Done(0, 0)
	if next != nil {
		return next, nil
	}
	return f.window.Lend(o.ctx, seq+1)
}

// resumeLocked sends from the window, from seq from on.
func (f *flow) resumeLocked(from record.Seq) {
	f.stopSendLocked()
	if f.mu.session == nil {
		return
	}
	ctx, end := context.WithCancel(f.mu.session.Context())
	f.mu.endSend = end
	f.mu.ackRate.Reset() // the link may be another one
	f.mu.carried.reset()
	f.window.Rewind()
	select {
	case <-f.orders: // superseded before it began
	default:
	}
	o := sendOrder{ctx: ctx, session: f.mu.session, from: from, opening: f.mu.opening}
	f.mu.compared.resume(f.mu.session)
	f.mu.under = nil
	if o.session.Ordered() && o.opening > 0 {
		f.mu.under = reorder.NewSource(from)
		o.under = f.mu.under
	}
	f.orders <- o
}

func (f *flow) stopSendLocked() {
	if f.mu.endSend != nil {
		f.mu.endSend()
		f.mu.endSend = nil
	}
}

// sessionUp says that a session with the target stands. The machine hears of it once
// the filters have said which volumes there are.
func (f *flow) sessionUp(s *wire.Session) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.session, f.mu.announced, f.mu.opening = s, false, 0
	f.mu.heard = time.Now()
	f.mu.freezes = s.TakesFreezes()
	f.announceLocked()
}

func (f *flow) announceLocked() {
	if f.mu.session != nil && !f.mu.announced && f.mu.volumes != nil && f.mu.fatal == nil {
		f.mu.announced = true
		f.stepLocked(group.SessionUp{})
	}
}

// sessionDown says that none stands, and why, and in how long another is tried for. It
// comes for every attempt that failed.
func (f *flow) sessionDown(why error, next time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mu.session != nil {
		f.mu.heard = f.mu.session.Heard()
	}
	f.mu.session, f.mu.announced = nil, false
	f.mu.compared.resume(nil)
	f.stopSendLocked()
	f.stepLocked(group.SessionDown{Reason: why.Error(), Next: next})
}

// message takes a word of the target's about our stream or group.
func (f *flow) message(m wire.Message) error {
	switch m := m.(type) {
	case *wire.Stand:
		f.stood(m)
	case *wire.Refused:
		f.refused(m)
	case *wire.Fenced:
		f.fenced(m)
	case *wire.Durable:
		return f.durable(m.Seq)
	case *wire.Lacking:
		f.lacking(m)
	case *wire.Sums:
		c, _ := f.comparing()
		return c.answered(m)
	case *wire.Listed:
		f.mu.Lock()
		defer f.mu.Unlock()
		if m.Checkpoint > f.mu.listed.Checkpoint {
			f.mu.listed, f.mu.listedAt = *m, time.Now()
			f.window.Listed(m.Checkpoint)
		}
		if f.cuts != nil {
			f.cuts.listed(m.Checkpoint)
		}
		f.stepLocked(group.Listed{Number: m.Checkpoint})
		if !invariant.Planted("datapath/everywhere-untold") {
			f.everywhereLocked()
		}
	}
	return nil
}

// everywhereLocked tells the target which checkpoint is listed at all targets: it is the
// only one, so that is the newest which it listed.
func (f *flow) everywhereLocked() {
	m := &wire.Everywhere{Group: f.cfg.ID, Checkpoint: f.mu.listed.Checkpoint}
	if s := f.mu.session; s != nil && s.Speaks(m) {
		_ = s.Send(m) // else the session is over
	}
}

func (f *flow) stood(m *wire.Stand) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mu.session != nil {
		f.mu.opening = f.mu.session.Opening(m.Stream)
		f.mu.told = f.mu.telling
	}
	f.mu.foreign = 0
	if m.Incarnation != 0 && !f.mu.drawn.own(m.Incarnation) {
		f.mu.foreign = m.Incarnation
	}
	f.stepLocked(group.Stood{
		Durable: m.Durable, Incarnation: m.Incarnation, Acked: f.mu.ledger.Acked, Sealed: f.window.Next() - 1,
		MarksNew: f.marksNew, Unfinished: f.mu.ledger.Unfinished, Foreign: f.mu.foreign != 0,
	})
	// What stands there is acknowledged too, if it is of this life.
	if m.Incarnation == f.mu.inc && m.Durable < f.window.Next() {
		f.ackLocked(m.Durable)
	}
}

func (f *flow) refused(m *wire.Refused) {
	f.count.refusals.Add(1)
	r := group.Refused{Text: m.Text, Retry: retryRefused}
	switch m.Code {
	case wire.CodeStorage:
		r.Retry = retryStorage
	case wire.CodeFenced: // whether another one has sent anything shows when this one is let in
		r.Retry, r.Outdrawn = retryOutdrawn, true
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stopSendLocked()
	f.stepLocked(r)
}

// fenced takes the target's word that a failover has raised the epoch: the source stands by, or goes
// on in the epoch that it is granted.
func (f *flow) fenced(m *wire.Fenced) {
	f.count.refusals.Add(1)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.stopSendLocked()
	switch {
	case m.Epoch <= f.mu.epoch:
		f.stepLocked(group.Refused{Text: m.Text, Retry: retryRefused})
	case !m.Granted:
		f.stepLocked(group.Refused{Text: m.Text, Retry: retryRefused, Fenced: true})
	default:
		if !invariant.Planted("datapath/epoch-unkept") {
			if err := f.epochs.put(m.Epoch); err != nil {
				f.failLocked(fmt.Errorf("keep the epoch: %w", err))
				return
			}
		}
		f.log.Info("epoch granted", "epoch", m.Epoch, "before", f.mu.epoch)
		f.mu.epoch = m.Epoch
		f.stepLocked(group.Granted{})
	}
}

// errAck ends a session whose target acknowledges what was never sent.
var errAck = errors.New("the target acknowledges what was not sent")

func (f *flow) durable(seq record.Seq) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mu.endSend == nil {
		return nil // of before a refusal; the next Stand says it again
	}
	if seq >= f.window.Next() {
		return fmt.Errorf("%w: seq %d", errAck, seq)
	}
	f.ackLocked(seq)
	return nil
}

// ackLocked frees what is durable at the target, notes that it is, and only then lets
// the filters forget their marks of it.
func (f *flow) ackLocked(seq record.Seq) {
	a, err := f.window.Ack(seq)
	if err == nil {
		f.ackedLocked(seq)
	}
	if err != nil || a.Records == 0 || f.mu.fatal != nil {
		return
	}
	f.count.acked.Add(uint64(a.Raw))
	if a.Oldest != 0 {
		f.observeAck(time.Duration(monotonic() - a.Oldest))
	}
	if f.mu.ledger.Acked = max(f.mu.ledger.Acked, seq); !invariant.Planted("datapath/forget-acked") {
		f.keepLocked()
	}
	if f.mu.fatal != nil {
		return
	}
	f.mu.syncAcked = a.Synced
	f.mu.sync.Acked(a.Synced - f.mu.syncBase)
	f.durableLocked(a.Through)
	f.stepLocked(group.Acked{})
}

// keepLocked writes the ledger. A run directory that takes no 32 bytes is broken: the
// group stops before it publishes anything that it could not remember.
func (f *flow) keepLocked() {
	if err := f.ledger.put(f.mu.ledger); err != nil {
		f.failLocked(fmt.Errorf("keep the ledger: %w", err))
	}
}
