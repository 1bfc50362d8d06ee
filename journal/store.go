package journal

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/buf"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/failover"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/retain"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Store is an open data directory: the journals of many groups, which share one
// commit round, one file of watermarks and one catalogue.
type Store struct {
	cfg          Config
	log          *slog.Logger
	lock         io.Closer
	watermarks   *segment.Watermarks
	catalogue    *index.Catalogue
	viewing      viewNumbers
	reserve      reserve
	cache        *index.Cache
	configured   atomic.Pointer[retain.Policy] // by SetDefaultRetention; nil: cfg.Retention
	retainer     retainer
	passMemories passMemories
	spare        *segment.Pool
	scrubber     scrubber
	flushes      flushes

	removing sync.Mutex // one group is removed at a time; before all others
	opening  sync.Mutex // one OpenGroup at a time; before mu

	raising sync.Mutex // the watermarks are raised; after all others

	mu      sync.Mutex // before any group's
	groups  map[record.GroupID]*Group
	pending map[*Group]struct{} // have something for the next round
	waiting waiting             // what that is
	closed  bool

	removed  map[record.GroupID]*Removed // what is in them is guarded by mu too
	clearing map[record.GroupID]bool     // of them, those whose space is being freed
	removals sync.WaitGroup              // goroutines that do

	stages *segment.Stages // shared by the logs
	staged atomic.Int32    // groups that have records in the open round of their log

	fills *buf.Pool // for what initial syncs put into replicas, shared by the groups

	readBacks *readBacks

	behind map[*Group]struct{} // have checkpoints that could not be listed; of the goroutine that ends rounds

	wake    chan struct{} // capacity 1: pending or closed changed
	stopped chan struct{} // the commit rounds have ended
}

const (
	formatName    = "format"
	formatNew     = "format.new"
	formatText    = "holdfast journal 1\n"
	watermarkName = "watermark"
	lockName      = "lock"
	reserveName   = "reserve"
	groupsName    = "groups"
	catalogueName = "catalogue"
	indexName     = "index"
	spareName     = "spare"

	// spareFiles is how many files of dropped segments are kept for use again.
	spareFiles = 16
)

// Open locks and opens the store in cfg.Dir, making it when the folder is empty or
// absent, and recovers every group in it. A group that does not open is there all the
// same: it says why, and takes and shows nothing. ErrFormat: the folder is a newer
// store, or none of ours.
func Open(cfg Config) (*Store, error) {
	if cfg.stageBytes == 0 {
		cfg.stageBytes = stageBytes
	}
	s := &Store{cfg: cfg, log: cfg.Log, groups: make(map[record.GroupID]*Group), pending: make(map[*Group]struct{}), behind: make(map[*Group]struct{}),
		stages: segment.NewStages(cfg.stageBytes, stageCount), readBacks: newReadBacks(),
		fills: buf.NewPool(fillStages*cfg.stageBytes, fillCount),
		wake:  make(chan struct{}, 1), stopped: make(chan struct{}), removed: make(map[record.GroupID]*Removed), clearing: make(map[record.GroupID]bool)}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.cache, s.flushes.slots = index.NewCache(s.cacheBytes()), make(chan struct{}, flushWriters)
	s.reserve = reserve{fs: cfg.FS, name: path.Join(cfg.Dir, reserveName), log: s.log}
	if s.cfg.Clock == nil {
		s.cfg.Clock = processClock()
	}
	if err := s.open(); err != nil {
		return nil, errors.Join(fmt.Errorf("journal %s: %w", cfg.Dir, err), s.closeFiles())
	}
	go s.run()
	if !s.cfg.Still {
		s.retainer.run()
	}
	s.scrubber.run()
	for _, r := range s.removed {
		s.clears(r)
	}
	return s, nil
}

// open takes the folder, then its format, then what all groups share, then the groups.
// The space for that was set aside, and is again when all are open.
func (s *Store) open() (err error) {
	fs, dir := s.cfg.FS, s.cfg.Dir
	if err = fs.Mkdir(dir); err != nil {
		return err
	}
	if s.lock, err = fs.Lock(path.Join(dir, lockName)); err != nil {
		return err
	}
	if err = s.checkFormat(); err != nil {
		return err
	}
	if err = s.reserve.giveBack(); err != nil {
		return err
	}
	if s.watermarks, err = segment.OpenWatermarks(fs, dir, watermarkName); err != nil {
		return err
	}
	if err = s.openCatalogue(); err != nil {
		return err
	}
	s.retainer.open(s)
	if s.spare, err = segment.OpenPool(fs, path.Join(dir, spareName), spareFiles); err != nil {
		return err
	}
	s.scrubber.open(s)
	names, err := fs.List(path.Join(dir, groupsName))
	if err != nil {
		return err
	}
	var ids []record.GroupID
	for _, name := range names {
		if id, err := strconv.ParseUint(name, 16, 64); err == nil && record.GroupID(id).String() == name { // else not ours
			ids = append(ids, record.GroupID(id))
		}
	}
	for _, g := range s.openGroups(ids) {
		if g.failed() && invariant.Planted("journal/one-for-all") {
			return fmt.Errorf("group %s: %w", g.info.ID, g.fatal)
		}
		s.groups[g.info.ID] = g
	}
	if s.reserve.hold(len(s.groups)) != nil {
		s.kick() // what is there is shown; the rest is tried again
	}
	return nil
}

// checkFormat reads the format number, or makes a new store.
func (s *Store) checkFormat() error {
	fs, name := s.cfg.FS, path.Join(s.cfg.Dir, formatName)
	names, err := fs.List(s.cfg.Dir)
	if err != nil {
		return err
	}
	if slices.Contains(names, formatName) {
		text, err := readSmall(fs, name)
		if err == nil && text != formatText {
			err = fmt.Errorf("%q, want %q: %w", text, formatText, ErrFormat)
		}
		if err == nil && !slices.Contains(names, watermarkName) {
			err = fmt.Errorf("the watermarks are gone: %w", ErrCorrupt)
		}
		return err
	}
	for _, n := range names { // of a store that was never quite made
		if !slices.Contains([]string{lockName, formatNew, groupsName, watermarkName, watermarkName + ".new"}, n) {
			return fmt.Errorf("holds %q and is no journal: %w", n, ErrFormat)
		}
	}
	err = errors.Join(fs.SyncDir(path.Dir(path.Clean(s.cfg.Dir))), fs.Mkdir(path.Join(s.cfg.Dir, groupsName)))
	if err != nil {
		return err
	}
	w, err := segment.OpenWatermarks(fs, s.cfg.Dir, watermarkName)
	if err != nil {
		return err
	}
	if err := w.Close(); err != nil {
		return err
	}
	return writeWhole(fs, s.cfg.Dir, formatNew, formatName, []byte(formatText))
}

// openCatalogue opens the catalogue, which tells itself what it still knows.
func (s *Store) openCatalogue() error {
	open := s.cfg.OpenCatalogue
	if open == nil {
		open = func() (index.Map, error) {
			boot, err := readSmall(s.cfg.FS, bootName)
			if err != nil {
				boot = "" // not known
			}
			return index.OpenBadger(index.BadgerConfig{FS: s.cfg.FS, Dir: path.Join(s.cfg.Dir, catalogueName),
				Boot: strings.TrimSpace(boot), Log: s.log}), nil
		}
	}
	m, err := open()
	if err != nil {
		return err
	}
	s.catalogue = index.NewCatalogue(m)
	return nil
}

// bootName is the file of this machine whose content is another at each boot.
const bootName = "/proc/sys/kernel/random/boot_id"

// readSmall reads a file of a few bytes.
func readSmall(fs ioengine.FS, name string) (string, error) {
	f, err := fs.Open(name, ioengine.ReadOnly)
	if err != nil {
		return "", err
	}
	defer f.Close()
	p := make([]byte, 256)
	n, err := f.ReadAt(p, 0)
	if err == io.EOF {
		err = nil
	}
	return string(p[:n]), err
}

// writeWhole makes the file appear in dir, durably and whole or not at all.
func writeWhole(fs ioengine.FS, dir, temporary, name string, p []byte) error {
	f, err := fs.Open(path.Join(dir, temporary), ioengine.Create)
	if err != nil {
		return err
	}
	if err = f.Truncate(0); err == nil {
		_, err = f.WriteAt(p, 0)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err = fs.Rename(path.Join(dir, temporary), path.Join(dir, name)); err != nil {
		return err
	}
	return fs.SyncDir(dir)
}

// Close makes queued records durable, ends all views and unlocks the folder.
func (s *Store) Close() error {
	s.scrubber.close()
	s.retainer.close() // passes need the rounds to end
	s.opening.Lock()   // what takes a group out of the rounds needs them too
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		s.opening.Unlock()
		return nil
	}
	s.closed = true
	for _, g := range s.groups {
		g.stop() // what it has queued by now goes into the last round
	}
	s.mu.Unlock()
	s.opening.Unlock()
	s.kick()
	s.removals.Wait()
	<-s.stopped
	s.flushAll()
	return s.closeFiles()
}

func (s *Store) closeFiles() error {
	s.readBacks.close()
	var err error
	s.mu.Lock()
	groups := maps.Clone(s.groups)
	s.mu.Unlock()
	for _, g := range groups {
		err = errors.Join(err, g.close())
	}
	if s.catalogue != nil {
		err = errors.Join(err, s.catalogue.Close())
	}
	if s.watermarks != nil {
		err = errors.Join(err, s.watermarks.Close())
	}
	if s.lock != nil {
		err = errors.Join(err, s.lock.Close())
	}
	return err
}

// Groups returns the groups, ordered by id, without those whose disks were given away for something else.
func (s *Store) Groups() []*Group {
	s.mu.Lock()
	defer s.mu.Unlock()
	gs := make([]*Group, 0, len(s.groups))
	for _, id := range slices.Sorted(maps.Keys(s.groups)) {
		if g := s.groups[id]; !g.released || g.failoverNow().State == failover.OnDisks {
			gs = append(gs, g)
		}
	}
	return gs
}

// Group returns the group with the id.
func (s *Store) Group(id record.GroupID) (*Group, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	g, ok := s.groups[id]
	return g, ok
}

// OpenGroup returns the group, making it when absent, and takes over a new name.
// ErrLineage when it is there with another history.
func (s *Store) OpenGroup(info GroupInfo) (*Group, error) {
	if err := info.validate(); err != nil {
		return nil, fmt.Errorf("journal: %w", err)
	}
	s.opening.Lock()
	defer s.opening.Unlock()
	if err := s.isRemoved(info.ID); err != nil {
		return nil, err
	}
	if g, ok := s.Group(info.ID); ok {
		g = s.openAgain(g)
		return g, g.meet(info)
	}
	err := s.reserve.hold(len(s.Groups()) + 1)
	var g *Group
	if err == nil {
		g, err = s.createGroup(info)
	}
	if err != nil {
		return nil, fmt.Errorf("journal: group %s: %w", info.ID, err)
	}
	return s.enter(g)
}

// enter puts a group that was made among those of the store. s.opening is held.
func (s *Store) enter(g *Group) (*Group, error) {
	s.retainer.begin(g)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errors.Join(ErrClosed, g.close())
	}
	s.groups[g.info.ID] = g
	return g, nil
}
