package datapath

import (
	"context"
	"errors"

	"github.com/holdfast-dr/holdfast/datapath/spill"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Where the target orders the records of a stream, they go on whichever data connection
// takes them first. What a connection that was cut had is sent again, before anything
// new; wire/reorder says what that is, and how far the sender may go ahead.

// carryOrdered sends until that is over, and says why it is. It goes in legs: whenever
// something is to be sent again a leg ends, and the next one begins with that.
func (f *flow) carryOrdered(o sendOrder) error {
	defer f.turn.Withdraw()
	for {
		leg, end := context.WithCancel(o.ctx)
		f.mu.Lock()
		f.mu.endLeg = end
		f.mu.Unlock()
		r, err := f.lendPicked(o, leg)
		for err == nil {
			r, err = f.sendOrdered(o, leg, r)
		}
		over := o.ctx.Err() != nil || leg.Err() == nil && !errors.Is(err, wire.ErrMoved)
		end()
		if over {
			return err
		}
		f.turn.Withdraw()
	}
}

// lendPicked waits for the record that is next, and until it may go.
func (f *flow) lendPicked(o sendOrder, leg context.Context) (*spill.Record, error) {
	for {
		seq := f.picked(o)
		r, err := f.window.Lend(leg, seq)
		if err != nil {
			return nil, err
		}
		if r.Seq != seq { // it was acknowledged this moment
			r.Return()
			continue
		}
		if f.may(o, r) {
			return r, nil
		}
		r.Return()
		select {
		case <-f.acked:
		case <-leg.Done():
			return nil, leg.Err()
		}
	}
}

func (f *flow) picked(o sendOrder) record.Seq {
	f.mu.Lock()
	defer f.mu.Unlock()
	seq, _ := o.under.Pick()
	return seq
}

// may says whether r, which is next, may be sent now.
func (f *flow) may(o sendOrder, r *spill.Record) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if seq, _ := o.under.Pick(); seq != r.Seq {
		return false
	}
	_, sole := f.soleLocked(o)
	return sole || o.under.May(r.Seq, len(r.Bytes()))
}

// soleLocked is the one connection there is, when all that is under way is on it.
func (f *flow) soleLocked(o sendOrder) (line uint32, ok bool) {
	line, ok = o.session.Sole()
	return line, ok && o.under.Only(line)
}

// sendOrdered sends r, whose loan it ends, when it is the group's turn, and lends the
// record after it, offered before the turn ends if it may go: see sendOne.
func (f *flow) sendOrdered(o sendOrder, leg context.Context, r *spill.Record) (next *spill.Record, err error) {
	seq, bytes := r.Seq, len(r.Bytes())
	f.turn.Offer(o.session, bytes)
	if err := f.turn.Wait(leg); err != nil {
		r.Return()
		return nil, err
	}
	how := wire.Sending{Opening: o.opening, Pace: f.turn}
	f.mu.Lock()
	how.Line, how.Sole = f.soleLocked(o)
	may := how.Sole || o.under.May(seq, bytes)
	f.mu.Unlock()
	if !may { // a connection came, and what is under way on the other is more than it may overtake
		r.Return()
		return nil, wire.ErrMoved
	}
	line, err := o.session.SendOrdered(leg, r, how)
	if err != nil {
		return nil, err
	}
	if !invariant.Planted("datapath/ordered-uncounted") {
		f.count.sent.Add(int64(bytes))
	}
	if invariant.Planted("datapath/wrong-line") {
		line = 1 << 20
	}
	f.mu.Lock()
	o.under.Sent(seq, line, bytes)
	after, _ := o.under.Pick()
	f.mu.Unlock()
	if leg.Err() == nil {
		next = f.window.TryLend(after)
	}
	if next != nil && (next.Seq != after || !f.may(o, next)) {
		next.Return()
		next = nil
	}
	if next != nil && !invariant.Planted("datapath/turn-lost") {
		f.turn.Done(0, len(next.Bytes()))
		return next, nil
	}
	f.turn.Done(0, 0)
	if next != nil {
		return next, nil
	}
	return f.lendPicked(o, leg)
}

// lineLost is a data connection that was cut while others are left.
func (f *flow) lineLost(line uint32) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mu.under == nil {
		return
	}
	_, before := f.mu.under.Under()
	if !f.mu.under.Lost(line) {
		return
	}
	_, after := f.mu.under.Under()
	f.count.again.Add(uint64(after - before))
	if f.mu.endLeg != nil && !invariant.Planted("datapath/leg-goes-on") {
		f.mu.endLeg()
	}
}

// ackedLocked notes an acknowledgement: a sender may wait for it.
func (f *flow) ackedLocked(seq record.Seq) {
	if f.mu.under == nil {
		return
	}
	f.mu.under.Acked(seq)
	select {
	case f.acked <- struct{}{}:
	default:
	}
}

// connections is how many data connections there are to the target, at least 1.
func (f *flow) connections() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mu.session == nil {
		return 1
	}
	return max(1, f.mu.session.Connections())
}
