package kvm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/holdfast-dr/holdfast/control/hypervisor"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// ontoSuffix ends the name of the node that a disk moves onto.
const ontoSuffix = "-file"

// servedSuffix ends the name of the node that a disk comes back to.
const servedSuffix = "-served"

// fileNode describes a raw file or block device to QEMU, past the page cache where that can be.
func fileNode(name string, d hypervisor.Disk) (map[string]any, error) {
	st, err := os.Stat(d.File)
	if err != nil {
		return nil, fmt.Errorf("disk %s: %w", d.Volume, err)
	}
	driver := "file"
	if st.Mode()&os.ModeDevice != 0 {
		driver = "host_device"
	}
	direct := false
	if f, err := os.OpenFile(d.File, os.O_RDONLY|syscall.O_DIRECT, 0); err == nil {
		direct = true
		f.Close()
	}
	cache := map[string]any{"direct": direct}
	n := map[string]any{"driver": "raw", "node-name": name, "discard": "unmap", "cache": cache,
		"file": map[string]any{"driver": driver, "filename": d.File, "discard": "unmap", "cache": cache}}
	if driver == "file" && st.Size() > d.Bytes { // an image in whole blocks, of a volume that is none
		n["size"] = d.Bytes
	}
	return n, nil
}

// PlanOnto says how a disk of a guest, which is the device, moves from where it is served onto a file, which node describes to QEMU.
// to is the file as a volume, of as many bytes as the guest's disk has. Whatever an earlier try left is cleared away.
func PlanOnto(g Guest, device string, from hypervisor.Disk, node map[string]any, to *Volume) (Plan, error) {
	served, err := servedAs(from)
	if err != nil {
		return Plan{}, err
	}
	w := way{node: node, bytes: to.Bytes, arrive: "open the file in QEMU", leave: "let go of the view", left: served}
	w.whence = func(n *Node) (there bool, err error) {
		switch {
		case served(n):
			return false, nil
		case n.Driver != "raw":
			return false, fmt.Errorf("%s is neither on the view nor on a file: it is %s %s", device, n.Driver, n.File)
		case !to.Same(n.rawFile()) && !invariant.Planted("kvm/onto-any-file"):
			return false, fmt.Errorf("%s is on another file than that of volume %s: it is %s, and not %s", device, to.Name, n.File, to.Path)
		}
		return true, nil
	}
	return w.plan(g, device)
}

// PlanServed says how a disk of a guest moves from a file, which is a volume of as many bytes, to where it is served; node describes that to
// QEMU. It is the way back of PlanOnto.
func PlanServed(g Guest, device string, from *Volume, node map[string]any, to hypervisor.Disk) (Plan, error) {
	served, err := servedAs(to)
	if err != nil {
		return Plan{}, err
	}
	ours := fmt.Sprintf("disk%s", strings.TrimPrefix(device, "vd")) // as it is started, and as it was moved
	w := way{node: node, bytes: from.Bytes, arrive: "connect QEMU to the filter", leave: "let go of the file"}
	w.left = func(n *Node) bool {
		return served(n) || n.Driver == "raw" && from.Same(n.rawFile()) && (n.Name == ours || n.Name == ours+ontoSuffix)
	}
	w.whence = func(n *Node) (there bool, err error) {
		switch {
		case served(n):
			return true, nil
		case n.Driver != "raw" || !from.Same(n.rawFile()) && !invariant.Planted("kvm/served-from-any-file"):
			return false, fmt.Errorf("%s is not on the file of volume %s, %s: it is %s %s", device, from.Name, from.Path, n.Driver, n.File)
		}
		return false, nil
	}
	return w.plan(g, device)
}

// servedAs finds a disk's nodes where it is served.
func servedAs(d hypervisor.Disk) (func(*Node) bool, error) {
	socket, export, err := exportOf(d)
	return func(n *Node) bool { s, e, ok := n.export(); return ok && s == socket && e == export }, err
}

// way is how a disk comes from one node to another.
type way struct {
	whence        func(root *Node) (there bool, err error) // whether it is there already, and why it is not to be moved from where it is
	left          func(*Node) bool                         // what an earlier try may have left, but for the node of that name
	node          map[string]any
	bytes         int64
	arrive, leave string
}

func (w *way) plan(g Guest, device string) (Plan, error) {
	i := slices.IndexFunc(g.Disks, func(d Disk) bool { return d.ID() == device })
	if i < 0 {
		return Plan{}, fmt.Errorf("the guest has no disk %q: those are %s", device, names(g.Disks, func(d *Disk) string { return d.describe() }))
	}
	d := &g.Disks[i]
	p, name := Plan{Disk: *d}, w.node["node-name"].(string)
	var left []Step
	for k := range g.Nodes {
		if n := &g.Nodes[k]; n.Name != d.Root.Name && (w.left(n) || n.Name == name) {
			left = append(left, Step{What: "remove what an earlier try left", QMP: ptr(del(n.Name))})
		}
	}
	there, err := w.whence(&d.Root)
	switch {
	case err != nil:
		return p, err
	case there:
		p.Steps = paused(g, left)
		return p, nil
	case len(g.Jobs) > 0:
		return p, fmt.Errorf("block jobs run: wait for them or end them: %v", g.Jobs)
	case d.Root.Bytes != w.bytes && !invariant.Planted("kvm/onto-any-size"):
		return p, fmt.Errorf("%s has %d bytes for the guest, and the volume %d", device, d.Root.Bytes, w.bytes)
	}
	p.Steps = slices.Concat(paused(g, left), []Step{
		{What: w.arrive, QMP: &Command{"blockdev-add", w.node}, Undo: ptr(del(name))},
		{What: "see that it has the size of the guest's disk", Make: &Expect{Node: name, Bytes: w.bytes}},
	}, paused(g, append(move(d, d.Root.Name, name), Step{What: w.leave, QMP: ptr(del(d.Root.Name))})))
	return p, nil
}

// rawFile is the file of a raw node. QEMU tells of one with a size of its own, see fileNode, in JSON.
func (n *Node) rawFile() string {
	text, is := strings.CutPrefix(n.File, "json:")
	if !is {
		return n.File
	}
	var options struct{ File struct{ Filename string } }
	if json.Unmarshal([]byte(text), &options) != nil {
		return ""
	}
	return options.File.Filename
}

// MaySetDisk says that a machine must be there.
func (l *Local) MaySetDisk(_ context.Context, name string) error {
	_, _, err := l.definition(name)
	return err
}

// SetDisk moves a disk of a machine onto a file, or from that to where it is served: in QEMU first, where it runs, and then in its definition. QEMU
// has no node of one over vhost-user: a machine that runs on that goes on with whatever is served at the socket.
func (l *Local) SetDisk(ctx context.Context, name string, d hypervisor.Disk) error {
	err := l.setDisk(ctx, name, d)
	if err != nil {
		err = fmt.Errorf("machine %s: disk %s: %w", name, d.Volume, err)
	}
	return err
}

func (l *Local) setDisk(ctx context.Context, name string, d hypervisor.Disk) error {
	dir, m, err := l.definition(name)
	if err != nil {
		return err
	}
	i, same, err := diskOf(m, d)
	if err != nil {
		return err
	}
	pid, err := holder(dir)
	shared := m.VhostUser && d.VhostUser != ""
	if err == nil && pid > 0 {
		var mon *Monitor
		if mon, err = l.awaitMonitor(ctx, dir); err == nil {
			shared, err = setRunning(ctx, mon, m, i, d, same)
			err = errors.Join(err, mon.Close())
		}
	}
	if err != nil || same {
		return err
	}
	m.Disks[i] = reached(d, shared)
	text, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	return WriteFile(filepath.Join(dir, definitionName), text)
}

// setRunning has the QEMU of a machine find a disk at d, or sees that it does where the definition says the same, and says whether it has it over
// vhost-user: then there is nothing to move in it, and a file that it is to be started on is only tried.
func setRunning(ctx context.Context, mon *Monitor, m hypervisor.Machine, i int, d hypervisor.Disk, same bool) (shared bool, err error) {
	switch shared, err = runsOverVhost(ctx, mon, m, i); {
	case err != nil || shared && (same || d.File == "" || invariant.Planted("kvm/onto-untried")):
	case shared:
		err = opens(ctx, mon, i, d)
	case same && !invariant.Planted("kvm/believes-the-definition"):
		err = isOn(ctx, mon, i, d)
	case !same:
		err = moveOnto(ctx, mon, i, m.Disks[i], d)
	}
	return shared, err
}

// opens has QEMU open the file of a disk and let go of it, and says why it cannot, or that it has another size. It is opened to be written to, as it will be: that
// is what QEMU's user may lack. Nothing is written, and no lock taken of whoever serves it.
func opens(ctx context.Context, mon *Monitor, i int, d hypervisor.Disk) error {
	name := fmt.Sprintf("disk%d-tried", i)
	node, err := fileNode(name, d)
	if err != nil {
		return err
	}
	node["file"].(map[string]any)["locking"] = "off"
	g, err := Look(ctx, mon)
	if err != nil {
		return err
	}
	var p Plan
	if g.node(name) != nil {
		p.Steps = append(p.Steps, Step{What: "remove what an earlier try left", QMP: ptr(del(name))})
	}
	p.Steps = append(p.Steps,
		Step{What: "open the file in QEMU", QMP: &Command{"blockdev-add", node}, Undo: ptr(del(name))},
		Step{What: "see that it has the size of the guest's disk", Make: &Expect{Node: name, Bytes: d.Bytes}},
		Step{What: "let go of the file", QMP: ptr(del(name))})
	return Carry(ctx, mon, nil, p)
}

// reached is a disk in the one way in which a machine is to reach it when it is started.
func reached(d hypervisor.Disk, shared bool) hypervisor.Disk {
	if shared {
		d.NBD = ""
	} else {
		d.VhostUser = ""
	}
	return d
}

// runsOverVhost says whether the QEMU of a machine has a disk over vhost-user, whatever the definition says it is to have when it is started again.
func runsOverVhost(ctx context.Context, mon *Monitor, m hypervisor.Machine, i int) (bool, error) {
	if m.Disks[i].VhostUser != "" || !m.VhostUser {
		return m.VhostUser, nil
	}
	g, err := Look(ctx, mon)
	return !slices.ContainsFunc(g.Disks, func(d Disk) bool { return d.ID() == "vd"+strconv.Itoa(i) }), err
}

// moveOnto moves the disk of a QEMU that runs.
func moveOnto(ctx context.Context, mon *Monitor, i int, from, to hypervisor.Disk) error {
	g, err := Look(ctx, mon)
	if err != nil {
		return err
	}
	suffix, file, plan := ontoSuffix, to, func(node map[string]any, v *Volume) (Plan, error) {
		return PlanOnto(g, "vd"+strconv.Itoa(i), from, node, v)
	}
	if to.File == "" {
		suffix, file, plan = servedSuffix, from, func(node map[string]any, v *Volume) (Plan, error) {
			return PlanServed(g, "vd"+strconv.Itoa(i), v, node, to)
		}
	}
	node, err := blockNode(fmt.Sprintf("disk%d%s", i, suffix), to)
	if err != nil {
		return err
	}
	v, err := mon.Disk(Volume{Name: to.Volume, Path: file.File})
	if err != nil {
		return err
	}
	v.Bytes = to.Bytes // the file may be longer
	p, err := plan(node, &v)
	if err != nil {
		return err
	}
	if to.File != "" {
		seen, err := seenToLeave(g, i, from)
		if err != nil {
			return err
		}
		p.Steps = append(p.Steps, seen...)
	}
	return Carry(ctx, mon, nil, p)
}

// seenToLeave has QEMU come to where a disk is served, and leave: whoever serves there, and saw it connected before he was started anew, waits until he
// has seen that, see datapath's users. A QEMU that was silent since has not come back, and one whose node is removed already would not. While nobody
// serves, a node that QEMU has there would have it wait when it is removed, and its guest with it.
func seenToLeave(g Guest, i int, from hypervisor.Disk) ([]Step, error) {
	if invariant.Planted("kvm/leaves-unseen") {
		return nil, nil
	}
	socket, export, err := exportOf(from)
	if err != nil {
		return nil, err
	}
	served, err := servedAs(from)
	if err != nil {
		return nil, err
	}
	c, err := net.Dial("unix", socket)
	switch {
	case err == nil:
		err = c.Close()
	case slices.ContainsFunc(g.Nodes, func(n Node) bool { return served(&n) }):
		return nil, fmt.Errorf("nobody serves it, and QEMU would wait for him: %w", err)
	default: // there is nobody to see it
		return nil, nil
	}
	name := fmt.Sprintf("disk%d-seen", i)
	return []Step{
		{What: "have QEMU come to where the disk was served", Undo: ptr(del(name)), QMP: &Command{"blockdev-add", map[string]any{"driver": "nbd", "node-name": name,
			"read-only": true, "export": export, "server": map[string]any{"type": "unix", "path": socket}}}},
		{What: "and leave", QMP: ptr(del(name))},
	}, err
}
