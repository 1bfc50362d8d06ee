package deliver

import (
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal"
	"github.com/holdfast-dr/holdfast/wire"
	"github.com/holdfast-dr/holdfast/wire/record"
)

const (
	// lacksEvery is how often a session looks whether a group lacks anything.
	lacksEvery = time.Second
	// lacksAgain is how long after its source was told it is told again: what was told is
	// on its way, or was lost with a session.
	lacksAgain = 20 * time.Second
	// maxLacks is how many places a source is told of at a time; the rest follows.
	maxLacks = 8 * wire.MaxLacks
)

// told is what a source was told that its group lacks.
type told struct {
	found uint64 // damages that were known
	at    time.Time
}

// due says whether a source is to be told.
func (t told) due(lacks bool, found uint64, now time.Time) bool {
	if invariant.Planted("deliver/lacks-once") && !t.at.IsZero() {
		return false
	}
	return lacks && (t.at.IsZero() || found != t.found && now.Sub(t.at) >= lacksEvery || now.Sub(t.at) >= lacksAgain)
}

// tellLacks tells the source, again and again, what the groups of its streams cannot give
// back any more as it is now, until they can. A source of before is not told: it would not
// understand.
func (n *session) tellLacks() {
	if !n.wire.Speaks(&wire.Lacking{}) {
		return
	}
	tick := time.NewTicker(lacksEvery)
	defer tick.Stop()
	before := make(map[record.GroupID]told)
	for {
		select {
		case <-tick.C:
		case <-n.wire.Context().Done():
			return
		}
		for _, g := range n.openGroups() {
			id := g.Info().ID
			lacks, found := g.Lacks()
			if !before[id].due(lacks, found, time.Now()) {
				continue
			}
			if n.lacking(id, g) {
				before[id] = told{found, time.Now()}
			}
		}
	}
}

// openGroups are the groups of the streams that are open.
func (n *session) openGroups() (gs []*journal.Group) {
	n.mu.Lock()
	defer n.mu.Unlock()
	seen := make(map[*journal.Group]bool)
	for _, st := range n.mu.streams {
		if st.state != closed && !seen[st.group] {
			seen[st.group] = true
			gs = append(gs, st.group)
		}
	}
	return gs
}

// lacking tells the source what the group lacks, and says whether it did.
func (n *session) lacking(id record.GroupID, g *journal.Group) bool {
	lost, err := g.Lost(maxLacks)
	if err != nil {
		n.target.log.Warn("what the newest checkpoints lack is not known", "group", id, "error", err)
		return false
	}
	bytes := int64(0)
	for first := 0; first < len(lost); first += wire.MaxLacks {
		m := &wire.Lacking{Group: id}
		for _, p := range lost[first:min(len(lost), first+wire.MaxLacks)] {
			m.Places = append(m.Places, wire.Lack{Volume: p.Volume, Off: p.Off, Len: p.Len})
			bytes += p.Len
		}
		if n.wire.Send(m) != nil {
			return false // the session is over
		}
	}
	if len(lost) > 0 {
		n.target.log.Warn("what is damaged is asked of the source again", "group", id, "places", len(lost), "bytes", bytes)
	}
	return true
}
