package journal

import (
	"errors"
	"fmt"
	"unicode/utf8"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/index"
)

// ErrTooMany says that no more checkpoints of a group can be tagged or pinned: what users
// say is kept in the manifest, which is small.
var ErrTooMany = errors.New("too many")

// The most checkpoints of a group that users tag and pin. Tags given when a checkpoint is
// made are in its cut, and do not count.
const (
	maxTags = 2048
	maxPins = 1024
)

// Query asks for a page of a group's checkpoints.
type Query = index.Query

// Page is a page of a group's checkpoints.
type Page = index.Page

// Counts are how many checkpoints a group has, by what they are.
type Counts = index.Counts

// List returns a page of the listed checkpoints.
func (g *Group) List(q Query) (Page, error) {
	if err := g.opened(); err != nil {
		return Page{}, err
	}
	return g.store.catalogue.List(g.info.ID, q)
}

// Counts tells how many checkpoints are listed. It costs no scan.
func (g *Group) Counts() (Counts, error) {
	if err := g.opened(); err != nil {
		return Counts{}, err
	}
	return g.store.catalogue.Counts(g.info.ID)
}

// Tag gives a listed checkpoint a tag in place of the one it has, durably; "" takes it
// away. It returns the checkpoint as it is then. ErrNotFound, ErrTooMany.
func (g *Group) Tag(number uint64, text string) (Checkpoint, error) {
	return g.say(number, text, entry{kind: entryTag, number: number, reason: text}, func(f *facts, cp *Checkpoint) (bool, error) {
		if _, tagged := f.tags[number]; !tagged && len(f.tags) >= maxTags {
			return false, fmt.Errorf("%d checkpoints were tagged by hand, which is the most: %w", maxTags, ErrTooMany)
		}
		return cp.Tag != text, nil
	})
}

// Pin keeps a listed checkpoint whatever its age, until Unpin, durably; label says what
// for. A second pin replaces the label. ErrNotFound, ErrTooMany.
func (g *Group) Pin(number uint64, label string) (Checkpoint, error) {
	return g.say(number, label, entry{kind: entryPin, number: number, pinned: true, reason: label}, func(f *facts, cp *Checkpoint) (bool, error) {
		if !cp.Pinned && len(f.pins) >= maxPins {
			return false, fmt.Errorf("%d checkpoints are pinned, which is the most: %w", maxPins, ErrTooMany)
		}
		return !cp.Pinned || cp.Label != label, nil
	})
}

// Unpin lets a checkpoint go with the others of its age. One that was pinned while its
// neighbours were thinned out is gone at once.
func (g *Group) Unpin(number uint64) (Checkpoint, error) {
	return g.say(number, "", entry{kind: entryPin, number: number}, func(_ *facts, cp *Checkpoint) (bool, error) { return cp.Pinned, nil })
}

// say states what a user says of a checkpoint, unless it is so already, and then shows it.
func (g *Group) say(number uint64, text string, e entry, news func(f *facts, cp *Checkpoint) (bool, error)) (Checkpoint, error) {
	fail := func(err error) (Checkpoint, error) {
		return Checkpoint{}, fmt.Errorf("journal: group %s: checkpoint %d: %w", g.info.ID, number, err)
	}
	if len(text) > maxReason || !utf8.ValidString(text) {
		return fail(fmt.Errorf("a text of %d bytes: at most %d, of UTF-8", len(text), maxReason))
	}
	g.marking.Lock()
	defer g.marking.Unlock()
	cp, err := g.Checkpoint(number)
	if err != nil {
		return Checkpoint{}, err
	}
	facts := g.manifest.now()
	if facts.lost(number) {
		return fail(ErrNotFound)
	}
	isNew, err := news(&facts, &cp)
	if err != nil || !isNew {
		if err != nil {
			return fail(err)
		}
		return cp, nil
	}
	if !invariant.Planted("journal/show-unsaid") {
		if err := g.manifest.put(true, e); err != nil {
			return fail(err)
		}
	}
	facts.apply(e)
	facts.mark(&cp)
	if facts.lost(number) {
		if err := g.store.catalogue.Forget(g.info.ID, number); err != nil {
			return fail(err)
		}
		return cp, g.recount()
	}
	if err := g.store.catalogue.Put(g.info.ID, cp); err != nil {
		return fail(fmt.Errorf("it is kept, and shown when the target is started again: %w", err))
	}
	return cp, nil
}
