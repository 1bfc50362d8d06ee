package journal

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/replica"
	"github.com/holdfast-dr/holdfast/journal/retain"
	"github.com/holdfast-dr/holdfast/journal/segment"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// retention is a group's part in keeping its history within bounds.
type retention struct {
	passing  sync.Mutex // one pass at a time; before all others. It guards what follows
	promoter *replica.Promoter
	done     passDone
	from     segment.Pos // what of the log lies below is in the replicas; 0: not known

	stretchPieces int // of a pass; 0: the constant of that name. Small ones make tests small

	room         room
	passage      passage
	pace         bucket       // of passes
	promoted     atomic.Int64 // bytes written into replicas by promotion, since Open
	replicaBytes atomic.Int64

	mu      sync.Mutex // after Group.mu
	flow    flow
	policy  retain.Policy
	own     bool // it was set for this group
	ages    retain.Ages
	base    uint64
	state   retain.Decision
	since   time.Time // of state's level
	trouble error     // why the last pass failed

	unthinned error  // why the last thinning failed
	stuck     string // it is final until the store is opened again
}

// note changes what r.mu guards.
func (r *retention) note(f func(*retention)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f(r)
}

// RetentionState tells how a group's history is kept.
type RetentionState struct {
	Policy retain.Policy
	Own    bool          // the policy was set for this group, and is not the store's
	Held   time.Duration // how far back the oldest checkpoint lies, as far as it is known
	Oldest uint64        // the oldest checkpoint, good or not; 0: none
	// Everywhere is the newest checkpoint that is known to be listed at every target of the
	// group; the history does not begin beyond it. 0: none is known.
	Everywhere uint64
	Usage      Usage
	Level      retain.Level
	Reason     string // of any level but Plenty
	Since      time.Time
	// Promoted is the bytes written into the replicas by promotion since the store was opened.
	Promoted int64
	// Thinned is how many checkpoints were thinned out since then, Folded the bytes of log that
	// were folded, and Freed by how much the log is shorter for it.
	Thinned, Folded, Freed int64
	Err                    error // why the last pass failed; it is tried again
}

// Retention tells how the group's history is kept.
func (g *Group) Retention() RetentionState {
	s := RetentionState{Usage: g.Usage(), Promoted: g.retention.promoted.Load(),
		Thinned: g.folding.thinned.Load(), Folded: g.folding.folded.Load(), Freed: g.folding.freed.Load()}
	now := g.store.retainer.passed()
	if g.opened() == nil {
		g.mu.Lock()
		s.Everywhere = g.cuts.limit
		g.mu.Unlock()
		if page, err := g.store.catalogue.List(g.info.ID, index.Query{Limit: 1}); err == nil && len(page.Checkpoints) > 0 {
			s.Oldest = page.Checkpoints[0].Number
		}
	}
	g.retention.note(func(r *retention) {
		s.Policy, s.Own, s.Err = r.policy, r.own, oneLine(cmp.Or(r.trouble, r.unthinned))
		s.Level, s.Reason, s.Since = r.state.Level, r.state.Reason, r.since
		if at, ok := r.ages.Date(s.Oldest); ok && s.Oldest != 0 {
			s.Held = max(0, now-at)
		}
	})
	return s
}

// ListedEverywhere takes in that a checkpoint is listed at every target of the group: the
// history may begin there. Cuts say the same, but none comes while there is no room.
func (g *Group) ListedEverywhere(number uint64) {
	g.mu.Lock()
	number = min(number, g.cuts.newest) // a source knows of none that was not listed here
	rose := number > g.cuts.limit
	if rose {
		g.cuts.limit = number
	}
	g.mu.Unlock()
	tight := false
	g.retention.note(func(r *retention) { tight = r.state.Level >= retain.Shortened })
	if rose && tight && !invariant.Planted("journal/everywhere-unheard") {
		g.store.retainer.kick()
	}
}

// SetRetention gives the group a policy of its own, durably.
func (g *Group) SetRetention(p retain.Policy) error {
	if err := p.Validate(); err != nil {
		return fmt.Errorf("journal: group %s: %w", g.info.ID, err)
	}
	return g.setPolicy(p, true, string(p.AppendTo(nil)))
}

// ClearRetention takes the group's own policy back: the store's counts again.
func (g *Group) ClearRetention() error { return g.setPolicy(g.store.policy(), false, "") }

func (g *Group) setPolicy(p retain.Policy, own bool, stated string) error {
	if err := g.opened(); err != nil {
		return err
	}
	if err := g.manifest.put(true, entry{kind: entryPolicy, reason: stated}); err != nil {
		return fmt.Errorf("journal: group %s: %w", g.info.ID, err)
	}
	g.retention.note(func(r *retention) { r.policy, r.own = p, own })
	g.log.Info("retention is set", "history", retain.FormatDuration(p.History), "limit", p.Limit, "own", own)
	g.store.retainer.kick()
	return nil
}

// policy is what counts for groups without one of their own.
func (s *Store) policy() retain.Policy {
	if p := s.configured.Load(); p != nil {
		return *p
	}
	if s.cfg.Retention.History == 0 {
		return retain.Default()
	}
	return s.cfg.Retention
}

// SetDefaultRetention changes what counts for groups without a policy of their own, at once. It is as long as the store is
// open: the next opening brings its own.
func (s *Store) SetDefaultRetention(p retain.Policy) error {
	if err := p.Validate(); err != nil {
		return err
	}
	s.configured.Store(&p)
	for _, g := range s.Groups() {
		g.retention.note(func(r *retention) {
			if !r.own {
				r.policy = p
			}
		})
	}
	s.log.Info("retention is configured anew", "history", retain.FormatDuration(p.History), "limit", p.Limit)
	s.retainer.kick()
	return nil
}

// loadRetention takes over what the manifest says, and puts in place what a crash tore
// of the replicas.
func (g *Group) loadRetention() (err error) {
	facts := g.manifest.now()
	g.gone, g.thinned = facts.gone, facts.thinned
	r := &g.retention
	r.base = facts.promoted.number
	r.policy = g.store.policy()
	r.room.set(0, 0, 0)
	if facts.policy != "" {
		p, err := retain.ParsePolicy([]byte(facts.policy))
		if errors.Is(err, retain.ErrVersion) {
			return fmt.Errorf("retention: %w: %w", ErrFormat, err)
		}
		if err != nil {
			return fmt.Errorf("retention: %w: %w", ErrCorrupt, err)
		}
		r.policy, r.own = p, true
	}
	r.ages = g.store.retainer.agesOf(g.info.ID, facts.lineage)
	r.promoter, err = replica.OpenPromoter(g.store.cfg.FS, g.replicaDir(), g.info.ID, g.replicaOf)
	return err
}

// replicaNow is replicaOf for who does not hold g.mu: volumes come at any time.
func (g *Group) replicaNow(id record.VolumeID) *replica.Volume {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.replicaOf(id)
}

// replicaOf returns the replica of a volume; nil: there is none. g.mu is held, or the group is not open yet.
func (g *Group) replicaOf(id record.VolumeID) *replica.Volume {
	if v := g.volumes[id]; v != nil {
		return v.replica
	}
	return nil
}

// stateOf is how things stand with the group, for a plan.
func (g *Group) stateOf(now time.Duration, disk diskSpace) retain.State {
	u := g.Usage()
	s := retain.State{Used: u.Journal(), Short: disk.short, Full: g.full(), Now: now, Checkpoints: listed{g}}
	if disk.free >= 0 {
		s.Free, s.Wanted = disk.free, disk.wanted
	}
	g.mu.Lock()
	s.Unread = g.unreadViewLocked()
	s.Gone, s.Resync, s.Listed = g.gone, g.resync, g.cuts.limit
	if err := g.heldByFailoverLocked(); err != nil {
		s.Held = oneLine(err).Error()
	}
	g.eachHeldLocked(func(n uint64, live bool) {
		view := &s.TestView
		if live {
			view = &s.LiveView
		}
		if n != 0 && (*view == 0 || n < *view) {
			*view = n
		}
	})
	g.mu.Unlock()
	for n := range g.manifest.now().pins {
		if s.Pinned == 0 || n < s.Pinned {
			s.Pinned = n
		}
	}
	g.retention.note(func(r *retention) {
		s.Policy, s.Base, s.Ages, s.Stuck = r.policy, r.base, r.ages.Clone(), r.stuck
		r.flow.step(now, r.room.taken.Load())
		s.Slack = max(g.store.slack(r.policy.Limit), r.flow.in(slackTime))
	})
	g.retention.room.set(s.Policy.Limit, s.Used, min(s.Slack, s.Policy.Limit/4))
	return s
}

// decided takes over a plan's verdict.
func (g *Group) decided(d retain.Decision, now time.Time) {
	var stop error
	if d.Stop && !g.full() {
		stop = fmt.Errorf("%w: %s", ErrLimit, d.Reason)
	}
	g.retention.room.stop(stop, d.Promote != 0 || d.Yield)
	g.retention.note(func(r *retention) {
		if r.state.Level != d.Level {
			r.since = now
			log := g.log.Warn
			if d.Level == retain.Stopped {
				log = g.log.Error
			} else if d.Level == retain.Plenty {
				log = g.log.Info
			}
			log("space for history", "level", d.Level.String(), "reason", d.Reason)
		}
		r.state = d
	})
}

// passed keeps how a pass went.
func (g *Group) passed(err error) {
	g.retention.note(func(r *retention) {
		r.trouble = err
		if errors.Is(err, replica.ErrFailed) {
			r.stuck = "nothing is promoted until the store is opened again: " + oneLine(err).Error()
		}
	})
	if err != nil && !errors.Is(err, ErrClosed) {
		g.log.Error("promotion failed, and is tried again", "error", err)
	}
}

// listed answers a plan from the catalogue. What cannot be read is not there: a plan
// then does less.
type listed struct{ g *Group }

func (l listed) Newest(number uint64) (any, good uint64) {
	c, id := l.g.store.catalogue, l.g.info.ID
	page, err := c.List(id, index.Query{Newest: true, After: number + 1, Limit: 1})
	if err != nil || len(page.Checkpoints) == 0 {
		return 0, 0
	}
	any = page.Checkpoints[0].Number
	if cp, ok, err := c.Newest(id, number); err == nil && ok {
		good = cp.Number
	}
	return any, good
}

func (l listed) Next(number uint64) (any, good uint64) {
	c, id := l.g.store.catalogue, l.g.info.ID
	page, err := c.List(id, index.Query{After: number, Limit: 1})
	if err != nil || len(page.Checkpoints) == 0 {
		return 0, 0
	}
	any = page.Checkpoints[0].Number
	if cp, ok, err := c.Oldest(id, number+1); err == nil && ok {
		good = cp.Number
	}
	return any, good
}

// ThinPlan returns which checkpoints the policy's tiers do without, as pairs of those
// that stay: what lies between is to be stated thinned, and then folded. It looks at no
// more than limit checkpoints above after, and says where to go on; 0: from the beginning.
func (g *Group) ThinPlan(after uint64, limit int) (pairs []retain.Pair, next uint64, err error) {
	cps, err := g.Checkpoints(after, limit)
	if err != nil {
		return nil, 0, err
	}
	now := g.store.retainer.passed()
	views := make(map[uint64]bool)
	g.mu.Lock()
	g.eachHeldLocked(func(n uint64, _ bool) { views[n] = true })
	g.mu.Unlock()
	var dated []retain.Dated
	var tiers []retain.Tier
	g.retention.note(func(r *retention) {
		tiers = slices.Clone(r.policy.Tiers)
		for _, cp := range cps {
			at, ok := r.ages.Date(cp.Number)
			if !ok {
				at = now
			}
			dated = append(dated, retain.Dated{Number: cp.Number, At: at, Good: cp.State == index.Good, Kept: cp.Pinned || views[cp.Number]})
		}
	})
	if len(cps) == limit && limit > 1 {
		next = cps[len(cps)-2].Number // the last stays, and is looked at again as the first
	}
	return retain.Thin(tiers, now, dated), next, nil
}

// DefaultRetention is what counts for groups without a policy of their own.
func (s *Store) DefaultRetention() retain.Policy { return s.policy() }
