package journal

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"path"
	"slices"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/failover"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// RemoveOptions say what stays of a group that is removed.
type RemoveOptions struct {
	Keep       bool   // its volumes stay as plain disks
	Checkpoint uint64 // as of which they do; 0: the newest good one
	Try        bool   // change nothing: say whether it would be done

	// Refuse is asked once nobody new is let in (Group.Stays): an error is the caller's, and the group stays. Nil: nobody is asked.
	Refuse func() error
}

// RemoveGroup ends a group for good: its checkpoints, its log and, unless they are kept, its disks.
//
//  1. It is refused while somebody stands on it: ErrInUse, a view or a live failover; so is a
//     checkpoint that is not there or bad: ErrNotFound, ErrCorrupt.
//  2. From then on it takes nothing, and opens no view. The caller is asked once more (RemoveOptions.Refuse).
//  3. Of what is kept: the replicas are brought to the checkpoint, as by any promotion, and read back
//     whole, each block against its sum.
//  4. The file `removed` is written into the group's folder, synced: the group is gone. A crash before
//     leaves the group as it is, with as much of its history as a promotion leaves.
//  5. Its files are closed, and the disks that are kept get their places; then, in the background, the rest is freed.
//     The next opening of the store finishes that. Disks that the group adopted are not the store's: they stay where they are,
//     as they were at the checkpoint where they are kept, and else as promotion has left them.
//
// Of a group whose machines have moved onto its disks (failover.OnDisks) only the word goes that kept old sources out, which
// that it was removed does from then on: whether they are to be kept or not, its disks are the machines', and stay where they stand.
//
// What failed may be asked again. Of a group that was removed it tells what was kept. pace is told
// of the bytes that are promoted and read back, before each part; nil: nobody is.
func (s *Store) RemoveGroup(id record.GroupID, o RemoveOptions, pace func(bytes int64) error) (Removed, error) {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return Removed{}, ErrClosed
	}
	s.removals.Add(1)
	s.mu.Unlock()
	defer s.removals.Done()
	s.removing.Lock()
	defer s.removing.Unlock()
	if r := s.removedNow(id); r != nil {
		return s.finishes(r), nil
	}
	g, ok := s.Group(id)
	if !ok {
		return Removed{}, fmt.Errorf("journal: group %s: %w", id, ErrNoGroup)
	}
	r, err := s.remove(g, o, func(n int64) error {
		if err := s.stillOpen(); err != nil || pace == nil {
			return err
		}
		return pace(n)
	})
	if err != nil {
		return Removed{}, fmt.Errorf("journal: group %s: remove: %w", id, err)
	}
	return r, nil
}

// stillOpen is ErrClosed once the store closes.
func (s *Store) stillOpen() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	return nil
}

func (s *Store) removedNow(id record.GroupID) *Removed {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.removed[id]
}

// finishes puts in place what is kept of a removed group, begins to free the rest, and tells how it stands. It may be
// called again.
func (s *Store) finishes(r *Removed) Removed {
	s.mu.Lock()
	busy := s.clearing[r.ID]
	s.mu.Unlock()
	if !busy {
		if err := s.place(r); err != nil {
			s.leaves(r, err)
		} else {
			s.clears(r)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return *r
}

func (s *Store) remove(g *Group, o RemoveOptions, pace func(int64) error) (Removed, error) {
	if _, err := g.mayGo(o); err != nil || o.Try {
		return Removed{}, err
	}
	if err := g.leave(true); err != nil {
		return Removed{}, err
	}
	var r *Removed
	var err error
	if o.Refuse != nil {
		err = o.Refuse()
	}
	if err == nil {
		r, err = g.endsAs(o, pace)
	}
	if err != nil {
		return Removed{}, errors.Join(err, g.leave(false))
	}
	if err := writeWhole(s.cfg.FS, g.dir, removedNew, removedName, r.encode()); err != nil {
		// Whether it is there after a crash is not known: it is taken back, or the group takes nothing more.
		if err2 := s.unremove(g); err2 != nil {
			return Removed{}, errors.Join(err, err2)
		}
		return Removed{}, errors.Join(err, g.leave(false))
	}
	g.log.Warn("group is removed", "name", r.Name, "checkpoint", r.Checkpoint, "disks", len(r.Disks))
	if err := s.takeDown(g, r); err != nil {
		g.log.Warn("files of a removed group were not closed in order", "error", err)
	}
	return s.finishes(r), nil
}

// endsAs makes the disks that are kept what they are to be, and returns what is written down then. The group is leaving.
func (g *Group) endsAs(o RemoveOptions, pace func(int64) error) (*Removed, error) {
	info := g.Info()
	r := &Removed{ID: info.ID, Name: info.Name, Lineage: info.Lineage, At: time.Now(), views: g.store.viewing.seen()}
	if f := g.failoverNow(); f.State == failover.OnDisks {
		r.Checkpoint, r.machines = f.Checkpoint, !invariant.Planted("journal/removes-machines-disks")
		for _, d := range g.Disks() {
			r.Disks = append(r.Disks, KeptDisk{VolumeInfo: d.VolumeInfo, File: d.Path, Elsewhere: true})
		}
		return r, nil
	}
	if !o.Keep {
		return r, nil
	}
	cp, err := g.mayGo(o) // one more may have been listed
	if err == nil {
		err = g.promoteAlone(cp, pace)
	}
	if err != nil {
		return nil, err
	}
	r.Checkpoint, r.Disks = cp.Number, g.keptDisks(cp)
	return r, nil
}

// unremove takes the file back that a failed removal may have left.
func (s *Store) unremove(g *Group) error {
	err := s.cfg.FS.Remove(path.Join(g.dir, removedName))
	if isAbsent(err) {
		err = nil
	}
	return errors.Join(err, s.cfg.FS.SyncDir(g.dir))
}

// mayGo says why the group cannot be removed now, and as of which checkpoint its disks would stay.
func (g *Group) mayGo(o RemoveOptions) (cp Checkpoint, err error) {
	if g.failoverNow().State == failover.OnDisks {
		if o.Checkpoint != 0 {
			return cp, fmt.Errorf("its machines run on its disks, and no checkpoint is left: %w", ErrNotFound)
		}
		return cp, g.stoodUpon()
	}
	if g.index == nil {
		if err := g.fatalError(); !isDamage(err) {
			return cp, fmt.Errorf("%w: mend that first", err)
		}
		if o.Keep {
			return cp, fmt.Errorf("it does not open, so that no disk of it can be kept: %w", ErrCorrupt)
		}
		return cp, nil
	}
	if err := g.stoodUpon(); err != nil {
		return cp, err
	}
	if !o.Keep {
		return cp, nil
	}
	if !g.store.plain() {
		return cp, fmt.Errorf("its disks lie in parts over several stores, and cannot stay as files: export them first: %w", ErrInUse)
	}
	number := o.Checkpoint
	if number == 0 {
		if number = g.State().Newest; number == 0 {
			return cp, fmt.Errorf("it has no good checkpoint: %w", ErrNotFound)
		}
	}
	if g.frozen {
		return cp, fmt.Errorf("its log is damaged: export its disks: %w", ErrCorrupt)
	}
	if err := g.mayRecover(number); err != nil {
		return cp, err
	}
	return g.Checkpoint(number)
}

// plain says whether names in the store are files of this machine.
func (s *Store) plain() bool {
	p, ok := s.cfg.FS.(interface{ Plain() bool })
	return !ok || p.Plain()
}

// stoodUpon says who stands on the group.
func (g *Group) stoodUpon() error {
	if f := g.failoverNow(); f.State.Fences() && f.State != failover.OnDisks && !invariant.Planted("journal/removed-in-failover") {
		return fmt.Errorf("a live failover at checkpoint %d is %s: %w", f.Checkpoint, f.State, ErrInUse)
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, n := range slices.Sorted(maps.Keys(g.views.kept)) {
		if k := g.views.kept[n]; (k.rec.life == viewOpen || k.rec.life == viewFailed) && !invariant.Planted("journal/removed-under-view") {
			return fmt.Errorf("view v%d is open: close it first: %w", n, ErrInUse)
		}
	}
	if len(g.views.open) > 0 && !invariant.Planted("journal/removed-under-view") {
		return fmt.Errorf("%d views of it are open: %w", len(g.views.open), ErrInUse)
	}
	return nil
}

// leave says that nothing of the group is taken or shown any more, or takes that back.
func (g *Group) leave(leaving bool) error {
	g.failing.Lock()
	defer g.failing.Unlock()
	g.viewing.Lock()
	defer g.viewing.Unlock()
	g.mu.Lock()
	was := g.leaving
	g.leaving = leaving
	g.room.Broadcast()
	g.mu.Unlock()
	if !leaving || was || g.index == nil {
		return nil
	}
	// Who came before that is seen now: a view that is on its way is told that it is too late.
	if err := g.stoodUpon(); err != nil {
		g.mu.Lock()
		defer g.mu.Unlock()
		g.leaving = false
		return err
	}
	return g.onCommit(func() error { return nil }) // what was taken before is durable, or refused
}

// promoteAlone brings the replicas to the checkpoint, whatever is pinned before it, and reads back what
// is kept of them. ErrCorrupt: not all of it is whole.
func (g *Group) promoteAlone(cp Checkpoint, pace func(int64) error) error {
	if err := g.unpinBelow(cp.Number); err != nil {
		return err
	}
	g.retention.passing.Lock() // until the end: no other pass changes them
	defer g.retention.passing.Unlock()
	if err := g.promotes(cp.Number, pace); err != nil {
		return err
	}
	for _, v := range cp.Volumes {
		g.mu.Lock()
		have := g.volumes[v.ID]
		g.mu.Unlock()
		if have == nil {
			return fmt.Errorf("volume %d: %w", v.ID, ErrVolume)
		}
		found, err := have.replica.Verify(0, v.Bytes, func(n int) error { return pace(int64(n)) })
		if err != nil {
			return fmt.Errorf("volume %d: %w", v.ID, err)
		}
		if len(found) > 0 && !invariant.Planted("journal/keeps-unverified") {
			return fmt.Errorf("volume %d is damaged at %d, so that it cannot stay as a disk: %w: %w", v.ID, found[0].Off, found[0].Err, ErrCorrupt)
		}
	}
	return nil
}

// unpinBelow lets go of what users have pinned below a checkpoint.
func (g *Group) unpinBelow(number uint64) error {
	g.marking.Lock()
	defer g.marking.Unlock()
	var es []entry
	for n := range g.manifest.now().pins {
		if n < number {
			es = append(es, entry{kind: entryPin, number: n})
		}
	}
	if len(es) == 0 {
		return nil
	}
	return g.onReserve(func() error { return g.manifest.put(true, es...) })
}

func (g *Group) keptDisks(cp Checkpoint) (disks []KeptDisk) {
	adopted := g.manifest.now().disks
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, v := range cp.Volumes {
		d := KeptDisk{VolumeInfo: g.volumes[v.ID].info, File: adopted[v.ID]}
		if d.Bytes, d.Elsewhere = v.Bytes, d.File != "" && !invariant.Planted("journal/moves-adopted"); !d.Elsewhere {
			d.File = g.store.keptFile(g.info.ID, v.ID)
		}
		disks = append(disks, d)
	}
	return disks
}

// takeDown takes the group out of the store and closes its files: nobody begins anything on it any more,
// and what is under way has ended.
func (s *Store) takeDown(g *Group, as *Removed) error {
	if err := s.lastRound(g, as); err != nil {
		return err
	}
	s.retainer.await(g)
	g.flush.writing.Wait()
	return g.close()
}

// lastRound takes the group out of the store, and returns when the rounds know it no more.
func (s *Store) lastRound(g *Group, as *Removed) error {
	s.opening.Lock() // nobody makes it anew, and the store does not close
	defer s.opening.Unlock()
	s.retainer.looking.Lock()
	s.mu.Lock()
	s.removed[g.info.ID] = as
	closed := s.closed
	if !closed {
		delete(s.groups, g.info.ID)
	}
	s.mu.Unlock()
	s.retainer.looking.Unlock()
	if closed { // which closes it
		return ErrClosed
	}
	g.mu.Lock()
	g.queue = append(g.queue, item{verdict: barrier, done: func(error) { g.parting.Store(true) }})
	g.closed = true
	close(g.ended)
	g.room.Broadcast()
	g.mu.Unlock()
	if g.index == nil { // of it the rounds never knew
		return nil
	}
	s.queued(g, urgent)
	<-g.parted
	return nil
}

// part takes a group that has had its last round out of what the rounds know.
func (s *Store) part(g *Group) {
	select {
	case <-g.parted: // it was in a round once more, with nothing
		return
	default:
	}
	s.flushes.held -= g.flush.held
	s.flushes.active -= g.flush.active
	g.flush.held, g.flush.active = 0, 0
	close(g.parted)
}

// place gives the disks that are kept their places, each with its size at the checkpoint. It may be done again while
// something of the group is left; after that it leaves them alone, as they are their owner's.
func (s *Store) place(r *Removed) error {
	if len(r.Disks) == 0 {
		return nil
	}
	if names, err := s.leftOf(r); err != nil || len(names) == 0 {
		return err
	}
	fs := s.cfg.FS
	from, to := path.Join(s.groupDir(r.ID), "replica"), path.Join(s.keptDir(), r.ID.String())
	for _, dir := range []string{s.keptDir(), to} {
		if err := errors.Join(fs.Mkdir(dir), fs.SyncDir(path.Dir(dir))); err != nil {
			return err
		}
	}
	for _, d := range r.Disks {
		if err := s.placeDisk(path.Join(from, path.Base(d.File)), d); err != nil {
			return fmt.Errorf("volume %d: %w", d.ID, err)
		}
	}
	if err := fs.SyncDir(to); err != nil {
		return err
	}
	if err := fs.SyncDir(from); !isAbsent(err) { // it may be gone with the rest
		return err
	}
	return nil
}

// placeDisk moves one, unless it was moved before; one that stands elsewhere stays there, unless its owner took it away.
func (s *Store) placeDisk(from string, d KeptDisk) error {
	if d.Elsewhere {
		if err := s.cutDisk(Disk{VolumeInfo: d.VolumeInfo, Path: d.File}); !isAbsent(err) {
			return err
		}
		return nil
	}
	f, err := s.cfg.FS.Open(from, 0)
	if isAbsent(err) {
		f, err = s.cfg.FS.Open(d.File, ioengine.ReadOnly)
		if err != nil {
			return err
		}
		return f.Close()
	}
	if err != nil {
		return err
	}
	if err = f.Truncate(d.Bytes); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return s.cfg.FS.Rename(from, d.File)
}

// clears frees, in the background, what a removed group takes.
func (s *Store) clears(r *Removed) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.cfg.Still || s.clearing[r.ID] {
		return
	}
	s.clearing[r.ID] = true
	s.removals.Go(func() {
		err := s.clear(r)
		s.mu.Lock()
		delete(s.clearing, r.ID)
		s.mu.Unlock()
		if !errors.Is(err, ErrClosed) { // else the next opening goes on
			s.leaves(r, err)
		}
	})
}

// leaves keeps for those who ask why something of a removed group is left.
func (s *Store) leaves(r *Removed, err error) {
	if err != nil {
		s.log.Warn("not all of a removed group is freed: it is tried again when vra starts, or when it is removed again", "group", r.ID.String(), "error", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r.Left = oneLine(err)
}

// leftOf names what stands in a removed group's folder beside the file that says so, and disks that stay.
func (s *Store) leftOf(r *Removed) ([]string, error) {
	dir := s.groupDir(r.ID)
	names, err := s.cfg.FS.List(dir)
	return slices.DeleteFunc(names, func(n string) bool {
		if n == removedName {
			return true
		}
		in, err := s.cfg.FS.List(path.Join(dir, n))
		return err == nil && len(in) > 0 && !slices.ContainsFunc(in, func(f string) bool { return !r.stays(path.Join(dir, n, f)) })
	}), err
}

// stays says that a file in the group's folder is a disk on which a machine runs.
func (r *Removed) stays(file string) bool {
	return r.machines && slices.ContainsFunc(r.Disks, func(d KeptDisk) bool { return d.File == file })
}

// clear gives back all that a removed group takes, but for the file that says so. First what is kept
// is put out of the way.
func (s *Store) clear(r *Removed) error {
	dir := s.groupDir(r.ID)
	names, err := s.leftOf(r)
	if err == nil && len(names) == 0 {
		return nil // it was all done before
	}
	if err == nil && !invariant.Planted("journal/clears-first") {
		err = s.place(r)
	}
	if err == nil {
		_, err = s.catalogue.ForgetBetween(r.ID, 1, math.MaxUint64-1, nil)
	}
	if err == nil {
		err = s.catalogue.SetCovers(r.ID, index.Marker{})
	}
	if err != nil {
		return err
	}
	for _, name := range names {
		if err := s.clearName(r, path.Join(dir, name)); err != nil {
			return err
		}
	}
	return s.cfg.FS.SyncDir(dir)
}

// clearName removes a file, or a folder with all in it but disks that stay.
func (s *Store) clearName(r *Removed, name string) error {
	fs := s.cfg.FS
	names, err := fs.List(name)
	if err != nil { // it is a file
		return fs.Remove(name)
	}
	stay := false
	for _, n := range names {
		if r.stays(path.Join(name, n)) {
			stay = true
			continue
		}
		if err := s.stillOpen(); err != nil {
			return err
		}
		if err := fs.Remove(path.Join(name, n)); err != nil {
			return err
		}
	}
	if err := fs.SyncDir(name); err != nil || stay {
		return err
	}
	return fs.Remove(name)
}
