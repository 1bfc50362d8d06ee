// Package deliver is the target's side of a session: records in, into the journal,
// and word back to the source once they are durable.
//
//	OpenStream ──► journal.Admit ──► Stand (or Refused), Listed of the newest checkpoint
//	record ──► parse ──► journal.Append ── durable ──► Durable, coalesced
//	                                    └─ failed ───► Refused; nothing more of the
//	                                                   stream until it is opened again
//
// What a source may rely on:
//   - Durable of a seq is sent after that record and all before it survive power loss.
//   - After Refused, what it had already sent of the stream is dropped, and after the
//     next Stand the first record taken is the one after Durable: what was under way
//     from before does no harm.
//   - What the target cannot give back any more as it is now is named (Lacking), until it
//     can; the source sends it again.
//   - What it compares (Compare) is answered in order, of all that was acknowledged when
//     it asked, at least; what cannot be read is said not to be known.
//   - A stream that the journal refuses does not end the session: the other streams go on.
//   - While a session that was let in with a stream lives, no other one is, whatever its incarnation.
//
// A record is parsed before anything of it is believed; one that does not parse, or
// belongs to a stream that was never opened, ends the session. The memory of records
// is the wire's and bounded there; a record's buffer goes home once it is durable.
package deliver

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal"
	"github.com/holdfast-dr/holdfast/wire"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Target hands what sessions bring to a store. It is a wire.Handler.
type Target struct {
	store *journal.Store
	log   *slog.Logger

	mu struct {
		sync.Mutex
		sessions map[*wire.Session]*session
		groups   map[record.GroupID]*groupLink
		holders  map[held]*session // who was let in with a stream, and lives
	}
}

// groupLink is how a group's sources stand; guarded by Target.mu.
type groupLink struct {
	streams map[*stream]bool // that are open
	since   time.Time        // streams became empty or not
	refused string           // the last refusal, until a stream is open again
	seqs    map[record.StreamID]Progress
}

// Progress is how far a stream has come since this process started.
type Progress struct {
	Durable record.Seq
	Records uint64
	Raw     uint64 // bytes before compression
	Stored  uint64 // bytes of records as they stand in the journal
}

// New returns a target for the store.
func New(store *journal.Store, log *slog.Logger) *Target {
	t := &Target{store: store, log: log}
	t.mu.sessions = make(map[*wire.Session]*session)
	t.mu.groups = make(map[record.GroupID]*groupLink)
	t.mu.holders = make(map[held]*session)
	for _, g := range store.Groups() {
		t.listen(g)
	}
	return t
}

// Opened implements wire.Handler.
func (t *Target) Opened(s *wire.Session) error {
	n := newSession(t, s)
	t.mu.Lock()
	t.mu.sessions[s] = n
	t.mu.Unlock()
	go n.sendAcks()
	go func() {
		defer close(n.lacked)
		n.tellLacks()
	}()
	go func() {
		defer close(n.told)
		n.answer()
	}()
	return nil
}

// Lost implements wire.Handler; it is for sources.
func (t *Target) Lost(*wire.Session, uint32) {}

// Closed implements wire.Handler. Records that are still on their way into the
// journal become durable all the same; their acks go nowhere.
func (t *Target) Closed(s *wire.Session, err error) {
	t.mu.Lock()
	n := t.mu.sessions[s]
	delete(t.mu.sessions, s)
	t.mu.Unlock()
	n.stop()
}

// Message implements wire.Handler.
func (t *Target) Message(s *wire.Session, m wire.Message) error {
	n := t.session(s)
	switch m := m.(type) {
	case *wire.OpenStream:
		return n.open(m)
	case *wire.CloseStream:
		n.closeStream(m.Stream)
		return nil
	case *wire.Everywhere:
		n.everywhere(m)
		return nil
	case *wire.Compare:
		return n.compare(m)
	}
	return fmt.Errorf("%w: %T is for sources", wire.ErrProtocol, m)
}

// Record implements wire.Handler.
func (t *Target) Record(s *wire.Session, r *wire.Received) error {
	return t.session(s).record(r)
}

func (t *Target) session(s *wire.Session) *session {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.mu.sessions[s]
}

// listen passes on each checkpoint of the group that is listed.
func (t *Target) listen(g *journal.Group) {
	id := g.Info().ID
	t.mu.Lock()
	known := t.mu.groups[id] != nil
	if !known {
		t.mu.groups[id] = &groupLink{streams: make(map[*stream]bool), since: time.Now(), seqs: make(map[record.StreamID]Progress)}
	}
	t.mu.Unlock()
	if known {
		return
	}
	g.OnListed(func(c journal.Checkpoint) {
		for _, n := range t.sessionsOf(id) {
			n.listed(id, c)
		}
	})
}

func (t *Target) sessionsOf(id record.GroupID) (ns []*session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for st := range t.mu.groups[id].streams {
		ns = append(ns, st.session)
	}
	return ns
}

// Link is how the sources of a group stand.
type Link struct {
	Connected bool
	Since     time.Time // it became so
	Refused   string    // why the last stream was refused, if none was opened since
	Streams   map[record.StreamID]Progress
}

// Link tells how the sources of a group stand; ok is false for a group never seen.
func (t *Target) Link(id record.GroupID) (Link, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	g := t.mu.groups[id]
	if g == nil {
		return Link{}, false
	}
	l := Link{Connected: len(g.streams) > 0, Since: g.since, Refused: g.refused, Streams: make(map[record.StreamID]Progress)}
	for id, p := range g.seqs {
		l.Streams[id] = p
	}
	return l, true
}

// held is a stream that a session has.
type held struct {
	group  record.GroupID
	stream record.StreamID
}

// errHeld says that another session has a stream.
var errHeld = errors.New("another source that is alive sends this stream: one of them is a clone of the other, or was restored")

// hold gives a stream to a session, unless another one has it. A session that has it now and is then
// not let in gives it back.
func (t *Target) hold(h held, n *session) (first bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch has := t.mu.holders[h]; {
	case has == n:
		return false, nil
	case has != nil && !invariant.Planted("deliver/highest-life-wins"):
		return false, fmt.Errorf("it is %v: %w", has.wire.Peer(), errHeld)
	}
	t.mu.holders[h] = n
	return true, nil
}

// letGo takes back what a session has: the given stream, or all for none.
func (t *Target) letGo(n *session, only held) {
	t.mu.Lock()
	defer t.mu.Unlock()
	maps.DeleteFunc(t.mu.holders, func(h held, by *session) bool { return by == n && (only == held{} || h == only) })
}

// attach notes that a stream is open, or is not any more.
func (t *Target) attach(st *stream, open bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	g := t.mu.groups[st.in]
	was := len(g.streams) > 0
	if delete(g.streams, st); open {
		g.streams[st] = true
		g.refused = ""
	}
	if was != (len(g.streams) > 0) {
		g.since = time.Now()
	}
}

// refused remembers why a stream of a group was refused, where the group is known.
func (t *Target) refused(id record.GroupID, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if g := t.mu.groups[id]; g != nil {
		g.refused = err.Error()
	}
}

// progress notes that a record of a stream is durable.
func (t *Target) progress(st *stream, h record.Header) {
	t.mu.Lock()
	defer t.mu.Unlock()
	g := t.mu.groups[st.in]
	p := g.seqs[h.Stream]
	if h.Seq > p.Durable {
		p = Progress{Durable: h.Seq, Records: p.Records + 1, Raw: p.Raw + uint64(h.Raw), Stored: p.Stored + uint64(h.Size)}
	}
	g.seqs[h.Stream] = p
}

// codeOf says to a source what kind of refusal an error of the journal is.
func codeOf(err error) wire.Code {
	for _, c := range []struct {
		is   error
		code wire.Code
	}{
		{errHeld, wire.CodeHeld},
		{journal.ErrFenced, wire.CodeFenced},
		{journal.ErrLineage, wire.CodeLineage},
		{journal.ErrCorrupt, wire.CodeCorrupt},
		{journal.ErrGap, wire.CodeGap},
		{journal.ErrNeedOpen, wire.CodeGap},
		{journal.ErrAdmit, wire.CodeOther},
		{journal.ErrRemoved, wire.CodeOther},
		{journal.ErrVolume, wire.CodeOther},
		{journal.ErrClosed, wire.CodeStopping},
	} {
		if errors.Is(err, c.is) && !invariant.Planted("deliver/all-is-storage") {
			return c.code
		}
	}
	return wire.CodeStorage
}
