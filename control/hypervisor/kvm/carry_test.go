package kvm

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// testFilter notes what it is told.
type testFilter struct {
	told          []string
	attach, serve error
}

func (f *testFilter) Detach(context.Context) error { f.told = append(f.told, "detach"); return nil }
func (f *testFilter) Attach(context.Context) error {
	f.told = append(f.told, "attach")
	return f.attach
}
func (f *testFilter) Join(context.Context, Join) error {
	f.told = append(f.told, "join")
	return f.attach
}
func (f *testFilter) Serves(context.Context) error { return f.serve }

// TestCarryGoesBack: wherever a step fails, those before it are undone, the last first; the monitor
// may be lost, and is had again.
func TestCarryGoesBack(t *testing.T) {
	command := func(name string) *Command { return &Command{Execute: name} }
	plan := Plan{Steps: []Step{
		{What: "one", QMP: command("do-1"), Undo: command("undo-1")},
		{What: "tell", Wish: Detached, Undone: Attached},
		{What: "two", QMP: command("do-2"), Undo: command("undo-2")},
		{What: "three", QMP: command("do-3")},
		{What: "told", Wish: Attached},
		{What: "four", QMP: command("do-4"), Tidy: true},
		{What: "five", QMP: command("do-5"), Tidy: true},
	}}
	f := func(fail string, lose bool, filter testFilter, want, text string) {
		t.Helper()
		var mu sync.Mutex
		var did []string
		socket := monitorThat(t, greeting, func(line string) string {
			if strings.Contains(line, "qmp_capabilities") {
				return fine(line)
			}
			_, name, _ := strings.Cut(line, `"execute":"`)
			name, _, _ = strings.Cut(name, `"`)
			mu.Lock()
			defer mu.Unlock()
			did = append(did, name)
			switch {
			case name != fail:
				return fine(line)
			case lose:
				return ""
			}
			return `{"error": {"class": "GenericError", "desc": "no"}, "id": ` + idIn(line) + `}`
		})
		m, err := Dial(t.Context(), socket)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		err = carry(t.Context(), m, &filter, plan, time.Millisecond)
		mu.Lock()
		defer mu.Unlock()
		got := strings.Join(slices.Concat(did, filter.told), " ")
		if got != want || (err == nil) != (text == "") || err != nil && !strings.Contains(err.Error(), text) {
			t.Errorf("%s fails: %s, %v\nwant %s, %s", fail, got, err, want, text)
		}
	}
	back := "the disk is where it was"
	f("", false, testFilter{}, "do-1 do-2 do-3 do-4 do-5 detach attach", "")
	f("do-1", false, testFilter{}, "do-1", "one: QEMU refuses do-1: no\n"+back)
	f("do-3", false, testFilter{}, "do-1 do-2 do-3 undo-2 undo-1 detach attach", back)
	f("do-3", true, testFilter{}, "do-1 do-2 do-3 undo-2 undo-1 detach attach", back)
	f("undo-2", false, testFilter{attach: errors.New("not yet")}, "do-1 do-2 do-3 undo-2 undo-1 detach attach attach", "going back did not succeed: QEMU refuses undo-2")
	f("do-4", false, testFilter{}, "do-1 do-2 do-3 do-4 do-5 detach attach", "the disk is where it is to be; what could not be cleared away: four")
	f("", false, testFilter{attach: errors.New("somebody writes")}, "do-1 do-2 do-3 undo-2 undo-1 detach attach attach", "told: somebody writes")

	// Gone, the filter is not gone back from: QEMU would wait for it.
	f("", false, testFilter{attach: errors.New("gone"), serve: errors.New("gone")}, "do-1 do-2 do-3 detach attach", "the guest is on the filter, which is gone and could not be told (gone): start it, and attach again")

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Carry(ctx, nil, nil, plan); !errors.Is(err, context.Canceled) {
		t.Errorf("asked to stop before it began: %v", err)
	}
}
