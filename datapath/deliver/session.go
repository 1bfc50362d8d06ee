package deliver

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal"
	"github.com/holdfast-dr/holdfast/wire"
	"github.com/holdfast-dr/holdfast/wire/delta"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// session is one session with a source.
type session struct {
	target *Target
	wire   *wire.Session
	wake   chan struct{} // capacity 1: acks has something, or stopped
	ended  chan struct{} // sendAcks is over
	lacked chan struct{} // tellLacks is over
	asks   chan question // as many as a source has under way, of two lives of its streams
	told   chan struct{} // answer is over

	mu struct {
		sync.Mutex
		streams map[record.StreamID]*stream
		acks    map[record.StreamID]record.Seq // to be sent
		stopped bool
		pending int           // bytes of records given to the journal and not durable
		room    chan struct{} // closed when pending fell
	}
}

// maxPending is how many bytes of records a session may have in the journal's queue,
// which waits at twice that: waiting here ends with the session.
const maxPending = 32 << 20

// stream is one stream that a session opened; guarded by session.mu.
type stream struct {
	session *session
	id      record.StreamID
	in      record.GroupID
	group   *journal.Group
	state   streamState
	turn    uint64     // counts openings: what was appended in an earlier one is not acknowledged
	next    record.Seq // the first record to take, while reopened
	inc     record.Incarnation
	epoch   record.Epoch
}

type streamState uint8

const (
	closed   streamState = iota // records are dropped
	reopened                    // records are dropped until next comes
	open
)

func newSession(t *Target, s *wire.Session) *session {
	n := &session{target: t, wire: s, wake: make(chan struct{}, 1), ended: make(chan struct{}), lacked: make(chan struct{})}
	n.asks, n.told = make(chan question, 2*delta.FlightMost), make(chan struct{})
	n.mu.streams = make(map[record.StreamID]*stream)
	n.mu.acks = make(map[record.StreamID]record.Seq)
	n.mu.room = make(chan struct{})
	return n
}

// stop ends a session that is over.
func (n *session) stop() {
	n.mu.Lock()
	n.mu.stopped = true
	streams := maps.Clone(n.mu.streams)
	for _, st := range streams {
		st.state = closed
	}
	n.mu.Unlock()
	n.kick()
	for _, st := range streams {
		n.target.attach(st, false)
	}
	n.target.letGo(n, held{})
	<-n.ended
	<-n.lacked
	<-n.told
}

// open answers a source that wants to send a stream.
func (n *session) open(m *wire.OpenStream) error {
	log := n.target.log.With("group", m.GroupName, "stream", m.Stream, "peer", n.wire.Peer())
	n.closeStream(m.Stream)
	st, stand, err := n.admit(m)
	if err != nil {
		log.Warn("stream refused", "error", err)
		n.target.refused(m.Group, err)
		return n.wire.Send(n.refusal(m.Group, m.Stream, m.Epoch, err))
	}
	log.Info("stream opened", "durable", stand.Durable, "incarnation", m.Incarnation, "need_open", stand.NeedOpen)
	n.mu.Lock()
	st.turn++
	// A stream that was open in this session before may have records under way.
	st.inc, st.epoch = m.Incarnation, m.Epoch
	if st.next = stand.Durable + 1; st.turn == 1 {
		st.state = open
	} else {
		st.state = reopened
	}
	delete(n.mu.acks, m.Stream)
	n.mu.Unlock()
	n.target.attach(st, true)
	if err := n.wire.Send(&wire.Stand{
		Stream: m.Stream, Durable: stand.Durable, Incarnation: stand.Incarnation, Epoch: stand.Epoch, NeedOpen: stand.NeedOpen,
	}); err != nil {
		return err
	}
	if c, err := st.group.Latest(); err == nil {
		n.listed(m.Group, c)
	}
	return nil
}

// admit makes or finds the group and asks it to take the stream.
func (n *session) admit(m *wire.OpenStream) (*stream, journal.Standing, error) {
	g, err := n.target.store.OpenGroup(journal.GroupInfo{ID: m.Group, Name: m.GroupName, Lineage: m.Lineage})
	if err != nil {
		return nil, journal.Standing{}, err
	}
	n.target.listen(g)
	n.mu.Lock()
	st := n.mu.streams[m.Stream]
	if st == nil {
		st = &stream{session: n, id: m.Stream, in: m.Group, group: g}
		n.mu.streams[m.Stream] = st
	}
	n.mu.Unlock()
	if st.in != m.Group {
		return nil, journal.Standing{}, fmt.Errorf("stream %s is group %s's: %w", m.Stream, st.in, journal.ErrLineage)
	}
	volumes := make([]journal.VolumeInfo, len(m.Volumes))
	for i, v := range m.Volumes {
		volumes[i] = journal.VolumeInfo{ID: v.ID, Name: v.Name, Bytes: v.Bytes}
	}
	has := held{m.Group, m.Stream}
	first, err := n.target.hold(has, n)
	if err != nil {
		return nil, journal.Standing{}, err
	}
	err = g.SetVolumes(volumes)
	var stand journal.Standing
	if err == nil {
		stand, err = g.Admit(m.Stream, m.Epoch, m.Incarnation)
	}
	if err != nil && first {
		n.target.letGo(n, has)
	}
	return st, stand, err
}

func (n *session) closeStream(id record.StreamID) {
	n.mu.Lock()
	st := n.mu.streams[id]
	if st != nil {
		st.state = closed
	}
	n.mu.Unlock()
	if st != nil {
		n.target.attach(st, false)
	}
}

// everywhere takes a source's word about a group that it has a stream of.
func (n *session) everywhere(m *wire.Everywhere) {
	n.mu.Lock()
	var g *journal.Group
	for _, st := range n.mu.streams {
		if st.in == m.Group {
			g = st.group
		}
	}
	n.mu.Unlock()
	if g != nil {
		g.ListedEverywhere(m.Checkpoint)
	}
}

// record takes one record. What is dropped here was refused before, or is about to
// be: its source sends it again.
func (n *session) record(r *wire.Received) error {
	h := r.Header()
	st, turn, ok := n.expects(h)
	if st == nil {
		r.Release()
		return fmt.Errorf("%w: record %s of a stream that was not opened", wire.ErrProtocol, h.Identity)
	}
	if !ok {
		r.Release()
		return nil
	}
	rec, err := r.Record()
	if err != nil {
		r.Release()
		n.refuse(st, turn, fmt.Errorf("record %s: %w", h.Identity, err))
		return nil
	}
	if err := n.reserve(h.Size); err != nil {
		r.Release()
		return err
	}
	err = st.group.AppendContext(n.wire.Context(), rec, func(err error) {
		r.Release()
		n.unreserve(h.Size)
		if err != nil && !invariant.Planted("deliver/ack-what-failed") {
			n.refuse(st, turn, err)
			return
		}
		n.durable(st, turn, h)
	})
	if err != nil {
		r.Release()
		n.unreserve(h.Size)
		n.refuse(st, turn, err)
	}
	return nil
}

// reserve waits until the record may join those on their way into the journal.
func (n *session) reserve(bytes int) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for n.mu.pending > 0 && n.mu.pending+bytes > maxPending {
		room := n.mu.room
		n.mu.Unlock()
		select {
		case <-room:
		case <-n.wire.Context().Done():
		}
		n.mu.Lock()
		if n.wire.Context().Err() != nil {
			return context.Cause(n.wire.Context())
		}
	}
	n.mu.pending += bytes
	return nil
}

func (n *session) unreserve(bytes int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.mu.pending -= bytes
	close(n.mu.room)
	n.mu.room = make(chan struct{})
}

// expects says whether the record is to be taken, and in which opening of its stream.
func (n *session) expects(h record.Header) (st *stream, turn uint64, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if st = n.mu.streams[h.Stream]; st == nil {
		return nil, 0, false
	}
	mine := h.Incarnation == st.inc || invariant.Planted("deliver/any-life")
	if st.state == reopened && (h.Seq == st.next && mine || invariant.Planted("deliver/take-stragglers")) {
		st.state = open
	}
	return st, st.turn, st.state == open
}

// durable queues the ack of a record.
func (n *session) durable(st *stream, turn uint64, h record.Header) {
	n.target.progress(st, h)
	n.mu.Lock()
	if st.turn == turn && st.state == open {
		n.mu.acks[h.Stream] = max(n.mu.acks[h.Stream], h.Seq)
	}
	n.mu.Unlock()
	n.kick()
}

// refuse tells the source that a stream is not taken any more, once per opening.
func (n *session) refuse(st *stream, turn uint64, err error) {
	n.mu.Lock()
	first, epoch := st.turn == turn && st.state != closed, st.epoch
	if first {
		st.state = closed
	}
	n.mu.Unlock()
	if !first {
		return
	}
	n.target.log.Warn("stream is not taken any more", "stream", st.id, "error", err)
	n.target.attach(st, false)
	n.target.refused(st.in, err)
	_ = n.wire.Send(n.refusal(st.in, st.id, epoch, err)) // else the session is over
}

// refusal tells a source of that epoch why its stream is not taken.
func (n *session) refusal(group record.GroupID, id record.StreamID, epoch record.Epoch, err error) wire.Message {
	if g, known := n.target.store.Group(group); known && errors.Is(err, journal.ErrFenced) {
		now, granted := g.Grant()
		m := &wire.Fenced{Stream: id, Epoch: now, Granted: granted, Text: g.WhyFenced()}
		if epoch < now && n.wire.Speaks(m) && !invariant.Planted("deliver/fenced-unsaid") {
			return m
		}
	}
	return &wire.Refused{Stream: id, Code: codeOf(err), Text: err.Error()}
}

func (n *session) listed(id record.GroupID, c journal.Checkpoint) {
	_ = n.wire.Send(&wire.Listed{Group: id, Checkpoint: c.Number, Wall: c.Wall, Tag: c.Tag})
}

func (n *session) kick() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// sendAcks sends the newest ack of each stream whenever there is one: while one is
// being sent the next ones of a commit round become one.
func (n *session) sendAcks() {
	defer close(n.ended)
	for range n.wake {
		n.mu.Lock()
		acks, stopped := n.mu.acks, n.mu.stopped
		n.mu.acks = make(map[record.StreamID]record.Seq)
		n.mu.Unlock()
		if stopped {
			return
		}
		for id, seq := range acks {
			if n.wire.Send(&wire.Durable{Stream: id, Seq: seq}) != nil {
				break // the session is over: stop comes
			}
		}
	}
}
