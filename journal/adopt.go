package journal

import (
	"errors"
	"fmt"
	iofs "io/fs"
	"path"
	"slices"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/failover"
	"github.com/holdfast-dr/holdfast/journal/replica"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Disk is a disk that holds a volume: a raw file or a block device.
type Disk struct {
	VolumeInfo
	Path string // absolute
}

// adoptedSeq and adoptedLife are where the stream of an adopted group stands before its source has sent anything: what the disks
// held when they were adopted counts as a first synchronisation that is over. So a source that finds the stream there
// knows that the disks are, and one that does not sends all.
const adoptedSeq = record.Seq(1)

// AdoptedIncarnation is that of the life, before its source's first.
const AdoptedIncarnation = record.Incarnation(1)

var adoptedLife = life{epoch: 1, inc: AdoptedIncarnation}

// Adoption says which disks are to be the replicas of a new group.
type Adoption struct {
	Group  GroupInfo
	Stream record.StreamID // that its source will send
	Disks  []Disk
	// Read is told how many bytes of all disks were read; an error of it ends the adoption.
	Read func(bytes int64) error
}

// Adopt makes a group whose replicas are disks that stand elsewhere and hold what they held before: what its source
// sends goes through the log, so that they stay as they are until a checkpoint of it is listed and promoted. The group is
// there, durably, when it returns, and not before; until then nothing of it was begun but sums, and the disks are as they were.
// One that was adopted so before is returned as it stands. ErrLineage: the group is there and is another; ErrRemoved: it was removed;
// ioengine.ErrLocked: somebody else has a disk.
func (s *Store) Adopt(a Adoption) (*Group, error) {
	if err := a.validate(); err != nil {
		return nil, fmt.Errorf("journal: adopt: %w", err)
	}
	s.opening.Lock()
	defer s.opening.Unlock()
	if g, ok := s.Group(a.Group.ID); ok {
		return g, g.adoptedSo(a)
	}
	if err := s.isRemoved(a.Group.ID); err != nil {
		return nil, err
	}
	g := s.newGroup(a.Group.ID)
	names, err := s.cfg.FS.List(g.dir)
	half := err == nil && slices.Contains(names, manifestName) // it was adopted, and did not open
	if err = s.reserve.hold(len(s.Groups()) + 1); err == nil {
		if half {
			g = s.openGroup(a.Group.ID)
			err = errors.Join(g.opened(), s.raise(g))
		} else {
			g, err = s.adoptGroup(a)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("journal: group %s: adopt: %w", a.Group.ID, err)
	}
	if g, err = s.enter(g); err == nil {
		err = g.adoptedSo(a)
	}
	return g, err
}

func (a *Adoption) validate() error {
	if err := a.Group.validate(); err != nil {
		return err
	}
	if a.Stream == 0 || a.Stream == record.FoldedStream || len(a.Disks) == 0 || len(a.Disks) > record.MaxVolumes {
		return fmt.Errorf("stream %s and %d disks are not valid", a.Stream, len(a.Disks))
	}
	ids := make(map[record.VolumeID]bool)
	for _, d := range a.Disks {
		if err := d.validate(); err != nil {
			return err
		}
		if !path.IsAbs(d.Path) || len(d.Path) > maxPath || ids[d.ID] {
			return fmt.Errorf("disk %q of volume %d is not valid", d.Path, d.ID)
		}
		ids[d.ID] = true
	}
	return nil
}

// adoptedSo says whether the group is the one that the adoption asks for.
func (g *Group) adoptedSo(a Adoption) error {
	if err := g.opened(); err != nil {
		return err
	}
	facts := g.manifest.now()
	same := facts.lineage == a.Group.Lineage && len(facts.disks) == len(a.Disks)
	for _, d := range a.Disks {
		same = same && facts.disks[d.ID] == d.Path
	}
	if !same {
		return fmt.Errorf("journal: group %s is there, and not of these disks: %w", a.Group.ID, ErrLineage)
	}
	return nil
}

// adoptGroup makes the folders, then the sums, and last the manifest, which states all at once.
func (s *Store) adoptGroup(a Adoption) (*Group, error) {
	g, err := s.makeFolders(a.Group.ID)
	if err != nil {
		return nil, err
	}
	facts := newFacts()
	facts.lineage, facts.name, facts.epoch = a.Group.Lineage, a.Group.Name, adoptedLife.epoch
	facts.streams[a.Stream] = streamFacts{admitted: adoptedLife, applied: entry{kind: entryApplied, stream: a.Stream, life: adoptedLife, seq: adoptedSeq, closed: true}}
	var before int64
	for _, d := range a.Disks {
		v, err := replica.Adopt(s.cfg.FS, g.replicaDir(), d.Path, g.place(d.ID), d.Bytes, func(n int64) error { return a.Read(before + n) })
		if err != nil {
			return nil, err
		}
		if err := v.Close(); err != nil { // load opens it
			return nil, err
		}
		before += d.Bytes
		facts.volumes[d.ID], facts.disks[d.ID] = d.VolumeInfo, d.Path
	}
	m := &manifest{fs: s.cfg.FS, dir: g.dir, group: a.Group.ID, facts: facts, next: 1}
	if err := m.rewriteLocked(nil); err != nil {
		return nil, fmt.Errorf("manifest: %w", err)
	}
	return g.load(m)
}

// Release gives the disks of a settled failover away: nobody writes to its view any more, so what is left in scratch
// goes into the replicas, and from the moment at which that is stated they are the caller's, with all that the machines wrote. Nothing else of
// the group is left after the store was opened again, but that no source is let in; until then its files stand and
// are not touched. Again it returns the same. Those of failover.Step.
func (g *Group) Release(id string) ([]Disk, error) {
	if err := g.release(id); err != nil {
		return nil, fmt.Errorf("journal: group %s: release: %w", g.info.ID, err)
	}
	return g.Disks(), nil
}

func (g *Group) release(id string) error {
	f := g.failoverNow()
	if g.released && f.State == failover.Released {
		return nil
	}
	if f.State != failover.OnDisks { // of which nothing else is left
		if err := g.opened(); err != nil {
			return err
		}
	}
	if _, err := f.Step(failover.Release{ID: id}); err != nil {
		return err
	}
	return g.letGo(failover.Release{ID: id})
}

// letGo states an event after which the disks are somebody else's, and ends the view. Nobody writes to that any more.
func (g *Group) letGo(e failover.Event) error {
	g.hurried.Add(1)
	defer g.hurried.Add(-1)
	g.settling.Lock()
	defer g.settling.Unlock()
	if err := g.empty(func(int64) error { return nil }); err != nil { // at full speed: machines wait
		return err
	}
	if err := g.emptied(); err != nil {
		return err
	}
	g.failing.Lock()
	defer g.failing.Unlock()
	f := g.failoverNow()
	if err := g.failoverStep(e, failover.ByWord, 0); err != nil {
		return err
	}
	if err := g.dropFailoverView(f); err != nil { // the next opening removes it
		g.log.Warn("the view of a failover whose disks were given away is not removed yet", "error", err)
	}
	return nil
}

// MoveOn states that machines are about to move onto the disks of a failover that passes all to these: until LetGo they are not given
// away. Again it changes nothing. Those of failover.Step.
func (g *Group) MoveOn(id string) (FailoverInfo, error) {
	e := failover.MoveOn{ID: id}
	if f := g.failoverNow(); f.State == failover.OnDisks { // of which nothing else is left
		_, err := f.Step(e)
		return g.Failover(), err
	}
	return g.endFailover(e)
}

// LetGo ends the view of a failover that passes all to its disks: the machines have moved onto these, and from the moment at
// which that is stated nothing of the store is written to them any more. The rest of the group is removed when the store is
// opened again. Again it returns the same. ErrInUse: somebody writes to the view, and its scratch is not empty; those of failover.Step.
func (g *Group) LetGo(id string) ([]Disk, error) {
	f := g.failoverNow()
	next, err := f.Step(failover.LetGo{ID: id})
	if err == nil && next != f {
		if err = g.opened(); err == nil {
			err = g.letGo(failover.LetGo{ID: id})
		}
	}
	if err != nil {
		return nil, fmt.Errorf("journal: group %s: let its disks go: %w", g.info.ID, err)
	}
	return g.Disks(), nil
}

// emptied says whether the replicas hold all that was written to the failover's view.
func (g *Group) emptied() error {
	f := g.failoverNow()
	if !f.State.Shows() || invariant.Planted("journal/releases-unsettled") {
		return nil
	}
	i, err := g.settlesFrom(f)
	if i.View == nil {
		return err
	}
	for _, v := range i.View.Volumes() {
		if n := i.View.Written(v.ID); n > 0 {
			return fmt.Errorf("volume %d has %d blocks in scratch: somebody writes to the view: %w", v.ID, n, ErrInUse)
		}
	}
	return nil
}

// Disks tells where the group's replicas are; it is of a released one that they are somebody else's.
func (g *Group) Disks() (disks []Disk) {
	facts := g.manifest.now()
	for _, v := range g.Volumes() {
		d := Disk{VolumeInfo: v, Path: facts.disks[v.ID]}
		if d.Path == "" {
			d.Path = replica.ImageName(g.replicaDir(), v.ID)
		}
		disks = append(disks, d)
	}
	return disks
}

// HoldsDisk says whether the group keeps others from a volume's disk, by a lock of this process: until the store is opened again after the disk was given away.
func (g *Group) HoldsDisk(id record.VolumeID) bool {
	return !g.released && g.manifest.now().disks[id] != ""
}

// Released says that the group's disks were given away, and nothing of it is left.
func (g *Group) Released() bool { return g.failoverNow().State == failover.Released }

// released makes what stands for a group whose disks were given away, or are the machines': it takes and shows nothing. What is left of its history is removed;
// what cannot be is tried again the next time. The disks are left alone, but that the padding of a file is cut: see cutDisks.
func (s *Store) released(g *Group, m *manifest) *Group {
	facts := m.now()
	g.manifest, g.released = m, true
	g.info.Name, g.info.Lineage = facts.name, facts.lineage
	g.failover, g.admission.epoch = facts.failover, facts.epoch
	g.fatal = fmt.Errorf("%s: %w", g.WhyFenced(), ErrFenced)
	s.viewing.saw(facts.failover.View)
	for id, info := range facts.volumes {
		g.volumes[id] = &volume{info: info}
	}
	err := g.cutDisks()
	if err = errors.Join(err, g.removeHistory(err == nil)); err != nil {
		g.log.Warn("what is left of a group whose disks were given away is not removed, and is the next time", "error", err)
	}
	close(g.loaded)
	return g
}

// cutDisks takes the padding to whole blocks from files that were images. That is done as long as their sums are there, which go
// after it: then how long the files are is their owners' affair.
func (g *Group) cutDisks() error {
	names, err := g.store.cfg.FS.List(g.replicaDir())
	if isAbsent(err) || err == nil && !slices.ContainsFunc(names, isHistory) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, d := range g.Disks() {
		err = errors.Join(err, g.store.cutDisk(d))
	}
	return err
}

// cutDisk makes an image that is a file as long as its volume. One of any other size than the store gave it has been grown by its
// owner since, and stays.
func (s *Store) cutDisk(d Disk) error {
	f, err := s.cfg.FS.Open(d.Path, 0)
	if err != nil {
		return err
	}
	size, err := f.Size()
	ours := size == replica.ImageBytes(d.Bytes) || invariant.Planted("journal/cuts-grown")
	if err == nil && size > d.Bytes && ours {
		if err = f.Truncate(d.Bytes); err == nil {
			err = f.Sync()
		}
	}
	return errors.Join(err, f.Close())
}

// isHistory says of a name in a group's folders that it is no image.
func isHistory(name string) bool { return path.Ext(name) != replica.ImageSuffix }

// removeHistory removes all files of the group but its manifest and the images; the sums of these only if sums says so.
func (g *Group) removeHistory(sums bool) (err error) {
	fs, dirs := g.store.cfg.FS, []string{g.logDir(), path.Join(g.dir, indexName), g.scratchDir(), g.viewsDir()}
	if sums {
		dirs = append(dirs, g.replicaDir())
	}
	for _, dir := range dirs {
		names, lerr := fs.List(dir)
		if errors.Is(lerr, iofs.ErrNotExist) {
			continue
		}
		err = errors.Join(err, lerr)
		for _, name := range names {
			if isHistory(name) {
				err = errors.Join(err, fs.Remove(path.Join(dir, name)))
			}
		}
	}
	return errors.Join(err, g.store.catalogue.Clear(g.info.ID))
}
