package journal

import (
	"errors"
	"fmt"
	"path"
	"slices"
	"sync"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

func (g *Group) logDir() string     { return path.Join(g.dir, "log") }
func (g *Group) replicaDir() string { return path.Join(g.dir, "replica") }
func (g *Group) scratchDir() string { return path.Join(g.dir, "scratch") }
func (g *Group) viewsDir() string   { return path.Join(g.dir, "views") }

func (s *Store) groupDir(id record.GroupID) string {
	return path.Join(s.cfg.Dir, groupsName, id.String())
}

func (s *Store) newGroup(id record.GroupID) *Group {
	g := &Group{store: s, dir: s.groupDir(id), log: s.log.With("group", id.String()),
		info: GroupInfo{ID: id}, admission: newAdmission(), cuts: newCuts(),
		standings: make(map[record.StreamID]mark), volumes: make(map[record.VolumeID]*volume),
		blockOwner: s.cache.Owner(), shown: make(map[uint64]segment.State), loaded: make(chan struct{}), ended: make(chan struct{}), parted: make(chan struct{})}
	g.room.L = &g.mu
	return g
}

// createGroup makes a group's folders, and last its manifest: without one there is no
// group, and what a crash left of making it is used again.
func (s *Store) createGroup(info GroupInfo) (*Group, error) {
	g, err := s.makeFolders(info.ID)
	if err != nil {
		return nil, err
	}
	m, err := createManifest(s.cfg.FS, g.dir, info)
	if err != nil {
		return nil, err
	}
	return g.load(m)
}

// makeFolders makes the folders of a group that is not there yet.
func (s *Store) makeFolders(id record.GroupID) (*Group, error) {
	fs, g := s.cfg.FS, s.newGroup(id)
	for _, dir := range []string{g.dir, g.logDir(), g.replicaDir(), g.scratchDir()} {
		if err := fs.Mkdir(dir); err != nil {
			return nil, err
		}
	}
	if err := g.noLog(); err != nil {
		return nil, err
	}
	return g, errors.Join(fs.SyncDir(g.dir), fs.SyncDir(path.Dir(g.dir)))
}

// noLog makes sure that no log lies where a manifest is missing.
func (g *Group) noLog() error {
	names, err := g.store.cfg.FS.List(g.logDir())
	if err == nil && len(names) > 0 {
		err = fmt.Errorf("there is a log and no manifest: %w", ErrCorrupt)
	}
	return err
}

// openGroups recovers the groups with the ids, several at a time: most of that is
// waiting for the disk. What they list is shown by one write of the watermarks.
func (s *Store) openGroups(ids []record.GroupID) []*Group {
	groups := make([]*Group, len(ids))
	slots := make(chan struct{}, openParallel)
	var wg sync.WaitGroup
	for i, id := range ids {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			groups[i] = s.openGroup(id)
		})
	}
	wg.Wait()
	groups = slices.DeleteFunc(groups, func(g *Group) bool { return g == nil })
	if err := s.raise(groups...); err != nil {
		for i, g := range groups {
			if g.lists() {
				groups[i] = s.shut(g.info.ID, g.manifest, errors.Join(err, g.close()))
			}
		}
	}
	return groups
}

// openGroup recovers the group in its folder; nil: it was never quite made, or is removed. One that
// does not open stands for that: see shut.
func (s *Store) openGroup(id record.GroupID) *Group {
	g := s.newGroup(id)
	r, err := s.readRemoved(g.dir, id)
	if r != nil {
		s.mu.Lock()
		s.removed[id] = r
		s.mu.Unlock()
		s.viewing.saw(r.views)
		return nil
	}
	if err != nil {
		return s.shut(id, nil, err)
	}
	m, err := g.findManifest()
	if err == nil && m == nil {
		return nil
	}
	if err == nil && m.now().failover.State.Gone() {
		return s.released(g, m)
	}
	if err == nil {
		g, err = g.load(m)
	}
	if err != nil {
		return s.shut(id, m, err)
	}
	return g
}

// raise sets the watermark over what the groups are going to show.
func (s *Store) raise(groups ...*Group) error {
	marks := make(map[record.GroupID]segment.Watermark)
	for _, g := range groups {
		if g.lists() {
			marks[g.info.ID] = g.watermark()
		}
	}
	return s.raiseAll(marks)
}

// raiseAll raises watermarks; the caller has no other way to them.
func (s *Store) raiseAll(marks map[record.GroupID]segment.Watermark) error {
	if len(marks) == 0 || invariant.Planted("journal/no-watermark") {
		return nil
	}
	s.raising.Lock()
	defer s.raising.Unlock()
	return s.watermarks.Raise(marks)
}

// lists says whether the group lists any checkpoint.
func (g *Group) lists() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.index != nil && g.cuts.newest > 0
}

// findManifest opens the group's manifest; nil: there is no group.
func (g *Group) findManifest() (*manifest, error) {
	names, err := g.store.cfg.FS.List(g.dir)
	if err != nil {
		return nil, err
	}
	if !slices.Contains(names, manifestName) {
		if slices.Contains(names, path.Base(g.logDir())) {
			err = g.noLog()
		}
		return nil, err
	}
	return openManifest(g.store.cfg.FS, g.dir, g.info.ID)
}

// shut returns a group that has no files open and refuses everything with why: one
// damaged file of one group must not keep the others from being recovered.
func (s *Store) shut(id record.GroupID, m *manifest, why error) *Group {
	g := s.newGroup(id)
	g.fatal, g.resync = fmt.Errorf("it does not open: %w: %s", why, nextStep(g.dir, why)), true
	g.info.Name = id.String()
	if m != nil {
		facts := m.now()
		g.info.Name, g.info.Lineage = facts.name, facts.lineage
	}
	names, err := g.viewNames()
	if err != nil {
		g.log.Warn("views of a group that does not open are not known: their numbers may be drawn again", "error", err)
	}
	g.noteViews(names)
	g.log.Error("group does not open", "name", g.info.Name, "error", why)
	return g
}

// nextStep says in a line what to do about a group whose folder does not open.
func nextStep(dir string, why error) string {
	switch {
	case errors.Is(why, ErrFormat):
		return "run the release that wrote it, or a newer one"
	case isDamage(why):
		return "stop vra and put back from a copy what is damaged in " + dir + ", or protect its disks anew as a group with another id: see \"When a group does not open\" in README.md"
	}
	return "mend that; it is tried again when its source connects and when vra starts, and nothing in " + dir + " is changed until then"
}

// openAgain tries a group again that did not open for want of something that may be
// there now; damage stays. It returns the group that stands now.
func (s *Store) openAgain(g *Group) *Group {
	if g.index != nil || g.released || isDamage(g.fatal) || errors.Is(g.fatal, ErrFormat) || s.mayTake() != nil {
		return g
	}
	opened := s.openGroups([]record.GroupID{g.info.ID})
	if len(opened) == 0 {
		return g
	}
	again := opened[0]
	s.retainer.begin(again)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = again.close() // nothing was taken yet
		return g
	}
	g.mu.Lock()
	again.onListed = g.onListed
	g.mu.Unlock()
	s.groups[g.info.ID] = again
	return again
}
