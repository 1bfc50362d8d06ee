package capture

import "time"

// overrun decides, for a volume, when writes are not captured although there are slots: a guest that
// has outrun the VRA would only do so again, and what is read from the disk later is dirty already. So
// both cost it the least, and the processors are its own. A lane asks; its times are of monoClock.
type overrun struct {
	until int64
	rest  time.Duration
}

// How long captures rest after the slots ran out, at first and at most; and for how long they must then
// suffice for the next rest to be a first one.
const (
	overrunFirst = 50 * time.Millisecond
	overrunMost  = 2 * time.Second
	overrunCalm  = time.Second
)

// ranOut says that there were no slots for a write.
func (o *overrun) ranOut(now int64) {
	switch {
	case now < o.until:
		return
	case now-o.until < int64(overrunCalm) && o.rest > 0:
		o.rest = min(2*o.rest, overrunMost)
	default:
		o.rest = overrunFirst
	}
	o.until = now + int64(o.rest)
}

// rests says that nothing is captured now.
func (o *overrun) rests(now int64) bool { return now < o.until }
