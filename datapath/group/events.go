package group

import (
	"time"

	"github.com/holdfast-dr/holdfast/wire/record"
)

// Event is something that happened.
type Event interface{ event() }

// The events. Life is that of the action which is answered.
type (
	// SessionUp says that a session with the target stands.
	SessionUp struct{}
	// SessionDown says that none does; Reason is for people.
	SessionDown struct {
		Reason string
		Next   time.Duration // when another is tried for; 0 when that is not known yet
	}
	// Stood is the target's answer to OpenStream, with what the source knows beside it.
	Stood struct {
		Durable     record.Seq         // what the target has
		Incarnation record.Incarnation // of the newest record there; 0 for none
		Acked       record.Seq         // the highest the source ever saw acknowledged, over restarts too
		Sealed      record.Seq         // the newest this process put into its window
		MarksNew    bool               // the marks were made anew since the target's newest record (the host restarted)
		Unfinished  bool               // the initial sync was begun by an earlier process and not ended
		Foreign     bool               // Incarnation was never drawn here
	}
	// Drawn answers Draw.
	Drawn struct {
		Life        uint64
		Incarnation record.Incarnation
	}
	// Kept says, before anything else is said, that all that a process left which ended is there to go on with: its
	// window, and what it had not taken. Ordered capture alone carried the group.
	Kept struct {
		OpensAt record.Seq // of the boundary that opened the incarnation, which is the one that was drawn last
		Since   record.Seq // of the boundary that closed the last resync
		Covered uint64     // the count of lost that it covers
		Lost    uint64     // what it is now
		Listed  uint64     // the newest checkpoint that the target told of in that life; 0 for none
		Initial bool       // that was the first synchronisation, and no checkpoint was listed since
	}
	// Refused is the other answer; it may also come later.
	Refused struct {
		Text   string
		Retry  time.Duration // when to ask again
		Fenced bool          // a failover has raised the epoch: stand by
		// Outdrawn says that a higher incarnation was let in, by which no record needs to have come: one
		// above it is drawn when it is time to ask again.
		Outdrawn bool
	}
	// Adopted says that an operator wants what another VRA has sent to be gone on with: all is marked, and
	// what stands at the target counts as drawn here.
	Adopted struct{}
	// Granted says that a failover was rolled back, and that what is sent from now on is of a new
	// epoch, which is kept.
	Granted struct{}
	// Acked says that the target acknowledged a record.
	Acked struct{}
	// Begun says that the opening boundary of a new incarnation stands in the window.
	Begun struct{ Life uint64 }
	// Walked says that a pass over the dirty maps is over and no read of it is in flight.
	Walked struct {
		Life    uint64
		Left    int64  // bytes still dirty
		Trouble string // why it could not go on; empty if it did
	}
	// Taken answers Take: a ticket was taken, and what was read after that.
	Taken struct {
		Life   uint64
		Kind   Boundary
		Lost   uint64
		Before uint64 // Close: lost, read before the dirty maps were found empty
		Left   int64  // Close: bytes dirty, read after the ticket
	}
	// Shared says that the ticket of a cut was taken that several source VRAs take together, and
	// what was read after that. Nothing else happened since CanCut said that it may be taken.
	Shared struct {
		Number uint64
		Wall   int64 // ns since 1970
		Tag    string
		Mine   bool   // this VRA leads it, for whoever Wanted tells of
		Lost   uint64 // read after the ticket was taken
	}
	// SharedVoid says that such a cut, which was placed, will never be confirmed.
	SharedVoid struct{ Number uint64 }
	// Placed says that a boundary's record stands in the stream.
	Placed struct {
		Life   uint64
		Kind   Boundary
		Number uint64 // Cut: the checkpoint's
	}
	// Listed says that a checkpoint is listed at the target.
	Listed struct{ Number uint64 }
	// CutAsked is a user's wish for a checkpoint; Ask tells wishes apart.
	CutAsked struct {
		Ask    uint64
		Tag    string
		Freeze record.Freeze
	}
	// CutThawed says that the guests are not at rest any more: a cut for the wish that was not
	// placed is none of a freeze.
	CutThawed struct{ Ask uint64 }
	// CutDropped says that nobody waits for the wish any more.
	CutDropped struct{ Ask uint64 }
	// GiveWay says that groups which go first need the memory of this one's window: what
	// stands there is given up, and sent again in a resync.
	GiveWay struct{}
	// SpillLost says that what waited on disk cannot be read back: what stands in window and spill is given up, and
	// sent again in a resync. It is said again until a new life is drawn.
	SpillLost struct{ Reason string }
	// Pause says that nothing is to be sent until Unpause, whatever comes: what changes is marked.
	Pause struct{}
	// Unpause ends that.
	Unpause struct{}
	// Forced says that all of a volume is about to be marked because a user asked for it.
	Forced struct{}
	// Retell says that the target is to be told anew which volumes there are. Then Stood.
	Retell struct{}
	// Tick is time that passes, with how things stand. It comes at least every 100 ms.
	Tick struct{ Sense }
)

// Sense is how the world stands around the group.
type Sense struct {
	Lost    uint64
	Lag     time.Duration // age of the oldest captured write that is not durable
	Full    bool          // the window is at its limit, or the memory of all windows is used up
	Trouble string        // why the filters cannot be heard; empty if they can
	OnDisk  int64         // bytes of records that wait in the spill
	NoSpill string        // why the spill takes nothing more; empty while it does, and where there is none
	NoCut   string        // why no checkpoint came about for longer than two intervals, among several source VRAs; empty if one did
}

// Boundary is a place in the stream that takes a ticket of its own.
type Boundary uint8

// The boundaries.
const (
	Cut Boundary = iota + 1
	Open
	Close
	Confirm // of a cut that several source VRAs took; no event is about it
)

func (b Boundary) String() string { return [...]string{"?", "cut", "open", "close", "confirm"}[b] }

// Action is something to do.
type Action interface{ action() }

// The actions.
type (
	// OpenStream asks the target where it stands.
	OpenStream struct{ Incarnation record.Incarnation }
	// CloseStream tells the target that nothing more comes, until OpenStream.
	CloseStream struct{}
	// Draw gives up what is captured and sealed and draws a higher incarnation. Then Drawn.
	Draw struct {
		Life   uint64
		Beyond bool // far above: another one has drawn from here too
	}
	// Resume sends from the window, from From on.
	Resume struct{ From record.Seq }
	// Begin starts the incarnation: drop what is captured, mark everything (MarkAll), or all of those volumes
	// of which it is not known what changed before this boot (MarkUnknown), fold the generations into the dirty maps, and only then put an opening boundary
	// at seq Next. Then Begun.
	Begin struct {
		Life        uint64
		Next        record.Seq
		Incarnation record.Incarnation
		MarkAll     bool
		MarkUnknown bool
		Initial     bool
		Reason      string
	}
	// Walk reads what is dirty until a pass is over. Then Walked.
	Walk struct {
		Life  uint64
		After time.Duration // wait so long first
	}
	// Take takes a ticket for a boundary. Then Taken; for Close, Walked when
	// something turned out to be dirty before the ticket was taken.
	Take struct {
		Life uint64
		Kind Boundary
	}
	// Place puts the boundary's record at the ticket just taken. Then Placed.
	Place struct {
		Life   uint64
		Kind   Boundary
		Ask    uint64 // Cut: the wish it serves; 0 for none
		Tag    string
		Freeze record.Freeze
		Reason string
		Cover  uint64 // Close: the count of lost that the resync covers
		Number uint64 // Cut and Confirm of several source VRAs: the checkpoint's; 0 for a cut of this one alone
		Wall   int64  // as well: its time, ns since 1970
	}
	// Void gives up the ticket just taken.
	Void struct{ Kind Boundary }
	// Answer tells who asked that the checkpoint is listed.
	Answer struct{ Ask, Number uint64 }
)

func (SessionUp) event()   {}
func (SessionDown) event() {}
func (Drawn) event()       {}
func (Kept) event()        {}
func (Stood) event()       {}
func (Refused) event()     {}
func (Adopted) event()     {}
func (Granted) event()     {}
func (Acked) event()       {}
func (Begun) event()       {}
func (Walked) event()      {}
func (Taken) event()       {}
func (Shared) event()      {}
func (SharedVoid) event()  {}
func (Placed) event()      {}
func (Listed) event()      {}
func (CutAsked) event()    {}
func (CutDropped) event()  {}
func (CutThawed) event()   {}
func (GiveWay) event()     {}
func (SpillLost) event()   {}
func (Pause) event()       {}
func (Unpause) event()     {}
func (Forced) event()      {}
func (Retell) event()      {}
func (Tick) event()        {}

func (OpenStream) action()  {}
func (CloseStream) action() {}
func (Draw) action()        {}
func (Resume) action()      {}
func (Begin) action()       {}
func (Walk) action()        {}
func (Take) action()        {}
func (Place) action()       {}
func (Void) action()        {}
func (Answer) action()      {}
