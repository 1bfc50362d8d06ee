package journal

import (
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync/atomic"
	"time"

	"github.com/holdfast-dr/holdfast/journal/retain"
	"pgregory.net/rapid"
)

// marks are what a history says of its checkpoints, and how it lets go of them.
type marks struct {
	clock atomic.Int64 // the store's, ns
	born  map[uint64]time.Duration
	thins spans // as they were asked for
}

func (k *marks) passed() time.Duration { return time.Duration(k.clock.Load()) }

func (m *model) storeClock() retain.Instant {
	now := m.marks.clock.Load()
	return retain.Instant{Boot: [16]byte{1}, Mono: time.Duration(now), Wall: now}
}

// pick draws a listed checkpoint; false: there is none.
func (m *model) pick() (uint64, bool) {
	numbers := slices.Sorted(maps.Keys(m.cps))
	if len(numbers) == 0 {
		return 0, false
	}
	return rapid.SampledFrom(numbers).Draw(m.t, "checkpoint"), true
}

// says holds what the group answers against what the checkpoint is to be now.
func (m *model) says(want, got Checkpoint, err error) {
	m.must(err)
	if fmt.Sprintf("%+v", got) != fmt.Sprintf("%+v", want) {
		m.t.Fatalf("said to be\n%+v, want\n%+v", got, want)
	}
	m.cps[want.Number] = want
}

func (m *model) tag() {
	if n, ok := m.pick(); ok {
		cp := m.cps[n]
		cp.Tag = rapid.SampledFrom([]string{"", "by hand", "again"}).Draw(m.t, "tag")
		got, err := m.w.group.Tag(n, cp.Tag)
		m.says(cp, got, err)
	}
}

func (m *model) pin() {
	if n, ok := m.pick(); ok {
		cp := m.cps[n]
		cp.Pinned, cp.Label = true, rapid.SampledFrom([]string{"", "audit"}).Draw(m.t, "label")
		got, err := m.w.group.Pin(n, cp.Label)
		m.says(cp, got, err)
	}
}

// unpin lets a checkpoint go again; if its neighbours were thinned out, at once.
func (m *model) unpin() {
	n, ok := m.pick()
	if !ok {
		return
	}
	cp := m.cps[n]
	was := cp.Pinned
	cp.Pinned, cp.Label = false, ""
	got, err := m.w.group.Unpin(n)
	m.says(cp, got, err)
	if was && slices.ContainsFunc(m.marks.thins, func(s span) bool { return s.holds(n) }) {
		m.forget(n)
	}
}

func (m *model) forget(number uint64) {
	delete(m.cps, number)
	delete(m.images, number)
}

// promote makes a pass to a listed checkpoint, never past a pinned one.
func (m *model) promote() {
	n, ok := m.pick()
	if !ok {
		return
	}
	pinned := false
	for k, cp := range m.cps {
		pinned = pinned || cp.Pinned && k < n
	}
	err := m.w.group.promote(n, noPace)
	if pinned != errors.Is(err, errBelow) {
		m.t.Fatalf("promotion to %d, a pin below %v: %v", n, pinned, err)
	}
	if pinned {
		return
	}
	m.must(err)
	for k := range maps.Clone(m.cps) {
		if k < n {
			m.forget(k)
		}
	}
	m.all()
}

// age lets time pass, and the store act on it: what is gone then was old enough, not
// pinned.
func (m *model) age() {
	m.marks.clock.Add(int64(time.Duration(rapid.IntRange(1, 50).Draw(m.t, "minutes")) * time.Minute))
	r := &m.w.store.retainer
	for gone := ^uint64(0); gone != m.w.group.manifest.now().gone; {
		gone = m.w.group.manifest.now().gone
		r.look(r.passed())
		m.heed()
	}
	m.listed()
}

// heed lets go of what the store has: it looks by itself too, once a second has passed and
// then every ten, and a cut that came since the last look may allow it more.
func (m *model) heed() {
	for r := &m.w.store.retainer; r.isBusy(m.w.group); {
		runtime.Gosched()
	}
	gone := m.w.group.manifest.now().gone
	for n, cp := range maps.Clone(m.cps) {
		if n >= gone {
			continue
		}
		if age := m.marks.passed() - m.marks.born[n]; cp.Pinned || age < retain.MinHistory {
			m.t.Fatalf("checkpoint %d of %s, pinned %v, is gone", n, age, cp.Pinned)
		}
		m.forget(n)
	}
}
