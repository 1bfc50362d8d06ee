package journal

import (
	"errors"

	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/view"
	"github.com/holdfast-dr/holdfast/wire/record"
)

var errStub = errors.New("not built yet")

// Store is an open data directory.
type Store struct{}

// Open locks and opens the store in cfg.Dir, making it when the folder is empty or absent, and recovers every group in it.
func Open(cfg Config) (*Store, error) { return nil, errStub }

// Close makes queued records durable, ends all views and unlocks the folder.
func (s *Store) Close() error { return nil }

// Groups returns the groups, ordered by id.
func (s *Store) Groups() []*Group { return nil }

// Group returns the group with the id.
func (s *Store) Group(id record.GroupID) (*Group, bool) { return nil, false }

// OpenGroup returns the group, making it when absent. ErrLineage when it is there with another history.
func (s *Store) OpenGroup(info GroupInfo) (*Group, error) { return nil, errStub }

// Group is the journal of one group.
type Group struct{}

// Info returns the group's names.
func (g *Group) Info() GroupInfo { return GroupInfo{} }

// Volumes returns the group's volumes, ordered by id.
func (g *Group) Volumes() []VolumeInfo { return nil }

// SetVolumes adds the volumes that are new, makes their replicas, and takes over names and larger sizes. It removes none.
func (g *Group) SetVolumes(vs []VolumeInfo) error { return errStub }

// Admit lets a life of a stream in and says where the stream stands. It waits until what the stream queued before is durable.
func (g *Group) Admit(stream record.StreamID, epoch record.Epoch, inc record.Incarnation) (Standing, error) {
	return Standing{}, errStub
}

// Append takes a record for the next commit round. rec is borrowed until done is called; an error means that it was refused: done is not called.
func (g *Group) Append(rec record.Record, done func(error)) error { return errStub }

// Durable returns the highest durable sequence of the stream; 0: none.
func (g *Group) Durable(stream record.StreamID) record.Seq { return 0 }

// State tells how the group is.
func (g *Group) State() GroupState { return GroupState{} }

// Checkpoints returns up to limit listed checkpoints with numbers above after, oldest first.
func (g *Group) Checkpoints(after uint64, limit int) ([]Checkpoint, error) { return nil, errStub }

// Checkpoint returns one; ErrNotFound when it is not listed.
func (g *Group) Checkpoint(number uint64) (Checkpoint, error) { return Checkpoint{}, errStub }

// Latest returns the newest good checkpoint; ErrNotFound when there is none.
func (g *Group) Latest() (Checkpoint, error) { return Checkpoint{}, errStub }

// OnListed sets what is called with each checkpoint after it is listed.
func (g *Group) OnListed(f func(Checkpoint)) {}

// OpenView opens the group as it was at the checkpoint.
func (g *Group) OpenView(number uint64, o ViewOptions) (*view.View, error) { return nil, errStub }

// Standing is where a stream stands, told to its source.
type Standing struct {
	Durable     record.Seq // the next record must be the one after
	Epoch       record.Epoch
	Incarnation record.Incarnation // of the stream's last record; 0: it has none
	NeedOpen    bool               // the next record must be an opening resync boundary
	Checkpoint  uint64             // highest checkpoint number the group has seen
}

// Checkpoint is a listed point in a group's order.
type Checkpoint = index.Checkpoint

// ViewOptions say what a view may do.
type ViewOptions = view.Options

// GroupState tells how a group is.
type GroupState struct {
	Resync  bool  // a resync is open, or the initial sync is not complete: nothing is listed
	Initial bool  // no initial sync was completed yet
	Err     error // why the group takes no data; nil: it does
	Bytes   int64 // of the log
	// Count, Oldest and Newest tell of the listed checkpoints (numbers; 0: none), bad ones included.
	Count          int
	Oldest, Newest uint64
}
