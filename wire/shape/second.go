package shape

import "time"

// second counts what left in the second before now, in slots: any second that ends now or
// lies within the last second and a slot holds no more than sum.
type second struct {
	slots [time.Second/slotTime + 1]int64
	last  int64 // number of the newest slot, since the epoch of the clock
	sum   int64
}

// slotTime is how fine the last second is counted.
const slotTime = 5 * time.Millisecond

// pass forgets what is older than a second and a slot.
func (w *second) pass(now time.Time) {
	n := now.UnixNano() / int64(slotTime)
	if n-w.last >= int64(len(w.slots)) {
		w.slots, w.sum, w.last = [len(w.slots)]int64{}, 0, n
		return
	}
	for w.last < n {
		w.last++
		at := &w.slots[w.last%int64(len(w.slots))]
		w.sum -= *at
		*at = 0
	}
}

func (w *second) add(now time.Time, bytes int64) {
	w.pass(now)
	w.slots[w.last%int64(len(w.slots))] += bytes
	w.sum += bytes
}

// room is when the sum will be no more than most, if nothing is added.
func (w *second) room(now time.Time, most int64) time.Time {
	w.pass(now)
	sum := w.sum
	for i := int64(1); sum > most && i <= int64(len(w.slots)); i++ { // the next slot is where the oldest is
		sum -= w.slots[(w.last+i)%int64(len(w.slots))]
		if sum <= most {
			return time.Unix(0, (w.last+i)*int64(slotTime)).In(now.Location())
		}
	}
	return now
}

func (w *second) forget() { *w = second{last: w.last} }
