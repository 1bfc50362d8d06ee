package api

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// States of a group.
const (
	StateInitialSync  = "initial-sync"
	StateProtected    = "protected"
	StateBehind       = "behind"
	StateSpilling     = "spilling"
	StateMarksOnly    = "marks-only"
	StateResync       = "resync"
	StateDisconnected = "disconnected"
	StatePaused       = "paused"
	StateRemoved      = "removed"
	StateRecovering   = "recovering"
	StateStandby      = "standby"
	StateError        = "error"
)

// States of a checkpoint.
const (
	CheckpointGood      = "good"
	CheckpointVerifying = "verifying"
	CheckpointBad       = "bad"
)

// What a checkpoint holds: guests that were at rest, running ones, or running ones though a
// freeze was asked for.
const (
	ConsistencyApplication = "application"
	ConsistencyCrash       = "crash"
	ConsistencyFailed      = "crash-freeze-failed"
)

// Levels of what a link test finds.
const (
	FindingOK      = "ok"
	FindingWarning = "warning"
)

// States of a store, beside those that a set gives it: a stray is configured and not of the set.
const (
	StoreIn         = "in"
	StoreOut        = "out"
	StoreRetiring   = "retiring"
	StoreRebuilding = "rebuilding"
	StoreStray      = "stray"
)

// States of a live failover.
const (
	FailoverNone        = "none"
	FailoverRaised      = "raised"
	FailoverRecovering  = "recovering"
	FailoverRollingBack = "rolling-back"
	FailoverRolledBack  = "rolled-back"
	FailoverCommitted   = "committed"
	FailoverSettled     = "settled"
	FailoverPassing     = "passing"
	FailoverMoving      = "moving"
	FailoverOnDisks     = "on-disks"
	FailoverReleased    = "released"
)

// How a live failover ends when its time is over.
const (
	ThenRollback = "rollback"
	ThenCommit   = "commit"
)

// MaxFailoverID and MaxFailoverNote are the longest name and note of a failover, in bytes.
const (
	MaxFailoverID   = 128
	MaxFailoverNote = 256
)

// ViewClosed is the state of a view that gave way to newer history.
const ViewClosed = "closed"

// MinScratchLimit is the least that the writes of a view may be held to, in bytes.
const MinScratchLimit = 1 << 20

// Roles of a VRA for a group.
const (
	RoleSource = "source"
	RoleTarget = "target"
)

// Latest asks ViewsService.Open for the newest listed checkpoint.
const Latest = "latest"

// MaxTag is the longest tag of a checkpoint, in bytes of UTF-8.
const MaxTag = 256

// CheckTag says what is wrong with a tag: it is shown in tables, and typed to name a
// checkpoint. The sentence goes on from "tag ".
func CheckTag(tag string) error {
	unseen := func(r rune) bool { return !unicode.IsPrint(r) }
	switch {
	case tag == "":
		return errors.New("is missing: name the checkpoint")
	case len(tag) > MaxTag:
		return fmt.Errorf("has %d bytes, at most %d", len(tag), MaxTag)
	case !utf8.ValidString(tag):
		return errors.New("is not UTF-8")
	case strings.ContainsFunc(tag, unseen):
		return fmt.Errorf("%s: want only characters that can be seen", strconv.Quote(tag))
	case strings.TrimSpace(tag) != tag:
		return fmt.Errorf("%q: want no space at its ends", tag)
	}
	return nil
}

// CheckNewTag says what is wrong with a tag that is given, as CheckTag does, or why nobody could name a checkpoint by it. Older ones
// that are so stay, and read.
func CheckNewTag(tag string) error {
	if err := CheckTag(tag); err != nil {
		return err
	}
	switch {
	case tag == Latest:
		return fmt.Errorf("%q: it names the newest checkpoint, whichever that is", tag)
	case strings.HasPrefix(tag, "-"):
		return fmt.Errorf("%q: it reads as an option: want no hyphen at its beginning", tag)
	}
	return nil
}

// Timestamp is t as messages carry it; the zero time is absent.
func Timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// Span is the message of a span of time.
func Span(d time.Duration) *durationpb.Duration { return durationpb.New(d) }

// Time is the time that a message carries; absent is the zero time.
func Time(ts *timestamppb.Timestamp) time.Time {
	if ts == nil {
		return time.Time{}
	}
	return ts.AsTime()
}

// The version of these services. A server of another major is not understood; one of a lower minor
// knows fewer calls, or fewer fields of requests: testdata/words.txt says since when there is each. One that does not know the call
// About speaks 1.0.
const (
	Major = 1
	Minor = 2
)

// Roles of certificates: a site manager; a person who may do everything; one who works with what is
// there; one who looks; and the daemons themselves.
const (
	RoleManager  = "manager"
	RoleAdmin    = "admin"
	RoleOperator = "operator"
	RoleMonitor  = "monitor"
	RoleSidecar  = "sidecar"
	RoleVRA      = "vra"
)
