package journal

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/failover"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/replica"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Group is the journal of one group.
type Group struct {
	store    *Store
	dir      string
	log      *slog.Logger
	manifest *manifest
	segments *segment.Log
	index    *liveIndex

	blockOwner uint64 // of the blocks of the log in the store's cache

	retention retention
	verified  verified

	admitting sync.Mutex // one Admit or SetVolumes at a time; before mu

	marking  sync.Mutex      // damage is made known, and checkpoints are listed, one at a time; before mu
	damages  damages         // all that is known
	hurt     hurt            // what of it checkpoints that are not listed yet may need
	unplaced damages         // what of it is not looked up in the index yet
	unblamed bool            // some was taken back, and who is bad for it is not found anew yet
	unstated []entry         // what of it the manifest does not say yet
	healed   map[uint64]bool // segments that the loading brought back
	loaded   chan struct{}
	ended    chan struct{}  // closed when the group takes no more
	parting  atomic.Bool    // it has had its last round; set on the goroutine that ends rounds
	parted   chan struct{}  // closed after that: the rounds do not know it any more
	upkeep   sync.WaitGroup // goroutines that end then

	// steady is held for reading by who reads what was looked up and must not be wrong about
	// what it finds, and for writing while a fold changes log and index together; before
	// marking. relogging is held by who does that or builds the index anew; after steady.
	steady    sync.RWMutex
	relogging sync.Mutex
	folding   folding
	healing   sync.Mutex // what a view met is repaired one at a time; before all others

	settling sync.Mutex   // a committed failover is settled by one; before all others
	unsound  error        // why its replicas are no plain disks; nil: they are, or may be. Under settling
	hurried  atomic.Int32 // who waits for settling, and for the machines' sake not long
	failing  sync.Mutex   // a failover takes one step at a time; before all others
	viewing  sync.Mutex   // kept views are opened and closed one at a time; before mu

	mu          sync.Mutex
	info        GroupInfo
	admission   *admission // of what was taken, durable or not
	standings   map[record.StreamID]mark
	volumes     map[record.VolumeID]*volume
	queue       []item
	spare       []item    // memory for the items of a round
	queuedBytes int       // of the records in queue that go into the log
	direct      int       // items in queue that go into the replica
	bytes       int       // of the records in queue and in the rounds
	room        sync.Cond // bytes fell
	closed      bool
	leaving     bool   // it is being removed: nothing is taken or shown any more
	fatal       error  // why no data is taken until the store is opened again
	trouble     error  // why the last round failed; nil: it did not
	unwritten   error  // why the index was not written the last time; nil: it was
	behind      error  // why checkpoints that are complete are not listed; nil: all are
	damaged     error  // what is damaged; nil: nothing that is known
	frozen      bool   // its log is damaged and was not followed to its end; set while it is loaded
	upTo        uint64 // and the newest checkpoint before that
	lacking     bool   // and of it something that checkpoints yet to be listed may need
	wounds      uint64 // damages found since the store was opened
	listed      struct {
		count, bad     int
		oldest, newest uint64
	}
	resync, initial bool
	gone            uint64 // no view of a checkpoint below is opened
	thinned         spans  // nor of one in these, but those pinned
	seen            uint64 // highest checkpoint number in any cut
	onListed        func(Checkpoint)
	views           views
	failover        failover.Failover // the last one, as it is durable
	undriven        error             // why it does not get on; nil: it does
	released        bool              // it stands for a group whose disks were given away, and of which nothing else is left
	settlesNow      bool              // somebody settles it
	settlePace      bucket            // of whoever does

	staging     sync.Mutex    // of who appends to the log; before mu
	staged      []item        // in the log's open round
	places      []segment.Pos // of staged
	stagedBytes int
	abandoned   bool // the log has failed and must be abandoned first

	flush flushing

	// Of the goroutine that ends rounds.
	cuts     *cuts
	unlisted []Checkpoint // complete, not listed yet
	shown    map[uint64]segment.State
}

// volume is one volume of a group and its replica.
type volume struct {
	info    VolumeInfo
	replica *replica.Volume
}

// mark is where a stream stands, durably.
type mark struct {
	last  life
	next  record.Seq
	phase phase
}

func (s *streamAdmission) mark() mark { return mark{s.last, s.next, s.phase} }

// maxQueued is the most bytes of records that a group holds undurable; Append waits
// beyond it.
const maxQueued = 64 << 20

// maxRound is the most bytes of records that go into the log in one round: an opening
// copies the last one, and the space for that is set aside.
const maxRound = 8 << 20

// Standing is where a stream stands, told to its source.
type Standing struct {
	Durable     record.Seq // the next record must be the one after
	Epoch       record.Epoch
	Incarnation record.Incarnation // of the stream's last record; 0: it has none
	NeedOpen    bool               // the next record must be an opening resync boundary
	Checkpoint  uint64             // highest checkpoint number that any cut of the group had
}

// Checkpoint is a listed point in a group's order.
type Checkpoint = index.Checkpoint

// GroupState tells how a group is.
type GroupState struct {
	Resync  bool // a resync is open, or the initial sync is not complete: nothing is listed
	Initial bool // of some stream no sync was ever completed
	// Err says why the group takes no data, why the last round failed or complete
	// checkpoints are not listed, or what is damaged; nil: all is well.
	Err   error
	Bytes int64 // of the log
	// Damage says what is damaged; nil: nothing that is known. It is Err too while
	// checkpoints that are yet to be listed may need it; else only older ones are bad.
	Damage error
	Bad    int // listed checkpoints that cannot be opened whole
	// Count, Oldest and Newest tell of the good checkpoints (numbers; 0: none): those that
	// nothing known keeps from being opened whole.
	Count          int
	Oldest, Newest uint64
	// UnreadView names a view whose file does not read, and says what to do: nothing of the
	// history is given up meanwhile. Empty: there is none.
	UnreadView string
}

// Info returns the group's names.
func (g *Group) Info() GroupInfo {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.info
}

// meet is OpenGroup of a group that is there.
func (g *Group) meet(info GroupInfo) error {
	g.admitting.Lock()
	defer g.admitting.Unlock()
	if err := g.opened(); err != nil {
		return err
	}
	have := g.Info()
	if have.Lineage != info.Lineage {
		return fmt.Errorf("journal: group %s has lineage %x, not %x: %w", info.ID, have.Lineage, info.Lineage, ErrLineage)
	}
	if have.Name == info.Name {
		return nil
	}
	if err := g.manifest.put(false, entry{kind: entryGroup, lineage: info.Lineage, name: info.Name}); err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.info.Name = info.Name
	return nil
}

// Volumes returns the group's volumes, ordered by id.
func (g *Group) Volumes() []VolumeInfo {
	g.mu.Lock()
	defer g.mu.Unlock()
	vs := make([]VolumeInfo, 0, len(g.volumes))
	for _, v := range g.volumes {
		vs = append(vs, v.info)
	}
	slices.SortFunc(vs, func(a, b VolumeInfo) int { return int(int64(a.ID) - int64(b.ID)) })
	return vs
}

// SetVolumes adds the volumes that are new and makes their replicas, and takes over
// new names and larger sizes, durably. It removes none and makes none smaller: a
// checkpoint says itself which volumes it holds, and of what size.
func (g *Group) SetVolumes(vs []VolumeInfo) error {
	for _, v := range vs {
		if err := v.validate(); err != nil {
			return fmt.Errorf("journal: %w", err)
		}
	}
	g.admitting.Lock()
	defer g.admitting.Unlock()
	if err := g.opened(); err != nil {
		return err
	}
	if len(vs) > record.MaxVolumes {
		return fmt.Errorf("journal: group %s: %d volumes, the most is %d", g.info.ID, len(vs), record.MaxVolumes)
	}
	for _, v := range vs {
		if err := g.setVolume(v); err != nil {
			return fmt.Errorf("journal: group %s: %w", g.info.ID, err)
		}
	}
	return nil
}

// setVolume makes the replica what is asked first and states it in the manifest
// after, so that a volume in the manifest is always there and large enough.
func (g *Group) setVolume(want VolumeInfo) error {
	g.mu.Lock()
	have := g.volumes[want.ID]
	err := g.staysLocked() // one that takes nothing for another reason is shown, and so are its volumes
	if g.closed {
		err = ErrClosed
	}
	g.mu.Unlock()
	if err != nil {
		return err
	}
	v := &volume{info: want}
	if have == nil {
		v.replica, err = replica.Create(g.store.cfg.FS, g.replicaDir(), g.place(want.ID), want.Bytes)
	} else {
		v.replica = have.replica
		v.info.Bytes = max(want.Bytes, have.info.Bytes)
		if v.info == have.info {
			return nil
		}
		err = v.replica.Grow(v.info.Bytes)
	}
	if err != nil {
		return err
	}
	err = g.manifest.put(have == nil, entry{kind: entryVolume, volume: want.ID, bytes: v.info.Bytes, name: want.Name})
	if err != nil {
		if have == nil {
			err = errors.Join(err, v.replica.Close())
		}
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.volumes[want.ID] = v
	return nil
}

func (g *Group) place(vol record.VolumeID) replica.Place {
	return replica.Place{Group: g.info.ID, Volume: vol}
}

// Admit lets a life of a stream in and says where the stream stands, after all that
// was queued before is durable or cut. Older lives are refused from then on, also
// after a restart. ErrFenced: a newer one was admitted.
func (g *Group) Admit(stream record.StreamID, epoch record.Epoch, inc record.Incarnation) (Standing, error) {
	if stream == record.FoldedStream && !invariant.Planted("journal/admit-folded") {
		return Standing{}, fmt.Errorf("journal: group %s: stream %s is the target's own: %w", g.info.ID, stream, ErrAdmit)
	}
	g.admitting.Lock()
	defer g.admitting.Unlock()
	if err := cmp.Or(g.store.mayTake(), g.retention.room.none()); err != nil {
		return Standing{}, fmt.Errorf("journal: group %s: %w", g.info.ID, err)
	}
	l := life{epoch, inc}
	g.mu.Lock()
	if err := g.stoppedLocked(); err != nil {
		g.mu.Unlock()
		return Standing{}, err
	}
	if err := g.admission.admit(stream, l); err != nil {
		err = g.fencedLocked(err)
		g.mu.Unlock()
		return Standing{}, fmt.Errorf("journal: group %s: %w", g.info.ID, err)
	}
	drained := make(chan struct{})
	g.queue = append(g.queue, item{verdict: barrier, done: func(error) { close(drained) }})
	g.mu.Unlock()
	g.store.queued(g, urgent)
	<-drained
	if !g.manifest.knows(stream, l) {
		err := g.manifest.put(true, entry{kind: entryEpoch, life: l}, entry{kind: entryAdmitted, stream: stream, life: l})
		if err != nil {
			return Standing{}, fmt.Errorf("journal: group %s: %w", g.info.ID, err)
		}
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if err := g.stoppedLocked(); err != nil {
		return Standing{}, err
	}
	s := g.admission.standing(stream)
	s.Durable = g.durableLocked(stream)
	s.Checkpoint = g.seen
	return s, nil
}

// opened says why there is nothing behind a group that did not open.
func (g *Group) opened() error {
	if g.index != nil {
		return nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.stoppedLocked()
}

// Opens says that all that the group keeps was opened: what is not there of its views then is not there at all.
func (g *Group) Opens() bool { return g.opened() == nil }

// stoppedLocked says why the group takes nothing.
func (g *Group) stoppedLocked() error {
	if g.closed {
		return ErrClosed
	}
	if g.fatal != nil {
		return fmt.Errorf("journal: group %s: %w: %w", g.info.ID, ErrFailed, g.fatal)
	}
	return g.staysLocked()
}

// Stays is ErrRemoved for a group that is being removed.
func (g *Group) Stays() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.staysLocked()
}

func (g *Group) staysLocked() error {
	if !g.leaving || invariant.Planted("journal/leaving-takes") {
		return nil
	}
	return fmt.Errorf("journal: group %s: it is being removed: %w", g.info.ID, ErrRemoved)
}

// Durable returns the highest durable sequence of the stream; 0: none.
func (g *Group) Durable(stream record.StreamID) record.Seq {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.durableLocked(stream)
}

func (g *Group) durableLocked(stream record.StreamID) record.Seq {
	return max(g.standings[stream].next, 1) - 1
}

// State tells how the group is.
func (g *Group) State() (s GroupState) {
	g.mu.Lock()
	defer g.mu.Unlock()
	s = GroupState{Resync: g.resync, Initial: g.initial, Err: g.fatal, Damage: g.damaged, Bad: g.listed.bad,
		Count: g.listed.count, Oldest: g.listed.oldest, Newest: g.listed.newest}
	damaged := g.damaged
	if !g.lacking {
		damaged = nil
	}
	for _, err := range []error{g.trouble, g.behind, g.store.reserve.missing(), g.store.indexFull(), g.retention.room.none(), damaged, g.unwritten} {
		if s.Err == nil {
			s.Err = err
		}
	}
	s.UnreadView = g.unreadViewLocked()
	defer func() { s.Err = oneLine(s.Err) }()
	if g.index == nil {
		return s
	}
	if _, err := g.index.whole(); s.Err == nil && err != nil {
		s.Err = err
	}
	for _, i := range g.segments.Segments() {
		s.Bytes += int64(i.End - i.First)
		if s.Err == nil && i.Err != nil && (g.lacking || !isDamage(i.Err)) {
			s.Err = fmt.Errorf("segment %d does not verify: %w", i.Number, i.Err)
		}
	}
	return s
}

// stop ends the taking of data.
func (g *Group) stop() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.closed {
		close(g.ended)
	}
	g.closed = true
	g.room.Broadcast()
}

// close ends views and files; the rounds have ended.
func (g *Group) close() error {
	g.stop()
	g.upkeep.Wait()
	err := g.leaveViews()
	if g.segments != nil {
		err = errors.Join(err, g.segments.Close())
	}
	if g.index != nil {
		err = errors.Join(err, g.index.Close())
	}
	if g.retention.promoter != nil {
		err = errors.Join(err, g.retention.promoter.Close())
	}
	for _, v := range g.volumes {
		if v.replica != nil {
			err = errors.Join(err, v.replica.Close())
		}
	}
	if g.manifest != nil {
		err = errors.Join(err, g.manifest.close())
	}
	return err
}
