package stripe

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Set is a file system over several folders, the stores. Small files, files that are
// written and those that change in place are kept whole on m+1 of them; a file that is
// sealed lies in stripes of k+m. With k of 1 there are only copies. Which file lies where
// stands in a file of names on every store, so a name is whole or absent after a crash.
//
// What was not synced at a crash may differ from copy to copy: within a life one copy alone
// is read, and before a file that may differ is written again its copies are made alike. In
// large ones that is done by Mend, and until it is done what an earlier life did not
// sync is durable only if it is written again.
//
// Methods may be called concurrently.
type Set struct {
	log     *slog.Logger
	open    func(dir string) ioengine.FS
	witness string

	naming sync.Mutex // one writer of the files of names; before mu
	broken bool       // the last append to them failed: the next must begin new ones

	mu       sync.Mutex // after any object's
	names    *names
	stores   map[uint32]*store // changed with naming held too
	objects  map[uint64]*object
	making   map[string]*object // files that are made on the stores before they have a name
	chosen   map[uint32]int     // by member, how much work places something on it that no names tell of yet
	adding   uint32             // the member whose store has no names and no folders yet: nothing is placed on it; 0: none
	pending  []entry            // not durable yet
	trash    []leaver           // files of objects that go once the names are durable
	locks    map[string]bool
	closed   bool
	lost     error // why nothing is taken any more
	strays   []string
	progress Progress

	changed chan struct{} // capacity 1: Mend may have something to do
}

// store is one member that is open.
type store struct {
	id     uint32
	dir    string
	fs     ioengine.FS
	lock   io.Closer
	names  ioengine.File // of this generation; nil: must be begun
	end    int64         // of names
	fresh  atomic.Bool   // files were made whose names within the store are not durable
	out    atomic.Bool
	why    error // it is out; under Set.mu
	errors atomic.Int64
}

// leaver is a file of a store that is not wanted any more.
type leaver struct {
	member uint32
	name   string
}

// Options of a Set.
type Options struct {
	// Stores are the folders. Those that the set knows from before are found without it.
	Stores []string
	// Geometry is how sealed files are kept from now on; the zero one leaves it as it is, and
	// makes no set.
	Geometry Geometry
	// FS opens a folder's file system. Default: this machine's.
	FS func(dir string) ioengine.FS
	// Witness is a file outside of all stores, on the file system of FS(its folder), which
	// keeps the set's generation. A set of 2m stores or fewer needs it to tell, after a
	// start with some stores missing, whether the others went on without these. "": none.
	Witness string
	// AcceptStale is an operator's word that the stores which are there are to count as the
	// newest, where nobody knows or others are. What others had beyond them is given up.
	AcceptStale bool
	// Log takes what an operator should know. Default: nothing is said.
	Log *slog.Logger
}

// JournalRoot is the journal's folder within a set of stores.
const JournalRoot = "/journal"

// The names within a store.
const (
	lockName    = "set.lock"
	namesName   = "set.names"
	namesNew    = "set.names.new"
	objectsName = "objects"
)

// IsStore says whether a folder with such files is, or was, a store of a set.
func IsStore(names []string) bool { return slices.Contains(names, namesName) }

// ErrStore says that a folder cannot be a store of the set.
var ErrStore = errors.New("not a store of this set")

// OpenSet locks and opens the stores, and makes the set when all of them are empty. A store
// that is absent or whose files of names are damaged is marked out. ErrLost: more are missing than parity allows for.
func OpenSet(o Options) (*Set, error) {
	if o.Geometry != (Geometry{}) {
		if err := o.Geometry.Validate(); err != nil {
			return nil, err
		}
	}
	s := &Set{log: o.Log, open: o.FS, witness: o.Witness, stores: map[uint32]*store{}, objects: map[uint64]*object{}, making: map[string]*object{},
		chosen: map[uint32]int{}, locks: map[string]bool{}, changed: make(chan struct{}, 1)}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.open == nil {
		s.open = func(string) ioengine.FS { return ioengine.OS() }
	}
	if err := s.load(o); err != nil {
		return nil, errors.Join(fmt.Errorf("stores: %w", err), s.release())
	}
	s.kick()
	return s, nil
}

// load finds the stores, chooses the newest names, and begins a generation of its own.
func (s *Set) load(o Options) error {
	found := s.find(o.Stores)
	for _, f := range found {
		if f.store != nil {
			defer f.giveUp(s)
		}
	}
	best := newest(found)
	if best == nil {
		return s.make(found, o)
	}
	for id, m := range best.names.members { // moved folders are found by what is in them
		if slices.ContainsFunc(found, func(f *candidate) bool { return f.member == id || f.dir == m.dir }) {
			continue
		}
		c := s.look(m.dir)
		if c.store != nil {
			defer c.giveUp(s)
		}
		found = append(found, c)
	}
	best = newest(found)
	s.names = best.names
	if err := s.gather(found, best); err != nil {
		return err
	}
	if err := s.trusted(o, found, best); err != nil {
		return err
	}
	for id, info := range s.names.objects {
		s.objects[id] = &object{set: s, id: id, info: info, suspect: info.dirty}
	}
	if o.Geometry != s.names.geometry && o.Geometry != (Geometry{}) {
		if err := s.fits(o.Geometry); err != nil {
			return err
		}
		s.names.geometry = o.Geometry
	}
	s.naming.Lock()
	defer s.naming.Unlock()
	if err := s.survive(s.names.outs(), nil); err != nil {
		return err
	}
	if err := s.install(); err != nil {
		return err
	}
	s.sweep()
	return nil
}

// candidate is a folder that may be a store.
type candidate struct {
	dir    string
	store  *store // nil: it cannot be reached, or is in use
	names  *names
	member uint32
	end    int64
	taken  bool
	empty  bool
	err    error
}

func (c *candidate) giveUp(s *Set) {
	if !c.taken && c.store.lock != nil {
		c.store.lock.Close()
	}
}

func (s *Set) find(dirs []string) (found []*candidate) {
	for _, d := range dirs {
		if d = path.Clean(d); !slices.ContainsFunc(found, func(c *candidate) bool { return c.dir == d }) {
			found = append(found, s.look(d))
		}
	}
	return found
}

// look locks a folder and reads its names. The folder itself must be there: a store whose
// disk is not mounted must not be made anew beneath.
func (s *Set) look(dir string) *candidate {
	c := &candidate{dir: dir}
	fsys := s.open(dir)
	list, err := fsys.List(dir)
	if err != nil {
		c.err = err
		return c
	}
	st := &store{dir: dir, fs: fsys}
	if st.lock, err = fsys.Lock(path.Join(dir, lockName)); err != nil {
		if errors.Is(err, ioengine.ErrLocked) {
			c.err = err
			return c
		}
		c.err = err // perhaps read-only: it may still say who it is
		st.lock = nil
	}
	c.store = st
	c.empty = !slices.ContainsFunc(list, func(n string) bool { return n != lockName && n != namesNew && n != objectsName && n != "lost+found" })
	if c.empty {
		return c
	}
	p, err := readAll(fsys, path.Join(dir, namesName))
	if err == nil {
		c.names, c.member, c.end, err = parseNames(p)
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("it holds other files: %w", ErrStore)
	}
	c.err = errors.Join(c.err, err)
	return c
}

// maxNames bounds a file of names.
const maxNames = 1 << 30

func readAll(fsys ioengine.FS, name string) ([]byte, error) {
	f, err := fsys.Open(name, ioengine.ReadOnly)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if size > maxNames {
		return nil, corrupt("%s has %d bytes", name, size)
	}
	p := make([]byte, size)
	n, err := f.ReadAt(p, 0)
	if err == io.EOF {
		err = nil
	}
	return p[:n], err
}

// newest is the candidate whose names have the highest generation and, of these, are longest:
// all of them hold what was durable.
func newest(found []*candidate) (best *candidate) {
	for _, c := range found {
		if c.names == nil {
			continue
		}
		if best == nil || c.names.generation > best.names.generation ||
			c.names.generation == best.names.generation && c.end > best.end {
			best = c
		}
	}
	return best
}

// make makes a new set out of empty folders.
func (s *Set) make(found []*candidate, o Options) error {
	var err error
	if o.Geometry == (Geometry{}) {
		err = fmt.Errorf("none of the folders says what set it is of: %w", ErrStore)
	}
	for _, c := range found {
		switch {
		case c.err != nil:
			err = errors.Join(err, fmt.Errorf("%s: %w", c.dir, c.err))
		case !c.empty:
			err = errors.Join(err, fmt.Errorf("%s: holds other files: %w", c.dir, ErrStore))
		}
	}
	if err == nil && o.Witness != "" {
		var w uint64
		if w, err = s.readWitness(0); errors.Is(err, fs.ErrNotExist) || o.AcceptStale {
			err = nil
		}
		if err == nil && w != 0 && !o.AcceptStale {
			err = fmt.Errorf("all stores are empty, and %s says that there was a set: %w", o.Witness, ErrLost)
		}
	}
	if err != nil {
		return err
	}
	s.names = newNames(draw(), o.Geometry)
	for i, c := range found {
		id := uint32(i + 1)
		if err := s.names.apply(entry{kind: entryMember, member: id, state: memberIn, name: c.dir}); err != nil {
			return err
		}
		s.take(c, id)
	}
	if err := s.fits(o.Geometry); err != nil {
		return err
	}
	s.naming.Lock()
	defer s.naming.Unlock()
	return s.install()
}

func draw() uint64 {
	var p [8]byte
	rand.Read(p[:])
	return le.Uint64(p[:]) | 1
}

func (s *Set) take(c *candidate, id uint32) {
	c.taken = true
	c.store.id = id
	s.stores[id] = c.store
}

// fits says whether the geometry has stores enough.
func (s *Set) fits(g Geometry) error {
	need := g.width()
	if g.K == 1 {
		need = g.M + 1
	}
	if have := len(s.names.members); have < need {
		return fmt.Errorf("%s needs %d stores, and there are %d", g, need, have)
	}
	return nil
}

// gather takes the members that are whole, and marks out the others.
func (s *Set) gather(found []*candidate, best *candidate) error {
	for _, id := range slices.Sorted(maps.Keys(s.names.members)) {
		m := s.names.members[id]
		why := fmt.Errorf("%s is not there", m.dir)
		for _, c := range found {
			if c.names == nil && c.dir == m.dir {
				switch {
				case errors.Is(c.err, ErrVersion) || errors.Is(c.err, ioengine.ErrLocked):
					return fmt.Errorf("%s: %w", c.dir, c.err)
				case c.err != nil:
					why = c.err
				case len(s.names.objects) == 0 && !c.taken: // the set was never quite made
					s.take(c, id)
				default:
					why = errors.New("it is empty")
				}
			}
			if c.names == nil || c.member != id {
				continue
			}
			if c.names.set != s.names.set {
				return fmt.Errorf("%s: is of another set: %w", c.dir, ErrStore)
			}
			if c.names.generation < best.names.generation && s.names.installed {
				why = errors.New("it is older than the others: it was rolled back or left out")
				continue
			}
			if m.state == memberOut || c.taken {
				continue
			}
			why = c.err // of the lock: it will not take the names, and is out then
			s.take(c, id)
			m.dir = c.dir
			if why == nil {
				break
			}
		}
		if s.stores[id] == nil && m.state != memberOut {
			s.log.Error("store is out", "store", m.dir, "err", why)
			m.state = memberOut
		}
		if s.stores[id] == nil {
			s.stores[id] = &store{id: id, dir: m.dir, fs: s.open(m.dir), why: why}
			s.stores[id].out.Store(true)
		}
	}
	for _, c := range found {
		if !c.taken && !slices.ContainsFunc(slices.Collect(maps.Values(s.names.members)), func(m *memberInfo) bool { return m.dir == c.dir }) {
			s.strays = append(s.strays, c.dir)
		}
	}
	return nil
}

// staleLead is how many generations ahead a set goes on from stores that were accepted as
// stale: others may have had many since, one for each start and each loss of a store.
const staleLead = 1 << 20

// trusted says whether the newest names that are there are the newest that there were. They
// are when more than m stores have them or are known to be older; otherwise only a witness knows.
func (s *Set) trusted(o Options, found []*candidate, best *candidate) error {
	known := 0
	for _, c := range found {
		if c.names != nil && c.names.set == s.names.set {
			known++
		}
	}
	w, err := s.readWitness(s.names.set)
	if w > s.names.generation && !o.AcceptStale {
		return fmt.Errorf("%s is at generation %d, and a later one, %d, is known: the stores that have it are missing (bring them back, or start vra with --accept-stale-stores and give up what only they hold): %w", best.dir, s.names.generation, w, ErrLost)
	}
	if known > s.names.geometry.M && w <= s.names.generation || w != 0 && w <= s.names.generation {
		return nil
	}
	if o.AcceptStale { // whatever the others came to meanwhile, they are what is old when they come back
		if !invariant.Planted("journal/stripe/stale-unled") {
			s.names.generation = max(s.names.generation, w) + staleLead
		}
		return nil
	}
	return errors.Join(err, fmt.Errorf("only %d of %d stores are there and nobody knows whether the others went on without them (start vra with --accept-stale-stores to go on from what is there): %w",
		known, len(s.names.members), ErrLost))
}

// Close gives all stores up. Files should be closed before.
func (s *Set) Close() error {
	s.naming.Lock()
	defer s.naming.Unlock()
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed {
		return nil
	}
	var err error
	if s.canWrite() == nil {
		err = s.sync()
	}
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	return errors.Join(err, s.release())
}

func (s *Set) release() (err error) {
	s.mu.Lock()
	objects := slices.Collect(maps.Values(s.objects))
	s.mu.Unlock()
	for _, o := range objects {
		o.shards.close()
	}
	for _, st := range s.stores {
		for _, c := range []io.Closer{st.names, st.lock} {
			if c != nil && !isNil(c) {
				err = errors.Join(err, c.Close())
			}
		}
		st.names, st.lock = nil, nil
	}
	return err
}

func isNil(c io.Closer) bool {
	f, ok := c.(ioengine.File)
	return ok && f == nil
}

// kick has Run look for work.
func (s *Set) kick() {
	select {
	case s.changed <- struct{}{}:
	default:
	}
}

// State tells how a set is.
type State struct {
	Geometry Geometry
	Stores   []StoreState
	// Spare is how many more stores may be lost; below zero: something is lost.
	Spare int
	// Strays are folders that are configured and no stores of the set.
	Strays  []string
	Files   int
	Thin    int // files with fewer copies or shards than they should have
	Mending Progress
	Err     error // nil: all is well
}

// StoreState tells how a store is.
type StoreState struct {
	ID     uint32
	Dir    string
	State  string // in, out, retiring, rebuilding
	Files  int    // that have a copy or shard there
	Errors int64  // of reads, since the start
	Err    error  // why it is out
}

// stateRebuilding is the state of a store that was out and is of the set again, while what
// it held is not all there again.
const stateRebuilding = "rebuilding"

// State tells how the set is.
func (s *Set) State() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := State{Geometry: s.names.geometry, Files: len(s.names.objects), Strays: slices.Clone(s.strays), Mending: s.progress, Spare: s.names.geometry.M}
	count := map[uint32]int{}
	for _, o := range s.names.objects {
		for _, m := range o.places {
			count[m]++
		}
		left := o.left(s.names.holds)
		if left < s.wantLeft(o) {
			st.Thin++
		}
		st.Spare = min(st.Spare, left)
	}
	taken := map[string]bool{} // folders of stores that are not out
	for _, m := range s.names.members {
		taken[m.dir] = taken[m.dir] || m.state != memberOut
	}
	var out []string
	rebuilding := map[string]bool{}
	for _, id := range slices.Sorted(maps.Keys(s.names.members)) {
		m := s.names.members[id]
		if m.state == memberOut && taken[m.dir] { // it was added again, and is told as what it is now
			rebuilding[m.dir] = true
			out = append(out, m.dir)
			continue
		}
		one := StoreState{ID: id, Dir: m.dir, State: m.state.String(), Files: count[id]}
		if r := s.stores[id]; r != nil {
			one.Err, one.Errors = r.why, r.errors.Load()
		}
		if m.state == memberOut {
			out = append(out, m.dir)
			if one.Err == nil {
				one.Err = errors.New("it failed in an earlier life")
			}
		}
		st.Stores = append(st.Stores, one)
	}
	for i := range st.Stores {
		if one := &st.Stores[i]; rebuilding[one.Dir] && one.State == memberIn.String() {
			one.State = stateRebuilding
		}
	}
	st.Spare = min(st.Spare, s.names.geometry.M-len(out))
	switch {
	case s.lost != nil:
		st.Err = s.lost
	case len(out) > 0:
		var words []string
		for _, dir := range out {
			if rebuilding[dir] {
				words = append(words, dir+" being rebuilt")
			} else {
				words = append(words, dir+" out")
			}
		}
		until := ""
		if len(rebuilding) > 0 {
			until = " until that is done"
		}
		st.Err = fmt.Errorf("degraded: %s, %d more may be lost%s", strings.Join(words, ", "), st.Spare, until)
	case st.Thin > 0:
		st.Err = fmt.Errorf("degraded: %d files have fewer copies than they should", st.Thin)
	}
	return st
}

// wantLeft is how many losses a file should survive.
func (s *Set) wantLeft(o *objectInfo) int { return s.names.geometry.M }
