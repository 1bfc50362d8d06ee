package journal

import (
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/journal/retain"
)

func TestFlow(t *testing.T) {
	var f flow
	const mib = 1 << 20
	at, taken := time.Hour, int64(50*mib) // what came before is no rate
	f.step(at, taken)
	if got := f.in(slackTime); got != 0 {
		t.Errorf("at first %d bytes", got)
	}
	for range 20 {
		at, taken = at+10*time.Second, taken+1000*mib
		f.step(at, taken)
		f.step(at+time.Second/2, taken) // two looks at one moment count once
	}
	if got := f.in(slackTime); got < 1490*mib || got > 1500*mib {
		t.Errorf("at 100 MiB/s %d MiB come in within %s", got/mib, slackTime)
	}
	for range 20 {
		at += 10 * time.Second
		f.step(at, taken)
	}
	if got := f.in(slackTime); got > mib {
		t.Errorf("when nothing came for long %d bytes", got)
	}
}

// The faster a group fills, the earlier before its limit something gives way.
func TestFlowCountsInPlans(t *testing.T) {
	tt, err := openSmall(faultdisk.New(512))
	ok(t, err)
	defer tt.store.Close()
	ok(t, tt.group.SetRetention(retain.Policy{History: 24 * time.Hour, Limit: 4 << 30, WarnPercent: 75}))
	at := tt.group.store.retainer.passed() + time.Hour
	slow := tt.group.stateOf(at, diskSpace{}).Slack
	for i := range 8 {
		tt.group.retention.room.taken.Add(1 << 30)
		at += 10 * time.Second
		if quick := tt.group.stateOf(at, diskSpace{}).Slack; i > 4 && quick < max(1<<30, 2*slow) {
			t.Errorf("at 100 MiB/s %d bytes before the limit, and %d without intake", quick, slow)
		}
	}
}
