// Package cutword holds the words by which the source VRAs of one group take one checkpoint
// together. A leader says Place, Release, Confirm and Void; a member answers Placed, Held or
// Refused. A word is of one cut, which its leader, its term and its number name; no other
// cut of the group has the same three. What the words are for is in datapath/cut, and how they
// travel in wire/PROTOCOL.md.
package cutword

import (
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/holdfast-dr/holdfast/wire/record"
)

// Kind says what a word says.
type Kind uint8

// The kinds. Who says it stands behind.
const (
	Place   Kind = 1 + iota // leader: hold back answers, then take the cut's ticket
	Placed                  // member: that is so
	Release                 // leader: all have; let answers go
	Held                    // member: none had gone before that, and nothing was dropped
	Confirm                 // leader: so it is everywhere; write it into the stream
	Void                    // leader: give the cut up
	Refused                 // member: the cut is not placed, or did not hold
)

func (k Kind) String() string {
	names := [...]string{"", "place", "placed", "release", "held", "confirm", "void", "refused"}
	if k == 0 || int(k) >= len(names) {
		return fmt.Sprintf("kind %d", uint8(k))
	}
	return names[k]
}

// ID names a cut.
type ID struct {
	Leader record.StreamID // the leader's own stream of the group
	Term   uint64          // tells the lives of a leader apart; not 0
	Number uint64          // the checkpoint's
}

// Word is one word. What its kind does not have is zero.
type Word struct {
	Kind  Kind
	Group record.GroupID
	ID    ID

	// Of Place.
	Members uint64 // what Membership makes of the group's streams
	Wall    int64  // ns since 1970: what all streams label the checkpoint with
	Tag     string // the user's, at most record.MaxTag bytes of UTF-8

	// Of Refused.
	Floor uint64 // the member takes no number that is not above it
	Why   string // for people, at most MaxWhy bytes of UTF-8
}

// MaxWhy bounds the reason of a refusal, in bytes.
const MaxWhy = 256

// Check says what no sender may send.
func (w Word) Check() error {
	switch {
	case w.Kind < Place || w.Kind > Refused:
		return fmt.Errorf("cut word of %v", w.Kind)
	case w.Group == 0 || w.ID.Leader == 0 || w.ID.Term == 0 || w.ID.Number == 0:
		return errors.New("cut word: an id is zero")
	case w.Kind == Place && (w.Members == 0 || w.Wall <= 0):
		return errors.New("cut word: place without members or time")
	case w.Kind != Place && (w.Members != 0 || w.Wall != 0 || w.Tag != ""), w.Kind != Refused && (w.Floor != 0 || w.Why != ""):
		return fmt.Errorf("cut word: %v with what it does not have", w.Kind)
	case len(w.Why) > MaxWhy || !utf8.ValidString(w.Why):
		return errors.New("cut word: reason")
	}
	return record.CheckTag(w.Tag)
}

// Membership is one number for the streams of a group, in any order: two VRAs that are told of
// other members do not take a cut together.
func Membership(streams []record.StreamID) uint64 {
	sum := uint64(len(streams)) // each is mixed by itself, so that order does not matter
	for _, s := range streams {
		x := uint64(s)
		for range 2 {
			x = (x ^ x>>31) * 0x9e3779b97f4a7c15
			x ^= x >> 29
		}
		sum += x
	}
	return max(sum, 1)
}

// FromLeader says that a leader says it, and not a member.
func (w Word) FromLeader() bool {
	switch w.Kind {
	case Place, Release, Confirm, Void:
		return true
	}
	return false
}
