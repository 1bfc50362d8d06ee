package journal

import (
	"errors"
	"fmt"
	"path"
	"slices"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/replica"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/journal/view"
	"github.com/holdfast-dr/holdfast/wire/record"
)

func (g *Group) logDir() string     { return path.Join(g.dir, "log") }
func (g *Group) replicaDir() string { return path.Join(g.dir, "replica") }
func (g *Group) scratchDir() string { return path.Join(g.dir, "scratch") }

func (s *Store) newGroup(id record.GroupID) *Group {
	g := &Group{store: s, dir: path.Join(s.cfg.Dir, groupsName, id.String()), log: s.log.With("group", id.String()),
		info: GroupInfo{ID: id}, versions: index.NewVersions(), admission: newAdmission(), cuts: newCuts(),
		standings: make(map[record.StreamID]mark), volumes: make(map[record.VolumeID]*volume),
		views: make(map[*view.View]ViewOptions), shown: make(map[uint64]segment.State), loaded: make(chan struct{})}
	g.room.L = &g.mu
	return g
}

// createGroup makes a group's folders, and last its manifest: without one there is no
// group, and what a crash left of making it is used again.
func (s *Store) createGroup(info GroupInfo) (*Group, error) {
	fs, g := s.cfg.FS, s.newGroup(info.ID)
	for _, dir := range []string{g.dir, g.logDir(), g.replicaDir(), g.scratchDir()} {
		if err := fs.Mkdir(dir); err != nil {
			return nil, err
		}
	}
	if err := g.noLog(); err != nil {
		return nil, err
	}
	if err := errors.Join(fs.SyncDir(g.dir), fs.SyncDir(path.Dir(g.dir))); err != nil {
		return nil, err
	}
	m, err := createManifest(fs, g.dir, info)
	if err != nil {
		return nil, err
	}
	return g.load(m)
}

// noLog makes sure that no log lies where a manifest is missing.
func (g *Group) noLog() error {
	names, err := g.store.cfg.FS.List(g.logDir())
	if err == nil && len(names) > 0 {
		err = fmt.Errorf("there is a log and no manifest: %w", ErrCorrupt)
	}
	return err
}

// openGroup recovers the group in its folder; nil: it was never quite made. With an
// error the group stands for what does not open: see shut.
func (s *Store) openGroup(id record.GroupID) (*Group, error) {
	g := s.newGroup(id)
	m, err := g.findManifest()
	if err == nil && m == nil {
		return nil, nil
	}
	if err == nil {
		g, err = g.load(m)
	}
	if err != nil {
		return s.shut(id, m, err), err
	}
	return g, nil
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
	g.fatal, g.resync = fmt.Errorf("it does not open: %w", why), true
	g.info.Name = id.String()
	if m != nil {
		facts := m.now()
		g.info.Name, g.info.Lineage = facts.name, facts.lineage
	}
	g.log.Error("group does not open", "name", g.info.Name, "error", why)
	return g
}

// openAgain tries a group again that did not open for want of something that may be
// there now; damage stays. It returns the group that stands now.
func (s *Store) openAgain(g *Group) *Group {
	if g.segments != nil || isDamage(g.fatal) || errors.Is(g.fatal, ErrFormat) || s.mayTake() != nil {
		return g
	}
	again, _ := s.openGroup(g.info.ID)
	if again == nil {
		return g
	}
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

// load brings a group up from what is on disk:
//
//  1. what the manifest states: names, volumes, lives, how far a sync came;
//  2. the replicas;
//  3. the log, whose records say where each stream stands, which versions there are
//     and which cuts became checkpoints;
//  4. the watermark, raised over what is going to be shown;
//  5. the catalogue, made to say the same.
func (g *Group) load(m *manifest) (*Group, error) {
	g.manifest = m
	err := g.loadVolumes()
	var cps []Checkpoint
	if err == nil {
		cps, err = g.loadLog()
	}
	if err == nil {
		err = g.show(cps)
	}
	if err == nil {
		err = g.clearScratch()
	}
	if err != nil {
		g.stop()
	}
	close(g.loaded) // segments that are being read back may tell now
	if err != nil {
		return nil, errors.Join(err, g.close())
	}
	return g, nil
}

func (g *Group) loadVolumes() error {
	facts := g.manifest.now()
	g.info.Name, g.info.Lineage = facts.name, facts.lineage
	for id, info := range facts.volumes {
		r, err := replica.Open(g.store.cfg.FS, g.replicaDir(), g.place(id), info.Bytes)
		if err != nil {
			return err
		}
		g.volumes[id] = &volume{info: info, replica: r}
	}
	g.admission.epoch = facts.epoch
	for id, f := range facts.streams {
		s := g.admission.stream(id)
		s.admitted = f.admitted
		if a := f.applied; a.kind != 0 {
			s.last, s.next, s.phase = a.life, a.seq+1, phaseDirect
			if a.closed {
				s.phase = phaseLog
			}
			s.recent.put(a.seq, a.sum)
			g.cuts.streams[id] = &streamCuts{seq: a.seq, open: !a.closed, initial: !a.closed}
		}
	}
	return nil
}

// loadLog replays the log's records and returns the checkpoints they make.
func (g *Group) loadLog() (cps []Checkpoint, err error) {
	cfg := g.store.cfg
	o := segment.Options{SegmentBytes: cfg.SegmentBytes, Stages: g.store.stages, Log: g.log, Damaged: g.sealed}
	g.segments, err = segment.Open(cfg.FS, g.logDir(), g.info.ID, g.store.watermarks.Get(g.info.ID), o,
		func(pos segment.Pos, rec record.Record) error {
			if err := g.replay(pos, rec); err != nil {
				return fmt.Errorf("record %s at %s: %w", rec.Identity, pos, err)
			}
			d := durableRecord{stream: rec.Stream, seq: rec.Seq, kind: rec.Kind, time: rec.Time}
			if err := d.readBody(rec); err != nil {
				return fmt.Errorf("record %s at %s: %w", rec.Identity, pos, err)
			}
			if cp, ok := g.cuts.step(d); ok {
				cps = append(cps, cp)
			}
			return nil
		})
	if err != nil {
		return nil, err
	}
	for id, s := range g.admission.streams {
		g.standings[id] = s.mark()
	}
	g.resync, g.initial = g.cuts.resync()
	g.seen = g.cuts.seen
	return cps, nil
}

// replay takes a record of the log as taken, and holds it against the manifest: a life
// that was never admitted, or a sync that was never complete, means that the manifest
// has lost what it once stated.
func (g *Group) replay(pos segment.Pos, rec record.Record) error {
	s := g.admission.streams[rec.Stream]
	l := life{rec.Epoch, rec.Incarnation}
	if s == nil || l.epoch > s.admitted.epoch || l.inc > s.admitted.inc {
		return fmt.Errorf("%s was never admitted: %w", l, ErrCorrupt)
	}
	if s.phase == phaseDirect {
		return fmt.Errorf("initial sync is not complete: %w", ErrCorrupt)
	}
	if rec.Seq != s.next {
		return fmt.Errorf("%d is next: %w", s.next, ErrCorrupt)
	}
	s.last, s.next, s.phase = l, rec.Seq+1, phaseLog
	s.recent.put(rec.Seq, rec.Checksum)
	return g.versions.Add(pos, rec)
}

// show lists what the log holds, and what of it is bad.
func (g *Group) show(cps []Checkpoint) error {
	facts := g.manifest.now()
	for i := range cps {
		if reason, ok := facts.bad[cps[i].Number]; ok {
			cps[i].State, cps[i].Reason = index.Bad, reason
		}
	}
	g.damages = facts.damaged
	g.unhealed = g.wounds(g.damages)
	g.examineLocked(cps)
	g.sayLocked()
	for _, cp := range cps {
		g.countLocked(cp)
	}
	if len(cps) > 0 && !invariant.Planted("journal/no-watermark") {
		if err := g.store.watermarks.Raise(map[record.GroupID]segment.Watermark{g.info.ID: g.watermark()}); err != nil {
			return err
		}
	}
	infos := g.segments.Segments()
	changed, err := g.store.catalogue.Reconcile(g.info.ID, cps, infos)
	if err != nil {
		return err
	}
	for _, s := range infos {
		g.shown[s.Number] = s.State
	}
	g.log.Info("group opened", "checkpoints", len(cps), "segments", len(infos), "catalogue_changes", changed)
	return nil
}
