package kvm

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

// testGuest is a guest in short words, a disk each: id, driver, file.
func testGuest(disks ...string) Guest {
	g := Guest{Version: [2]int{7, 2}, Running: true}
	for i, text := range disks {
		w := strings.Fields(text)
		n := Node{Name: fmt.Sprintf("#block%d", i), Driver: w[1], File: w[2], Bytes: 1 << 20, DetectZeroes: "off"}
		g.Disks = append(g.Disks, Disk{Name: w[0], Device: "/machine/peripheral/" + w[0] + "/virtio-backend", Root: n})
		g.Nodes = append(g.Nodes, n, Node{Name: n.Name + "f", Driver: "file", File: w[2], Bytes: 1 << 20})
	}
	return g
}

func testVolume(name string) Volume {
	path := "/" + name
	return Volume{Name: name, Path: path, Bytes: 1 << 20, Socket: "/run/" + name + ".sock", Same: func(file string) bool { return file == path }}
}

const onFilter = "nbd+unix:///v1?socket=/run/v1.sock"

func TestFind(t *testing.T) {
	volumes := []Volume{testVolume("v1"), testVolume("v2")}
	f := func(g Guest, device, volume, want string) {
		t.Helper()
		d, v, err := Find(g, volumes, device, volume)
		got := ""
		if err == nil {
			got = d.ID() + " " + v.Name
		} else {
			got = err.Error()
		}
		if got != want && (err == nil || !strings.Contains(got, want)) {
			t.Errorf("Find(%q, %q): %q, want %q", device, volume, got, want)
		}
	}
	one, two := testGuest("a raw /v1", "b raw /else"), testGuest("a raw /v1", "b file /v2")
	f(one, "", "", "a v1")
	f(one, "a", "", "a v1")
	f(one, "#block0", "v1", "a v1")
	f(one, "/machine/peripheral/a/virtio-backend", "", "a v1")
	f(two, "", "v2", "b v2")
	f(two, "b", "", "b v2")
	f(testGuest("a nbd "+onFilter), "", "", "a v1")
	f(two, "", "", "several disks fit: name one with --device and --volume: a is v1, b is v2")
	f(one, "c", "", `no disk "c": those are a (raw /v1), b (raw /else)`)
	f(one, "", "v3", `no filter serves a volume "v3": those are v1, v2`)
	f(one, "b", "", "no disk of the guest is that of a volume: the guest has a (raw /v1), b (raw /else); the filter serves v1: /v1, v2: /v2")
	f(one, "a", "v2", "no disk of the guest is that of a volume")
	f(Guest{}, "", "", "the guest has no disks")
	f(testGuest("a qcow2 /v1"), "", "", "a is of driver qcow2: only raw disks")
	f(testGuest("a raw json:{}"), "a", "", "a is no plain file")
	f(testGuest("a raw rbd://pool/x"), "a", "", "a is no plain file")
	f(testGuest("a nbd nbd+unix:///v1?socket=/run/else.sock"), "a", "", "a is of driver nbd")
	same := testGuest("a raw /v1", "a raw /v2")
	f(same, "a", "", `"a" names several disks of the guest`)
	free := testGuest("a raw /v1")
	free.Disks[0].Device = ""
	f(free, "", "", "no disk of the guest")
	f(free, "a", "v1", "a v1") // it is found, and not attached: see TestPlans
}

// words is a plan in short: a line a step.
func words(p Plan) string {
	var b strings.Builder
	say := func(c Command) string {
		text, err := json.Marshal(c.Arguments)
		if err != nil {
			panic(err)
		}
		return c.Execute + " " + string(text)
	}
	for _, s := range p.Steps {
		switch {
		case s.QMP != nil:
			b.WriteString(say(*s.QMP))
		case s.Make != nil:
			fmt.Fprintf(&b, "see {Device:%s Node:%s Bytes:%d}", s.Make.Device, s.Make.Node, s.Make.Bytes)
		default:
			fmt.Fprintf(&b, "wish %d", s.Wish)
		}
		if s.Undo != nil {
			b.WriteString(" | " + say(*s.Undo))
		}
		if s.Undone != NoWish {
			fmt.Fprintf(&b, " | wish %d", s.Undone)
		}
		if s.Tidy {
			b.WriteString(" tidy")
		}
		b.WriteString("\n")
	}
	return b.String()
}

var anHour = Options{ReconnectDelay: time.Hour}

const (
	device  = "/machine/peripheral/a/virtio-backend"
	setTo   = `qom-set {"path":"` + device + `","property":"drive","value":"%s"}`
	addNBD  = `blockdev-add {"cache":{"direct":true},"detect-zeroes":"off","discard":"ignore","driver":"nbd","export":"v1","node-name":"holdfast-1","reconnect-delay":3600,"server":{"path":"/run/v1.sock","type":"unix"}}`
	addKept = `blockdev-add {"driver":"raw","file":"#block0","node-name":"holdfast-1-kept","read-only":true}`
	delNBD  = `blockdev-del {"node-name":"holdfast-1"}`
	delKept = `blockdev-del {"node-name":"holdfast-1-kept"}`
	stop    = "stop null"
	cont    = "cont null"
)

func set(node string) string { return fmt.Sprintf(setTo, node) }

func lines(list ...string) string { return strings.Join(list, "\n") + "\n" }

// attachedGuest is a guest whose disk was attached.
func attachedGuest() Guest {
	g := testGuest("a raw /v1")
	n := Node{Name: "holdfast-1", Driver: "nbd", File: onFilter, Bytes: 1 << 20}
	g.Nodes = append(g.Nodes, n, Node{Name: "holdfast-1-kept", Driver: "raw", File: `json:{"driver": "raw"}`, ReadOnly: true})
	g.Disks[0].Root = n
	return g
}

func TestPlans(t *testing.T) {
	v := testVolume("v1")
	f := func(what string, p Plan, err error, want string) {
		t.Helper()
		got := words(p)
		if err != nil {
			got = err.Error()
		}
		if got != want && (err == nil || !strings.Contains(got, want)) {
			t.Errorf("%s:\n%s\nwant:\n%s", what, got, want)
		}
	}
	attach := func(g Guest, told bool, o Options) (Plan, error) { return PlanAttach(g, &g.Disks[0], &v, told, o) }
	detach := func(g Guest, told bool, from string) (Plan, error) {
		return PlanDetach(g, &g.Disks[0], &v, told, from)
	}
	with := func(change func(*Guest)) Guest {
		g := testGuest("a raw /v1")
		change(&g)
		return g
	}
	size := "see {Device: Node:holdfast-1 Bytes:1048576}"
	at := func(node string) string { return "see {Device:" + device + " Node:" + node + " Bytes:0}" }

	p, err := attach(testGuest("a raw /v1"), false, anHour)
	f("attach", p, err, lines("wish 1", addNBD+" | "+delNBD, size, addKept+" | "+delKept, set("holdfast-1")+" | "+set("#block0"), at("holdfast-1"), "wish 2"))
	if p.Ends() != "holdfast-1" {
		t.Errorf("it ends at %s", p.Ends())
	}
	// Whatever fails after it goes on is undone while it stands still again.
	p, err = attach(with(func(g *Guest) { g.Threads = true }), false, anHour)
	f("attach with threads", p, err, lines("wish 1", addNBD+" | "+delNBD, size, stop+" | "+cont, addKept+" | "+delKept,
		set("holdfast-1")+" | "+set("#block0"), at("holdfast-1"), cont+" | "+stop, "wish 2"))
	p, err = attach(with(func(g *Guest) { g.Threads, g.Running = true, false }), false, anHour)
	f("attach a paused guest", p, err, lines("wish 1", addNBD+" | "+delNBD, size, addKept+" | "+delKept, set("holdfast-1")+" | "+set("#block0"), at("holdfast-1"), "wish 2"))
	unmap := strings.Replace(strings.Replace(addNBD, "ignore", "unmap", 1), `"off"`, `"unmap"`, 1)
	p, err = attach(with(func(g *Guest) { g.Disks[0].Root.DetectZeroes = "unmap" }), false, anHour)
	f("attach with zeros unmapped", p, err, lines("wish 1", unmap+" | "+delNBD, size, addKept+" | "+delKept, set("holdfast-1")+" | "+set("#block0"), at("holdfast-1"), "wish 2"))
	p, err = attach(with(func(g *Guest) {
		g.Nodes = append(g.Nodes, Node{Name: "holdfast-1", Driver: "nbd", File: onFilter}, Node{Name: "holdfast-1-kept"}, Node{Name: "holdfast-2-kept"})
	}), true, anHour)
	f("attach after one that was killed", p, err, lines(delKept, delNBD, "wish 1", addNBD+" | "+delNBD, size, addKept+" | "+delKept, set("holdfast-1")+" | "+set("#block0"), at("holdfast-1"), "wish 2"))
	p, err = attach(with(func(g *Guest) {
		g.Nodes = append(g.Nodes, Node{Name: "holdfast-1", Driver: "nbd", File: "nbd+unix:///v2?socket=/s"})
	}), true, anHour)
	if err != nil || !strings.Contains(words(p), `"holdfast-2"`) || strings.Contains(words(p), delNBD) {
		t.Errorf("beside another's node: %s%v", words(p), err)
	}
	p, err = attach(attachedGuest(), false, anHour)
	f("attached already", p, err, "")
	p, err = attach(attachedGuest(), true, anHour)
	f("attached, and not told", p, err, lines("wish 2"))

	refuse := func(want string, change func(*Guest)) {
		t.Helper()
		p, err := attach(with(change), false, anHour)
		f(want, p, err, want)
	}
	refuse("QEMU 6.1 cannot", func(g *Guest) { g.Version = [2]int{6, 1} })
	refuse("a is read-only", func(g *Guest) { g.Disks[0].Root.ReadOnly = true })
	refuse("stands on 1 backing files", func(g *Guest) { g.Disks[0].Depth = 1 })
	refuse("block jobs run: wait for them or end them: mirror j", func(g *Guest) { g.Jobs = []string{"mirror j"} })
	refuse("has dirty bitmaps", func(g *Guest) { g.Disks[0].Bitmaps = []Bitmap{{Name: "b"}} })
	refuse("a thread of its controller's", func(g *Guest) { g.Disks[0].Controllers = true })
	refuse("the drive of no device", func(g *Guest) { g.Disks[0].Device = "" })
	refuse("a has 512 bytes for the guest, and volume v1 has 1048576", func(g *Guest) { g.Disks[0].Root.Bytes = 512 })
	refuse("a is /else, and volume v1 is another disk: /v1", func(g *Guest) { g.Disks[0].Root.File = "/else" })
	refuse("the guest has the disk twice: as a and as b", func(g *Guest) { *g = testGuest("a raw /v1", "b raw /v1") })
	refuse("the guest has the disk twice: as a and as b", func(g *Guest) { *g = testGuest("a raw /v1", "b nbd "+onFilter) })
	v.Socket = ""
	refuse("volume v1 has no NBD socket", func(*Guest) {})
	v = testVolume("v1")

	p, err = detach(attachedGuest(), false, "")
	f("detach", p, err, lines("wish 1 | wish 2", set("#block0")+" | "+set("holdfast-1"), at("#block0"), delNBD+" tidy", delKept+" tidy"))
	threads := attachedGuest()
	threads.Threads = true
	p, err = detach(threads, true, "")
	f("detach with threads", p, err, lines("wish 1", stop+" | "+cont, set("#block0")+" | "+set("holdfast-1"), at("#block0"), delNBD+" tidy", delKept+" tidy", cont+" | "+stop+" tidy"))
	p, err = detach(testGuest("a raw /v1"), true, "")
	f("detached already", p, err, "")
	p, err = detach(testGuest("a raw /v1"), false, "")
	f("detached, and not told", p, err, lines("wish 1"))
	killed := testGuest("a raw /v1")
	killed.Nodes = attachedGuest().Nodes
	p, err = detach(killed, true, "")
	f("detach after one that was killed", p, err, lines(delKept+" tidy", delNBD+" tidy"))

	lost := attachedGuest()
	lost.Nodes = lost.Nodes[2:]
	p, err = detach(lost, false, "")
	f("nothing kept", p, err, "the node that the guest had is gone")
	several := attachedGuest()
	several.Nodes = append(several.Nodes, Node{Name: "r7", Driver: "raw", File: "/v1", Bytes: 1 << 20})
	p, err = detach(several, false, "")
	f("several kept", p, err, "name the one to go back to with --node: #block0, r7")
	p, err = detach(several, true, "r7")
	f("one of several", p, err, lines("wish 1", set("r7")+" | "+set("holdfast-1"), at("r7"), delNBD+" tidy", delKept+" tidy"))
	p, err = detach(several, false, "r9")
	f("no such node", p, err, `node "r9" is not there`)
	other := attachedGuest()
	other.Nodes[0].Bytes = 512
	p, err = detach(other, false, "")
	f("another size", p, err, "node #block0, which it had before, 512")
	busy := attachedGuest()
	busy.Jobs = []string{"stream s"}
	p, err = detach(busy, false, "")
	f("beside a job", p, err, "block jobs run")
}

// FuzzAnswers: whatever QEMU says, it is planned for or refused; a plan moves one device, and says how to go back.
func FuzzAnswers(f *testing.F) {
	f.Add([]byte(`[{"device":"a","qdev":"vd0","inserted":{"node-name":"r","drv":"raw","file":"/v1","image":{"virtual-size":1048576}}}]`),
		[]byte(`[{"node-name":"r","drv":"raw","file":"/v1","image":{"virtual-size":1048576}}]`), []byte(`[]`), "")
	f.Add([]byte(`[{"device":"","qdev":"/machine/x","inserted":{"node-name":"holdfast-1","drv":"nbd","file":"`+onFilter+`"}}]`),
		[]byte(`[{"node-name":"f","drv":"file","file":"/v1"}]`), []byte(`[{"device":"j","type":"mirror"}]`), "f")
	f.Fuzz(func(t *testing.T, block, named, running []byte, node string) {
		var blocks []queriedBlock
		var nodes []inserted
		var jobs []queriedJob
		if errors.Join(json.Unmarshal(block, &blocks), json.Unmarshal(named, &nodes), json.Unmarshal(running, &jobs)) != nil {
			return
		}
		g := Guest{Version: [2]int{7, 2}, Disks: disks(blocks), Nodes: nodesOf(nodes), Jobs: jobsOf(jobs), Running: true, Threads: true}
		d, v, err := Find(g, []Volume{testVolume("v1")}, "", "")
		if err != nil {
			return
		}
		in, inErr := PlanAttach(g, d, v, true, anHour)
		out, outErr := PlanDetach(g, d, v, true, node)
		for _, p := range []Plan{in, out} {
			moves := 0
			for _, s := range p.Steps {
				if s.QMP != nil && s.QMP.Execute == "qom-set" {
					moves++
					if s.Undo == nil || s.QMP.Arguments["path"] != d.Device || s.Undo.Arguments["value"] != d.Root.Name {
						t.Errorf("%+v, of %+v", s, d)
					}
				}
			}
			if moves > 1 {
				t.Errorf("it is moved %d times", moves)
			}
		}
		if inErr == nil && outErr == nil && len(in.Steps) > 1 && len(out.Steps) > 1 && strings.Contains(words(in), "qom-set") && strings.Contains(words(out), "qom-set") {
			t.Errorf("it is to be attached and to be detached:\n%s\n%s", words(in), words(out))
		}
	})
}
