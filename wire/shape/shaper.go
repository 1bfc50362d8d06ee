package shape

import (
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Grant lets a group put Bytes, as the interface counts, on the connection it offered
// them for. Done must follow.
type Grant struct {
	Group string
	Bytes int64
}

// Shaper is one VRA's. New makes one.
type Shaper struct {
	policy Policy
	zone   *time.Location
	cap    Rate
	minute int64 // of the clock in which cap was looked up

	level float64   // bytes that are earned and did not leave; below 0, charged and not yet earned
	burst float64   // bytes that may leave at once
	at    time.Time // when they were that
	past  second    // what left
	kept  int64     // bytes that were granted or charged, and wait in the kernel still

	order order
	short bool // the last Next could not grant for want of level
	from  time.Time
}

// New returns a shaper under the policy p, whose windows are of the given zone.
func New(now time.Time, p Policy, zone *time.Location) *Shaper {
	s := &Shaper{at: now, from: now, order: newOrder()}
	s.Change(now, p, zone)
	s.full()
	return s
}

// Change puts another policy into force. It counts from the next grant on.
func (s *Shaper) Change(now time.Time, p Policy, zone *time.Location) {
	s.earn(now)
	s.policy, s.zone = p.Clone(), zone
	s.minute = -1
	s.look(now)
	s.order.priorities(s.policy)
}

// Policy is what is in force.
func (s *Shaper) Policy() Policy { return s.policy.Clone() }

// Cap is the cap at now, and the window that gives it, if one does.
func (s *Shaper) Cap(now time.Time) (Rate, *Window) {
	s.look(now)
	_, w := s.policy.CapAt(now.In(s.zone))
	return s.cap, w
}

// InForce is the cap as Next saw it last.
func (s *Shaper) InForce() Rate { return s.cap }

// look finds the cap of the minute. No zone has ever had a window begin within one.
func (s *Shaper) look(now time.Time) {
	if m := now.Unix() / 60; m != s.minute && !invariant.Planted("shape/windows-asleep") || s.minute < 0 {
		s.minute = m
		c, _ := s.policy.CapAt(now.In(s.zone))
		if c != s.cap {
			s.earn(now) // at the old cap
			if s.cap == 0 {
				s.cap = c
				s.full()
			}
			s.cap = c
			s.past.forget() // the new cap counts from now on
			s.bound()
		}
	}
}

// full is how a shaper begins: a quantum may leave.
func (s *Shaper) full() {
	s.level = float64(s.cap.Quantum())
	s.burst = s.level
}

const (
	// CatchUp is how many times the cap is the rate at which is sent what somebody came too
	// late for.
	CatchUp = 2
	// lateTime is how much of the cap's time can be made up for.
	lateTime = 250 * time.Millisecond
)

// earn adds what the time since the last call brought.
func (s *Shaper) earn(now time.Time) {
	if d := now.Sub(s.at); d > 0 {
		earned := s.cap.BytesPerSecond() * d.Seconds()
		s.level += earned
		s.burst += earned * CatchUp
		s.at = now
	}
	s.bound()
}

// bound keeps what may leave at once below a quantum, and so what was earned while nobody
// had anything to send. There is no debt longer than a second: a cap that falls far must
// not stop groups for minutes over what was charged before.
func (s *Shaper) bound() {
	quantum, second := float64(s.cap.Quantum()), s.cap.BytesPerSecond()
	most := quantum
	if s.order.busy() && !invariant.Planted("shape/late-is-lost") {
		most += second * lateTime.Seconds()
	}
	if invariant.Planted("shape/idle-saves") {
		most, quantum = second, second
	}
	s.level = max(min(s.level, most), -second)
	s.burst = max(min(s.burst, quantum), -second)
}

// spend takes bytes that leave.
func (s *Shaper) spend(now time.Time, bytes int64) {
	s.level -= float64(bytes)
	s.burst -= float64(bytes)
	if invariant.Planted("shape/left-when-granted") {
		s.past.add(now, bytes)
		return
	}
	s.kept += bytes
}

// Left says that kept bytes of all that was granted and charged wait in the kernel, or to
// be written; what else there was has left since the last call. A second is held to the
// cap by what leaves in it: what a stalled connection kept leaves when it goes on.
func (s *Shaper) Left(now time.Time, kept int64) {
	s.past.add(now, s.kept-kept)
	s.kept = kept
}

// lacks is how long it will be until n bytes may leave.
func (s *Shaper) lacks(now time.Time, n int64) time.Duration {
	rate := s.cap.BytesPerSecond()
	lack := max((float64(n)-s.level)/rate, (float64(n)-s.burst)/(rate*CatchUp))
	d := time.Duration(max(lack, 0) * float64(time.Second))
	if lack > 0 {
		d += time.Microsecond
	}
	if most := int64(rate) + s.cap.Quantum() - s.kept - n; !invariant.Planted("shape/seconds-uncounted") {
		d = max(d, s.past.room(now, most).Sub(now))
	}
	return d
}

// Charge counts bytes that left, or will, without a grant; below zero, such as were granted and
// did not leave.
func (s *Shaper) Charge(now time.Time, bytes int64) {
	if s.cap == 0 || invariant.Planted("shape/uncharged") {
		return
	}
	s.earn(now)
	s.spend(now, bytes)
	s.bound()
}

// Offer says that group has a record of bytes, as the interface counts, for a
// connection. A group has one offer at a time.
func (s *Shaper) Offer(now time.Time, group string, conn uint64, bytes int64) {
	s.wait(now)
	s.earn(now) // idle until now
	s.order.offer(group, s.policy.of(group), conn, bytes)
}

// Done says that what was granted to group has been written, that left bytes of its
// record are still to be sent, and, when that is none, how long the next record is that
// stands ready: 0 for none. (A group that offers it only later would lose its turn to
// whoever waits.)
func (s *Shaper) Done(now time.Time, group string, left, next int64) {
	s.wait(now)
	s.order.done(group, left, next)
}

// Withdraw takes back a group's offer, wherever it stands.
func (s *Shaper) Withdraw(now time.Time, group string) {
	s.wait(now)
	s.order.withdraw(group)
}

// Next gives the next grant that may be used now. With ok false there is none: at wake
// there may be one without another call; a zero wake says that nothing waits.
func (s *Shaper) Next(now time.Time) (g Grant, wake time.Time, ok bool) {
	s.wait(now)
	s.look(now)
	s.earn(now)
	c := s.order.best()
	if c == nil {
		s.short = false
		return Grant{}, time.Time{}, false
	}
	n := s.order.wants(c)
	if s.cap > 0 {
		n = min(n, s.cap.slice())
		if d := s.lacks(now, n); d > 0 {
			s.short = true
			return Grant{}, now.Add(d), false
		}
		s.spend(now, n)
	}
	return Grant{Group: s.order.grant(c, n), Bytes: n}, time.Time{}, true
}

// wait counts the time in which groups waited for nothing but the cap.
func (s *Shaper) wait(now time.Time) {
	if d := now.Sub(s.from); d > 0 {
		if s.short {
			s.order.held(d)
		}
		s.from = now
	}
}

// Held is how long a group has waited for nothing but the cap, since it first offered.
func (s *Shaper) Held(now time.Time, group string) time.Duration {
	s.wait(now)
	if g := s.order.groups[group]; g != nil {
		return g.held
	}
	return 0
}
