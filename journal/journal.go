package journal

import (
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/retain"
	"github.com/holdfast-dr/holdfast/journal/scrub"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// Errors a caller tells apart with errors.Is.
var (
	ErrCorrupt  = record.ErrCorrupt
	ErrFenced   = errors.New("an older writer")
	ErrLineage  = errors.New("another history of this group")
	ErrGap      = errors.New("not the next sequence")
	ErrNeedOpen = errors.New("a new life of a stream must begin with an opening resync boundary")
	ErrAdmit    = errors.New("stream was not admitted")
	ErrVolume   = errors.New("unknown volume or place outside it")
	ErrNotFound = errors.New("no such checkpoint")
	ErrClosed   = errors.New("journal is closed")
	ErrFormat   = errors.New("unknown format of the data directory")
	ErrFailed   = errors.New("group has stopped taking data")
	ErrNoGroup  = errors.New("no such group")
	ErrRemoved  = errors.New("group is removed")
)

// Config says where a store lives and what it may use of the world.
type Config struct {
	FS           ioengine.FS
	Dir          string
	SegmentBytes int64 // size of a log segment; 0: the segment package's default
	// CacheBytes is how much of indexes and of what views read is kept in memory, for all
	// groups and views together; 0: 64 MiB.
	CacheBytes int64
	// IndexMemory is how much of all groups' indexes may wait in memory to be written;
	// 0: 64 MiB.
	IndexMemory int64
	Log         *slog.Logger
	// Protector keeps parity for sealed segments, and repairs by it; nil: there is none.
	Protector Protector
	// AckDelay bounds how long a record waits for others before its round begins; 0: 20
	// ms, negative: not at all. When the store is idle none waits.
	AckDelay time.Duration
	// ObserveSync is told how long each sync of a round took, failed ones too; nil: nobody.
	ObserveSync func(time.Duration)

	// Scrub says how soon all that is kept is read back again, and how fast.
	Scrub scrub.Policy

	stageBytes  int  // what the logs write at once; 0: 1 MiB
	lendBytes   int  // segment.Options.LendBytes
	lookedAfter bool // the retainer looks when it is told to, and not by itself

	// Retention counts for groups that have no policy of their own; the zero Policy is
	// retain.Default.
	Retention retain.Policy
	// Clock tells what the machine's clocks say, for the ages of checkpoints. Nil: time
	// counts while the process runs, and not between two runs.
	Clock func() retain.Instant
	// Still keeps history as it stands, whatever the policies say: for one who only looks.
	Still bool
	// OpenCatalogue opens the catalogue's map; nil: Badger, in a folder of the store, whose
	// FS is then that of this machine.
	OpenCatalogue func() (index.Map, error)
	// Boot names this boot of the machine: what views of an earlier process wrote in it and
	// did not flush is still there. Zero: that is not known, and it is forgotten.
	Boot [16]byte
}

// GroupInfo names a group and its history.
type GroupInfo struct {
	ID      record.GroupID
	Name    string // 1 to 63 bytes; a label, never a path
	Lineage uint64 // not 0
}

func (i GroupInfo) validate() error {
	if i.ID == 0 || i.Lineage == 0 || len(i.Name) == 0 || len(i.Name) > maxName {
		return fmt.Errorf("group %s %q of lineage %x is not valid", i.ID, i.Name, i.Lineage)
	}
	return nil
}

// VolumeInfo names a volume of a group and its size.
type VolumeInfo struct {
	ID    record.VolumeID
	Name  string
	Bytes int64
}

func (v VolumeInfo) validate() error {
	if v.ID == 0 || v.Bytes <= 0 || v.Bytes > record.VolumeLimit || len(v.Name) > maxName {
		return fmt.Errorf("volume %d %q of %d bytes is not valid", v.ID, v.Name, v.Bytes)
	}
	return nil
}
