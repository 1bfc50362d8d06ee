package kvm

import (
	"context"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
)

// told is a plan in short: what is done to what, and whether it can be undone.
func told(p Plan, err error) string {
	if err != nil {
		return err.Error()
	}
	var lines []string
	for _, s := range p.Steps {
		line := fmt.Sprintf("wish %d", s.Wish)
		switch {
		case s.Join != nil:
			line = fmt.Sprintf("join %x %q %v", s.Join.Token, s.Join.Bitmap, s.Join.Source)
		case s.Make != nil:
			line = "await " + s.Make.Ready + s.Make.Ended + s.Make.Withdrawn
		case s.QMP != nil:
			line = s.QMP.Execute
			for _, k := range []string{"job-id", "id", "name", "target", "device"} {
				if v, ok := s.QMP.Arguments[k]; ok {
					line += fmt.Sprint(" ", v)
				}
			}
		}
		if s.Undo != nil {
			line += " | " + s.Undo.Execute
		}
		if s.Tidy {
			line += " tidy"
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "\n")
}

// mirrorGuest is a guest with a qcow2 disk and bitmaps of it.
func mirrorGuest(bitmaps ...Bitmap) Guest {
	g := testGuest("a qcow2 /v1", "b raw /else")
	g.Disks[0].Root.Keeps, g.Disks[0].Bitmaps = true, bitmaps
	return g
}

func TestMirrorPlans(t *testing.T) {
	v := testVolume("v1")
	v.Mirror = true
	o := MirrorOptions{Socket: "/run/qmp.nbd", Token: 0xbeef}
	plan := func(g Guest, now Mirrored) string {
		d, found, err := Find(g, []Volume{v}, "", "")
		if err != nil {
			return err.Error()
		}
		return told(PlanMirror(g, d, found, now, o))
	}
	f := func(what, got string, want ...string) {
		t.Helper()
		if got != strings.Join(want, "\n") {
			t.Errorf("%s:\n%s\nwant\n%s", what, got, strings.Join(want, "\n"))
		}
	}
	const add, changes = "block-dirty-bitmap-add holdfast-v1-000000000000beef | block-dirty-bitmap-remove", "holdfast-v1-changes"
	const shows = "holdfast.changes-v1"
	begin := []string{add, "nbd-server-start", "block-export-add holdfast-v1 v1 | block-export-del",
		"drive-mirror holdfast-v1 nbd+unix:///v1?socket=%2Frun%2Fv1.sock #block0 | block-job-cancel", "await holdfast-v1"}
	whole := append(begin[:len(begin):len(begin)], `join beef "" {/run/qmp.nbd v1}`)
	f("at first", plan(mirrorGuest(), Mirrored{}), whole...)
	f("with another's bitmap", plan(mirrorGuest(Bitmap{Name: "backup", Recording: true}), Mirrored{Token: 5}), whole...)

	const fives, stale = "holdfast-v1-0000000000000005", "holdfast-v1-0000000000000009"
	known := append(begin[:len(begin):len(begin)], "block-dirty-bitmap-add "+changes+" | block-dirty-bitmap-remove", "block-dirty-bitmap-merge "+changes,
		"block-export-add "+shows+" v1/changes | block-export-del", `join beef "`+changes+`" {/run/qmp.nbd v1}`,
		"block-export-del "+shows+" tidy", "await "+shows+" tidy", "block-dirty-bitmap-remove "+changes+" tidy", "block-dirty-bitmap-remove "+fives+" tidy")
	five := Bitmap{Name: fives, Recording: true}
	f("after a loss", plan(mirrorGuest(five), Mirrored{Token: 5}), known...)
	remove := func(name string) string { return "block-dirty-bitmap-remove " + name }
	for what, b := range map[string]Bitmap{"of another time": {Name: stale, Recording: true}, "that stopped": {Name: fives}, "of a crash": {Name: fives, Recording: true, Inconsistent: true}} {
		f("with a bitmap "+what, plan(mirrorGuest(b), Mirrored{Token: 5}), append([]string{remove(b.Name)}, whole...)...)
	}
	f("with a bitmap, and a filter that knows none", plan(mirrorGuest(five), Mirrored{}), append([]string{remove(fives)}, whole...)...)

	stands := mirrorGuest(five)
	stands.Jobs, stands.Exports = []string{"mirror holdfast-v1"}, []string{"holdfast-v1"}
	f("attached already", plan(stands, Mirrored{Stands: true, Token: 5}))
	again := append([]string{"block-job-cancel holdfast-v1", "await holdfast-v1", "block-export-del holdfast-v1", "await holdfast-v1"}, known...)
	f("a job that leads nowhere", plan(stands, Mirrored{Token: 5}), again...)
	half := mirrorGuest(Bitmap{Name: stale, Recording: true}, five, Bitmap{Name: changes})
	half.Exports = []string{shows, "holdfast-v1-changes"} // the latter of a volume that is called so
	f("after an attaching that was killed", plan(half, Mirrored{Token: 5}),
		append([]string{"block-export-del " + shows, "await " + shows, remove(stale), remove(changes)}, known...)...)

	refuse := func(want string, change func(*Guest)) {
		t.Helper()
		g := mirrorGuest()
		change(&g)
		if got := plan(g, Mirrored{}); !strings.Contains(got, want) {
			t.Errorf("%s, want %s", got, want)
		}
	}
	refuse("QEMU 6.1 is not known to mirror so", func(g *Guest) { g.Version = [2]int{6, 1} })
	refuse("a is read-only", func(g *Guest) { g.Disks[0].Root.ReadOnly = true })
	refuse("a is served by a thread (iothread)", func(g *Guest) { g.Disks[0].Threaded = true })
	refuse("a has 512 bytes for the guest, and volume v1 has 1048576", func(g *Guest) { g.Disks[0].Root.Bytes = 512 })
	refuse("block jobs run: wait for them or end them: stream s", func(g *Guest) { g.Jobs = []string{"mirror holdfast-other", "stream s"} })
	refuse("no disk of the guest is that of a volume", func(g *Guest) { g.Disks[0].Root.File = "/v2" })

	unmirror := func(g Guest, now Mirrored, forgets bool) string {
		d, found, err := Find(g, []Volume{v}, "", "")
		if err != nil {
			t.Fatal(err)
		}
		return told(PlanUnmirror(g, d, found, now, forgets), nil)
	}
	end := []string{"block-job-cancel holdfast-v1", "await holdfast-v1", "block-export-del holdfast-v1", "await holdfast-v1", "nbd-server-stop tidy"}
	f("detach", unmirror(stands, Mirrored{Stands: true}, false), append([]string{"wish 1"}, end...)...)
	f("detach without a filter, and forget", unmirror(stands, Mirrored{}, true), append(end, remove(fives)+" tidy")...)
	f("detached already", unmirror(mirrorGuest(five), Mirrored{}, false))
	stands.Exports = append(stands.Exports, "another's")
	f("beside another export", unmirror(stands, Mirrored{}, false), end[:4]...)
}

// TestCarryAwaits: what QEMU ends in its own time is waited for; a job that ended at once is an error; and what was done before is as good.
func TestCarryAwaits(t *testing.T) {
	f := func(s Step, want string) {
		t.Helper()
		var looks atomic.Int64
		socket := monitorThat(t, greeting, func(line string) string {
			answer := func(what string) string { return `{"return": ` + what + `, "id": ` + idIn(line) + `}` }
			switch {
			case strings.Contains(line, "query-block-jobs"):
				if looks.Add(1) < 3 {
					return answer(`[{"device":"ends","ready":true},{"device":"begins","ready":false}]`)
				}
				return answer(`[{"device":"begins","ready":true}]`)
			case strings.Contains(line, "query-block-exports"):
				if looks.Load() < 3 {
					return answer(`[{"id":"goes"}]`)
				}
				return answer(`[{"id":"stays"}]`)
			case strings.Contains(line, "nbd-server-start"):
				return `{"error": {"class": "GenericError", "desc": "NBD server already running"}, "id": ` + idIn(line) + `}`
			}
			if strings.Contains(line, "block-job-cancel") {
				return `{"error": {"class": "DeviceNotActive", "desc": "Block job 'gone' not found"}, "id": ` + idIn(line) + `}`
			}
			return fine(line)
		})
		m, err := Dial(t.Context(), socket)
		if err != nil {
			t.Fatal(err)
		}
		defer m.Close()
		filter := &testFilter{}
		err = Carry(context.Background(), m, filter, Plan{Steps: []Step{s}})
		if got := fmt.Sprint(err); !strings.Contains(got, want) {
			t.Errorf("%+v: %v, want %s", s, err, want)
		}
		if s.Join != nil && fmt.Sprint(filter.told) != "[join]" {
			t.Errorf("the filter was told %v", filter.told)
		}
	}
	f(Step{Make: &Expect{Ended: "ends"}}, "<nil>")
	f(Step{Make: &Expect{Ready: "begins"}}, "<nil>")
	f(Step{Make: &Expect{Withdrawn: "goes"}}, "<nil>")
	f(Step{Make: &Expect{Ready: "never"}}, "job never has ended at once")
	f(Step{Wish: Joined, Join: &Join{Token: 1}}, "<nil>")
	start := &Command{Execute: "nbd-server-start"}
	f(Step{QMP: start, Already: "already running"}, "<nil>")
	at := func(greets string) string { return monitorThat(t, greets, func(string) string { return "" }) }
	f(Step{QMP: start, Already: "already running", Serves: at("NBDMAGICIHAVEOPT")}, "<nil>")
	f(Step{QMP: start, Already: "already running", Serves: at("another")}, "it speaks no NBD) and so is somebody else's: end that")
	f(Step{QMP: start, Already: "already running", Serves: t.TempDir() + "/none"}, "no such file or directory) and so is somebody else's: end that")
	m := &Monitor{PID: 1}
	if err := (carrier{m: m}).serves(t.Context(), at("NBDMAGIC")); err == nil || !strings.Contains(err.Error(), "serves there, and QEMU is 1") {
		t.Errorf("another process: %v", err)
	}
	f(Step{QMP: start}, "NBD server already running")
	f(Step{QMP: ptr(cancel("gone"))}, "Block job 'gone' not found")
	f(endMirror(true, "gone")[0], "<nil>")
}
