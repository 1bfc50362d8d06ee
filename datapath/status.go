package datapath

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/datapath/capture"
	"github.com/holdfast-dr/holdfast/datapath/deliver"
	"github.com/holdfast-dr/holdfast/datapath/group"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal"
	"github.com/holdfast-dr/holdfast/journal/failover"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// status is how a group stands at its source. What is not known is left out.
func (s *Source) status(ctx context.Context, f *flow) *holdfastv1.Group {
	lacks := f.freshLacks(ctx)
	tap, window := f.tap.Stats(), f.window.Stats()
	_, packing := f.pipe.stats()
	// What stands in a slot is captured; packing is a part of it but for its last moment.
	packing = max(packing, int64(tap.Slots-tap.Free)*capture.SlotBytes)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.lagLocked(f.tap.Lost())
	st := f.mu.machine.Status()
	g := &holdfastv1.Group{
		Name: f.cfg.Name, Id: f.cfg.ID.String(), Role: api.RoleSource,
		State: string(st.State), Reason: st.Reason, Since: api.Timestamp(st.Since),
		GuestBytesTotal: int64(tap.GuestBytes), GuestWritesTotal: int64(tap.GuestWrites),
		PackRawBytesTotal: int64(f.count.raw.Load()), PackStoredBytesTotal: int64(f.count.stored.Load()),
		WindowBytes: window.Bytes, WindowLimit: f.window.Limit(), SpillBytes: window.OnDisk, SpillLimit: s.spillLimit(f),
	}
	if at := f.mu.roster.Removed; at != 0 {
		g.State, g.Since = api.StateRemoved, api.Timestamp(time.Unix(0, at))
		g.Reason = "it is not protected any more: its filters serve its disks and capture nothing. Take it out of the file of this vra"
		return g
	}
	g.Compression, g.Codec = f.compression.String(), "lz4"
	if f.count.storing.Load() {
		g.Codec = "raw"
	}
	if session := f.mu.session; session != nil {
		g.Connections, g.ConnectionsWanted = int32(session.Connections()), int32(session.Wanted())
	}
	g.Priority = f.gate.Policy().Of(f.cfg.Name).String()
	if c, held := f.gate.HeldByCap(f.turn); held {
		g.HeldByCap = true
		if st.State != group.Protected {
			g.Reason = strings.TrimPrefix(g.Reason+"; the cap of "+c.String()+" holds it back", "; ")
		}
	}
	if n, now := f.mu.compared.counted(); now && n.Regions > 0 {
		g.Reason += fmt.Sprintf("; what is dirty from end to end is compared with what the target holds: %d MiB so far, of which %d KiB differ", n.Bytes>>20, n.Differ>>10)
	}
	if names, _ := f.unloggedLocked(); len(names) > 0 {
		g.Reason = strings.TrimPrefix(g.Reason+"; unlogged: the activity log of "+strings.Join(names, ", ")+" cannot be written, so that all of it is compared if this host crashes", "; ")
	}
	if p := s.peerOf(f.cfg); p != nil {
		g.WireBytesTotal = int64(p.counters.DataSent.Load() + p.counters.ControlSent.Load())
	}
	if f.mu.lagKnown && (time.Since(f.mu.heard) < silence || invariant.Planted("datapath/lag-of-the-silent")) {
		lag := f.mu.lag.Seconds()
		g.LagSeconds = &lag
	}
	uses := f.tap.Uses()
	for _, v := range f.mu.volumes {
		m := &holdfastv1.Volume{Name: v.Name, Id: uint32(v.ID), Bytes: v.Bytes}
		if n := lacks.dirty[v.ID]; lacks.known {
			m.DirtyBytes = &n
		}
		if n, told := uses[v.ID]; told {
			m.Connections = new(int32(n))
		}
		g.Volumes = append(g.Volumes, m)
	}
	if !lacks.known {
		return g
	}
	dirty := lacks.bytes()
	behind := window.Raw + packing + dirty
	g.BytesBehind = &behind
	g.EtaSeconds = f.etaLocked(window.Raw+packing, dirty)
	if f.mu.machine.Syncing() {
		g.Sync = &holdfastv1.Sync{DoneBytes: f.mu.sync.Done(), TotalBytes: f.mu.sync.Total()}
		if f.mu.ackRate.Warm() {
			g.Sync.BytesPerSecond = f.mu.ackRate.Rate()
		}
	}
	return g
}

// etaLocked is how many seconds it takes at the present rates; nil when it cannot be
// said. What stands in the window and has not arrived goes first, at the rate at which
// such things arrive. What is dirty goes at the rate of the resync, which has holes in it
// that take no time, and shares the link with guests; at that of the window as long as
// nothing of it has arrived.
func (f *flow) etaLocked(window, dirty int64) *float64 {
	if f.mu.endSend == nil {
		return nil
	}
	arrived, _ := f.arrivedLocked()
	a, ok1 := f.mu.carried.rate.Left(max(0, window-arrived))
	b, ok2 := f.mu.syncRate.Left(dirty)
	if !ok2 {
		b, ok2 = f.mu.carried.rate.Left(dirty)
	}
	if !ok1 || !ok2 {
		return nil
	}
	s := (a + b).Seconds()
	return &s
}

// create cuts a checkpoint and waits until the target lists it. unfrozen says why a freeze that was asked for failed.
func (f *flow) create(ctx context.Context, tag string, freeze bool) (c *holdfastv1.Checkpoint, unfrozen, err error) {
	if err := f.resting(); err != nil {
		return nil, nil, err
	}
	w := &wish{tag: tag, taken: make(chan struct{}), listed: make(chan struct{})}
	if freeze {
		unfrozen, err = f.createFrozen(ctx, w)
	} else {
		f.ask(w)
		err = f.awaitListed(ctx, w)
	}
	if err != nil {
		return nil, unfrozen, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case !freeze || unfrozen != nil:
	case w.cut.Freeze == record.NotAsked:
		unfrozen = errors.New("the guests were at rest, but the target is of an older release and does not note it")
	case w.cut.Freeze == record.FreezeFailed:
		unfrozen = errors.New("the cut had to be taken again, after the guests had gone on")
	}
	return &holdfastv1.Checkpoint{
		Id: strconv.FormatUint(w.cut.Checkpoint, 10), Time: api.Timestamp(time.Unix(0, w.cut.Wall)), Tag: tag, State: api.CheckpointVerifying,
		Consistency: consistency(w.cut.Freeze),
	}, unfrozen, nil
}

// ask wishes for a cut.
func (f *flow) ask(w *wish) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.nextAsk++
	w.id = f.mu.nextAsk
	f.mu.asks[w.id] = w
	f.stepLocked(group.CutAsked{Ask: w.id, Tag: w.tag, Freeze: w.freeze})
}

func (f *flow) awaitListed(ctx context.Context, w *wish) error {
	select {
	case <-w.listed:
		return nil
	case <-ctx.Done():
		return f.notListed(w)
	}
}

// notListed gives a wish up.
func (f *flow) notListed(w *wish) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.mu.asks, w.id)
	f.stepLocked(group.CutDropped{Ask: w.id})
	st := f.mu.machine.Status()
	return api.Errorf(api.Unavailable, "see status, and ask again", "the checkpoint is not listed yet: the group is %s: %s", st.State, st.Reason)
}

// status is how a group stands at its target.
func (t *Target) status(g *journal.Group) *holdfastv1.Group {
	info, st := g.Info(), g.State()
	link, _ := t.deliver.Link(info.ID)
	state, reason := targetState(st, link)
	if f := g.Failover(); f.State == failover.OnDisks {
		st.Err = nil // that it takes nothing is said by that
	}
	if s, r, ok := failoverState(g.Failover()); ok {
		if st.Err != nil {
			r += "; " + st.Err.Error()
		}
		state, reason = s, r
	}
	if reason == "" {
		reason = t.protection.trouble()
	}
	if reason == "" {
		reason = damageText(st)
	}
	if reason == "" {
		reason = st.UnreadView
	}
	m := &holdfastv1.Group{
		Name: info.Name, Id: info.ID.String(), Role: api.RoleTarget, State: state, Reason: reason,
		Since:          api.Timestamp(t.since(info.Name, state)),
		WireBytesTotal: int64(t.server.Counters().DataReceived.Load() + t.server.Counters().ControlReceived.Load()),
	}
	for _, p := range link.Streams {
		m.PackRawBytesTotal += int64(p.Raw)
		m.PackStoredBytesTotal += int64(p.Stored)
	}
	count := int64(st.Count)
	m.Checkpoints = &count
	if c, err := g.Checkpoint(st.Oldest); err == nil {
		m.Oldest = checkpointMessage(g.Shown(c))
	}
	if c, err := g.Checkpoint(st.Newest); err == nil {
		m.Newest = checkpointMessage(g.Shown(c))
	}
	for _, v := range g.Volumes() {
		m.Volumes = append(m.Volumes, &holdfastv1.Volume{Name: v.Name, Id: uint32(v.ID), Bytes: v.Bytes})
	}
	return m
}

// damageText says what is damaged where later checkpoints do not need it.
func damageText(st journal.GroupState) string {
	switch {
	case st.Damage == nil:
		return ""
	case st.Bad == 0:
		return "damage was found, and no checkpoint needs what it hit"
	case st.Bad == 1:
		return "1 older checkpoint is bad: see checkpoint list --state bad"
	}
	return fmt.Sprintf("%d older checkpoints are bad: see checkpoint list --state bad", st.Bad)
}

// targetState is what a target can say of a group by itself; the source knows more.
func targetState(st journal.GroupState, link deliver.Link) (state, reason string) {
	switch {
	case st.Err != nil:
		return api.StateError, st.Err.Error()
	case link.Refused != "" && !link.Connected:
		return api.StateError, link.Refused
	case !link.Connected:
		return api.StateDisconnected, "no source sends this group"
	case st.Initial:
		return api.StateInitialSync, "the first synchronisation is not complete"
	case st.Resync:
		return api.StateResync, "no checkpoint is listed until what differs was sent"
	}
	return api.StateProtected, ""
}

// since remembers when a state was first seen.
func (t *Target) since(name, state string) time.Time {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := t.mu.states[name]
	if s.state != state {
		s = stateSince{state, time.Now()}
		t.mu.states[name] = s
	}
	return s.since
}
