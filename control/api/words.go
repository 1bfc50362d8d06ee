package api

import (
	"time"

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
	StateRecovering   = "recovering"
	StateError        = "error"
)

// States of a checkpoint.
const (
	CheckpointGood      = "good"
	CheckpointVerifying = "verifying"
	CheckpointBad       = "bad"
)

// Roles of a VRA for a group.
const (
	RoleSource = "source"
	RoleTarget = "target"
)

// Latest asks ViewsService.Open for the newest listed checkpoint.
const Latest = "latest"

// MaxTag is the longest tag of a checkpoint, in bytes of UTF-8.
const MaxTag = 256

// Timestamp is t as messages carry it; the zero time is absent.
func Timestamp(t time.Time) *timestamppb.Timestamp {
	if t.IsZero() {
		return nil
	}
	return timestamppb.New(t)
}

// Time is the time that a message carries; absent is the zero time.
func Time(ts *timestamppb.Timestamp) time.Time {
	if ts == nil {
		return time.Time{}
	}
	return ts.AsTime()
}
