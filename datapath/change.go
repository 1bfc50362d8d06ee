package datapath

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/datapath/capture"
	"github.com/holdfast-dr/holdfast/datapath/dirty"
	"github.com/holdfast-dr/holdfast/datapath/group"
	"github.com/holdfast-dr/holdfast/datapath/roster"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// intake is which volumes' writes feed takes: of each those with a ticket below until. It is
// replaced as a whole, never changed.
type intake map[record.VolumeID]taken

type taken struct {
	until   record.Ticket
	joining bool // its sync reads are no part of what checkpoints wait for
}

const forever = ^record.Ticket(0)

// openRoster reads what was asked of the group before, and keeps what the configuration says now.
func (f *flow) openRoster(dataDir string) error {
	f.rosterName = filepath.Join(dataDir, "group-"+f.cfg.ID.String())
	p, err := os.ReadFile(f.rosterName)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	r := roster.Roster{Paused: f.cfg.Paused}
	if err == nil {
		if r, err = roster.Parse(p); err != nil {
			return fmt.Errorf("%s: %w", f.rosterName, err)
		}
	}
	var configured []roster.Volume
	for _, v := range f.cfg.Volumes {
		configured = append(configured, roster.Volume{ID: v.ID, Name: v.Name})
	}
	if r.Configure(configured) {
		if err := writeDurably(f.rosterName, r.Encode()); err != nil {
			return err
		}
	}
	f.mu.roster = r
	f.mu.admitted = make(map[record.VolumeID]bool)
	f.mu.until = make(map[record.VolumeID]record.Ticket)
	f.intakeLocked()
	return nil
}

// change changes what is asked of the group: durably, and then in what is done.
func (f *flow) change(do func(*roster.Roster) error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.changeLocked(do)
}

func (f *flow) changeLocked(do func(*roster.Roster) error) error {
	if f.mu.fatal != nil {
		return f.mu.fatal
	}
	next := f.mu.roster.Clone()
	if err := do(&next); err != nil {
		return err
	}
	if f.mu.roster.Removed != 0 {
		if next.Removed != f.mu.roster.Removed || string(next.Encode()) != string(f.mu.roster.Encode()) {
			return roster.ErrRemoved
		}
		return nil
	}
	if !invariant.Planted("datapath/change-not-kept") {
		if err := writeDurably(f.rosterName, next.Encode()); err != nil {
			return fmt.Errorf("keep what is asked of the group: %w", err)
		}
	}
	before := f.mu.roster
	f.mu.roster = next
	if f.mu.endJoin != nil { // that may not be wanted any more, or wait for what was asked now
		f.mu.endJoin()
	}
	for _, v := range before.Wanted() {
		if next.Phase(v.ID) == roster.Gone {
			// Cuts whose tickets were taken name it, and need what comes before them.
			f.mu.until[v.ID] = f.tap.LastTicket() + 1
			delete(f.mu.admitted, v.ID)
		}
	}
	if next.Removed != 0 {
		f.tap.Leave()
	}
	f.followLocked()
	f.intakeLocked()
	f.serveLocked()
	if before.Rests() != next.Rests() {
		f.pauseLocked()
	}
	select {
	case f.changed <- struct{}{}:
	default:
	}
	return nil
}

func (f *flow) pauseLocked() {
	if f.mu.roster.Rests() {
		f.stepLocked(group.Pause{})
	} else {
		f.stepLocked(group.Unpause{})
	}
}

// followLocked tells the tap which filters there are, and which the group can do without.
func (f *flow) followLocked() {
	for _, socket := range f.mu.roster.Sockets(f.cfg.Filters) {
		f.tap.Follow(socket, f.mu.roster.Needed(socket))
	}
}

// intakeLocked works out which writes feed takes from now on.
func (f *flow) intakeLocked() {
	in := make(intake)
	for _, v := range f.mu.roster.Volumes {
		switch {
		case v.Phase == roster.Member:
			in[v.ID] = taken{until: forever}
		case v.Phase == roster.Joining, v.Phase == roster.Adding && f.mu.admitted[v.ID]:
			in[v.ID] = taken{until: forever, joining: true}
		case v.Phase == roster.Gone && f.mu.until[v.ID] > 0:
			in[v.ID] = taken{until: f.mu.until[v.ID]}
		}
	}
	f.intake.Store(&in)
}

// serveLocked looks which of the group's volumes filters serve, and has the target told when
// that is news. The first time is filtersLocked's.
func (f *flow) serveLocked() {
	if f.mu.volumes == nil {
		return
	}
	served, _ := f.tap.Volumes()
	was := f.mu.volumes
	f.mu.volumes = f.wantedOf(served)
	for _, v := range f.mu.volumes {
		i := slices.IndexFunc(was, func(w capture.VolumeInfo) bool { return w.ID == v.ID && w.Name == v.Name })
		if i >= 0 && v.Bytes > was[i].Bytes {
			f.log.Info("a volume has grown: what is new of it is read", "volume", v.Name, "bytes", v.Bytes, "before", was[i].Bytes)
		}
		if i < 0 {
			f.learnLocked()
			f.stepLocked(group.Retell{})
			return
		}
	}
}

// wantedOf are those that the group has. One may have grown; a filter that is away, or has come back with
// less, makes none smaller.
func (f *flow) wantedOf(served []capture.VolumeInfo) (wanted []capture.VolumeInfo) {
	for _, v := range served {
		if f.mu.roster.Phase(v.ID) == roster.Gone {
			continue
		}
		for _, have := range f.mu.volumes {
			if have.ID == v.ID {
				v.Bytes = max(v.Bytes, have.Bytes)
			}
		}
		wanted = append(wanted, v)
	}
	return wanted
}

// learnLocked keeps which filter serves which volume.
func (f *flow) learnLocked() {
	next, news := f.mu.roster.Clone(), false
	for id, socket := range f.tap.Sockets() {
		if next.Phase(id) != roster.Gone && next.Learn(id, socket) {
			news = true
		}
	}
	if !news {
		return
	}
	if err := writeDurably(f.rosterName, next.Encode()); err != nil {
		f.log.Warn("which filter serves which volume is not kept", "error", err)
		return
	}
	f.mu.roster = next
	f.followLocked()
}

// tend does what takes its time of what was asked: it marks what is to be sent again, and
// has volumes join, until ctx ends.
func (f *flow) tend(ctx context.Context) {
	f.thawLeft(ctx)
	for said := ""; ; {
		err := f.tendOnce(ctx)
		if ctx.Err() != nil {
			return
		}
		if text := fmt.Sprint(err); err != nil && text != said {
			said = text // once, not at every try
			f.log.Warn("what was asked of the group is not done yet", "error", err)
		}
		select {
		case <-ctx.Done():
			return
		case <-f.changed:
		case <-time.After(tendEvery):
		}
	}
}

func (f *flow) tendOnce(ctx context.Context) error {
	f.mu.Lock()
	r := f.mu.roster.Clone()
	told, ready := f.mu.told, f.mu.volumes != nil
	f.mu.Unlock()
	if !ready {
		return nil
	}
	for _, id := range r.Again {
		if err := f.sendAgain(ctx, id); err != nil {
			return err
		}
	}
	for _, v := range r.Wanted() {
		var err error
		switch {
		case v.Phase == roster.Adding && told[v.ID] > 0:
			err = f.beginJoining(ctx, v)
		case v.Phase == roster.Joining:
			err = f.join(ctx, v)
		}
		if err != nil {
			return fmt.Errorf("volume %s: %w", v.Name, err)
		}
	}
	return nil
}

// sendAgain marks a volume as a whole: a resync sends it.
func (f *flow) sendAgain(ctx context.Context, id record.VolumeID) error {
	f.mu.Lock()
	f.mu.plain = true
	f.stepLocked(group.Forced{})
	f.mu.Unlock()
	if err := f.markAll(ctx, id); err != nil {
		return err
	}
	f.log.Info("all of a volume is sent again: somebody asked for it", "volume", id)
	return f.change(func(r *roster.Roster) error { r.Marked(id); return nil })
}

func (f *flow) markAll(ctx context.Context, id record.VolumeID) error {
	ctx, cancel := context.WithTimeout(ctx, askFilters)
	defer cancel()
	if err := f.tap.MarkAll(ctx, id); err != nil {
		return fmt.Errorf("mark volume %d: %w", id, err)
	}
	return nil
}

// beginJoining takes the volume's writes from now on, and then marks all of it: what was
// written before is read.
func (f *flow) beginJoining(ctx context.Context, v roster.Volume) error {
	f.mu.Lock()
	f.mu.admitted[v.ID] = true
	f.intakeLocked()
	f.mu.Unlock()
	if err := f.markAll(ctx, v.ID); err != nil {
		return err
	}
	f.log.Info("a volume joins the group: all of it is read", "volume", v.Name)
	return f.advance(v, roster.Adding)
}

func (f *flow) advance(v roster.Volume, from roster.Phase) error {
	return f.change(func(r *roster.Roster) error {
		if !r.Advance(v.ID, from) {
			return fmt.Errorf("%w any more", roster.ErrNoVolume)
		}
		return nil
	})
}

// join reads what is dirty of the volume beside all else, and makes it a member when nothing is left.
func (f *flow) join(ctx context.Context, v roster.Volume) error {
	run, end := context.WithCancel(ctx)
	defer end()
	f.mu.Lock()
	life, whole := f.mu.ctx, f.mu.machine.Whole() && f.mu.roster.Phase(v.ID) == roster.Joining
	f.mu.endJoin = end
	f.mu.Unlock()
	defer f.joinEnded()
	if !whole {
		return nil
	}
	defer context.AfterFunc(life, end)()
	if err := f.readDirty(run, dirty.NewSweep([]record.VolumeID{v.ID}, syncRead)); err != nil {
		if run.Err() != nil {
			return nil // another life begins, or something else is asked: it is gone on with after that
		}
		return err
	}
	before, err := f.look(run, v.ID)
	if err != nil || before.Dirty > 0 {
		return err
	}
	after, err := f.look(run, v.ID)
	if err != nil {
		return err
	}
	f.mu.Lock()
	f.mu.endJoin = nil
	defer f.mu.Unlock()
	after.Life, after.Whole, after.Lost = f.mu.life, f.mu.machine.Whole(), f.tap.Lost()
	if !group.MayJoin(before, after) {
		return nil
	}
	err = f.changeLocked(func(r *roster.Roster) error {
		if !r.Advance(v.ID, roster.Joining) {
			return fmt.Errorf("%w any more", roster.ErrNoVolume)
		}
		return nil
	})
	if err == nil {
		f.log.Info("a volume has joined the group: checkpoints hold it from now on", "volume", v.Name)
	}
	return err
}

func (f *flow) joinEnded() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mu.endJoin = nil
}

// look is how a volume that joins stands. lost is read before it is asked what is dirty.
func (f *flow) look(ctx context.Context, id record.VolumeID) (group.Look, error) {
	f.mu.Lock()
	l := group.Look{Life: f.mu.life, Whole: f.mu.machine.Whole(), Lost: f.tap.Lost()}
	f.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, askFilters)
	defer cancel()
	all, err := f.tap.Dirty(ctx)
	if err != nil {
		return l, fmt.Errorf("ask how much is dirty: %w", err)
	}
	d, ok := all[id]
	if l.Dirty = d.Blocks; !ok {
		return l, errors.New("its filter does not answer")
	}
	return l, nil
}
