package wire

import (
	"fmt"
	"strconv"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Finding is one thing that a link test says in plain words. Level is "ok" or "warning".
type Finding struct{ Level, Text string }

// The bounds beyond which something is worth a warning.
const (
	clockAlarm = time.Second
	lossAlarm  = 0.01 // of the segments were sent again
	queueAlarm = 500 * time.Millisecond
	capReached = 0.97
)

// Findings says what a report means, the worst things as warnings.
func (r *LinkReport) Findings() (all []Finding) {
	say := func(level, format string, args ...any) {
		all = append(all, Finding{level, fmt.Sprintf(format, args...)})
	}
	if r.Up != nil && r.Down != nil {
		say("ok", "%s to the target and %s back, as an interface counts them.", rateText(r.Up.Interface), rateText(r.Down.Interface))
	}
	r.sayCap(say)
	if r.Idle.Count > 0 {
		say("ok", "A round trip takes %s (%s to %s).", timeText(r.Idle.Median), timeText(r.Idle.Min), timeText(r.Idle.Max))
	}
	if r.Loaded.Count > 0 && r.Loaded.Median > r.Idle.Median+queueAlarm {
		say("warning", "Under load it takes %s: something on the path queues that much. Give replication a cap a little below the link's rate, so that the queue stays empty.", timeText(r.Loaded.Median))
	}
	r.sayLoss(say)
	switch {
	case r.MTU.Lost && r.MTU.Path > 0:
		say("warning", "Packets of more than %d bytes vanish, and nobody says so: something on the path drops ICMP. Set the MTU of the tunnel or interface to %d, or let ICMP \"fragmentation needed\" (IPv6: \"packet too big\") through. Until then sessions use packets of %d bytes by themselves.", r.MTU.Path, r.MTU.Path, smallPackets)
	case r.MTU.Path > 0:
		say("ok", "Packets of %d bytes get through.", r.MTU.Path)
	}
	if ahead := r.Clock.Ahead; ahead.Abs() > clockAlarm+r.Clock.Within && !invariant.Planted("wire/clock-is-fine") {
		say("warning", "The target's clock is %s: the times of checkpoints at both sites will not agree. Set the clocks by NTP.", aheadText(ahead))
	} else if r.Idle.Count > 0 {
		say("ok", "The clocks agree to %s.", timeText(ahead.Abs()+r.Clock.Within))
	}
	return all
}

// CapReached says whether the cap can be reached to the target; it is not known where
// there is none, or nothing was measured.
func (r *LinkReport) CapReached() (reached, known bool) {
	if r.Cap == 0 || r.Up == nil {
		return false, false
	}
	return float64(r.Up.Interface) >= capReached*float64(r.Cap), true
}

func (r *LinkReport) sayCap(say func(level, format string, args ...any)) {
	reached, known := r.CapReached()
	if !known {
		return
	}
	if reached {
		say("ok", "A cap of %s to the target can be reached.", rateText(r.Cap))
		return
	}
	say("warning", "A cap of %s to the target cannot be reached: the link, beside what else is on it, carried %s.", rateText(r.Cap), rateText(r.Up.Interface))
}

func (r *LinkReport) sayLoss(say func(level, format string, args ...any)) {
	for _, way := range []struct {
		name string
		*WayReport
	}{{"to the target", r.Up}, {"from the target", r.Down}} {
		if way.WayReport == nil || way.TCP.Segments == 0 {
			continue
		}
		share := float64(way.TCP.Retransmitted) / float64(way.TCP.Segments)
		if share > lossAlarm {
			say("warning", "%.1f %% of the segments %s were sent again: the path loses packets, or a queue on it overflows.", 100*share, way.name)
		} else {
			say("ok", "%.2f %% of the segments %s were sent again.", 100*share, way.name)
		}
	}
}

func rateText(bits int64) string {
	f := func(v float64, unit string) string { return strconv.FormatFloat(v, 'f', -1, 64) + " " + unit }
	round := func(v float64) float64 { return float64(int64(v*10+0.5)) / 10 }
	switch {
	case bits >= 1e9:
		return f(round(float64(bits)/1e9), "Gbit/s")
	case bits >= 1e6:
		return f(round(float64(bits)/1e6), "Mbit/s")
	}
	return f(round(float64(bits)/1e3), "kbit/s")
}

func timeText(d time.Duration) string {
	switch {
	case d >= time.Second:
		return fmt.Sprintf("%.1f s", d.Seconds())
	case d >= time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d)/1e6)
	}
	return fmt.Sprintf("%.2f ms", float64(d)/1e6)
}

func aheadText(d time.Duration) string {
	if d < 0 {
		return timeText(-d) + " behind"
	}
	return timeText(d) + " ahead"
}
