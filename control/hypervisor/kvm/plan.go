package kvm

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Step is one thing to do: a command of QEMU's, a word to the filter, or something to make sure of.
type Step struct {
	What string // for people
	QMP  *Command
	Wish Wish
	Make *Expect
	Join *Join    // of a Wish to join
	Undo *Command // undoes the command
	// Already is what QEMU says when the command was carried out before, which is as good.
	Already string
	// Serves is where QEMU must serve NBD for that to be so: it has one server, which may be somebody else's.
	Serves string
	Undone Wish // undoes the wish
	// Tidy: the disk is where it is to be whether or not this can be done.
	Tidy bool
}

// Wish is what the filter is told.
type Wish int

// What that is.
const (
	NoWish   Wish = iota
	Detached      // somebody may write past the filter from now on
	Attached      // nobody does
	Joined        // QEMU mirrors to it: Step.Join
)

// Expect is what must be true for a plan to go on.
type Expect struct {
	Device string // this device's root node
	Node   string // is this one; or, without a device, this node
	Bytes  int64  // has so many
	// Or that is awaited: that this job is ready, or is not there any more, or this export.
	Ready, Ended, Withdrawn string
}

// Plan is what is to be done with a disk.
type Plan struct {
	Disk  Disk
	Steps []Step // none: it is as it should be
}

// Ends is the node that the device is on when the plan was carried out.
func (p *Plan) Ends() string {
	for _, s := range p.Steps {
		if s.Make != nil && s.Make.Device != "" {
			return s.Make.Node
		}
	}
	return p.Disk.Root.Name
}

// Options of attaching.
type Options struct {
	ReconnectDelay time.Duration // how long the guest's requests wait for a filter that is gone, before they fail
	Unmap          bool          // what the guest discards may be given back
}

// keptSuffix ends the name of the node that keeps what the guest had.
const keptSuffix = "-kept"

const ourPrefix = "holdfast-"

// PlanAttach says how the disk comes onto the volume's filter. told: the filter was told that it is detached.
func PlanAttach(g Guest, d *Disk, v *Volume, told bool, o Options) (Plan, error) {
	p := Plan{Disk: *d}
	if v.Attached(d) {
		if told {
			p.Steps = []Step{nobodyElse(v)}
		}
		return p, nil
	}
	if err := suits(g, d); err != nil {
		return p, err
	}
	switch {
	case v.Socket == "":
		return p, fmt.Errorf("volume %s has no NBD socket: give it one (nbd) in the filter's file, and start the filter again", v.Name)
	case !v.Same(d.Root.File) && !invariant.Planted("kvm/any-file"):
		return p, fmt.Errorf("%s is %s, and volume %s is another disk: %s", d.ID(), d.Root.File, v.Name, v.Path)
	case d.Root.Bytes != v.Bytes && !invariant.Planted("kvm/any-size"):
		return p, fmt.Errorf("%s has %d bytes for the guest, and volume %s has %d: they must be the same", d.ID(), d.Root.Bytes, v.Name, v.Bytes)
	}
	for i := range g.Disks {
		if o := &g.Disks[i]; o.Root.Name != "" && o.Device != d.Device && (v.holds(o) || o.Root.Name == d.Root.Name) {
			return p, fmt.Errorf("the guest has the disk twice: as %s and as %s", d.ID(), o.ID())
		}
	}
	left := leftovers(g, v)
	node := freeName(g, left)
	kept := node + keptSuffix
	nbd := map[string]any{
		"driver": "nbd", "node-name": node, "server": map[string]any{"type": "unix", "path": v.Socket}, "export": v.Name,
		"reconnect-delay": int64(o.ReconnectDelay / time.Second), "cache": map[string]any{"direct": true},
		"discard": "ignore", "detect-zeroes": "off",
	}
	if d.Root.DetectZeroes != "" {
		nbd["detect-zeroes"] = d.Root.DetectZeroes
	}
	if o.Unmap || d.Root.DetectZeroes == "unmap" { // which QEMU takes together alone
		nbd["discard"] = "unmap"
	}
	p.Steps = slices.Concat(paused(g, left), []Step{
		somebodyElse(v),
		{What: "connect QEMU to the filter", QMP: &Command{"blockdev-add", nbd}, Undo: ptr(del(node))},
		{What: "see that the filter's disk has the size of the guest's", Make: &Expect{Node: node, Bytes: d.Root.Bytes}},
	}, paused(g, append([]Step{{What: "keep the node that the guest has now", QMP: &Command{"blockdev-add", map[string]any{
		"driver": "raw", "node-name": kept, "file": d.Root.Name, "read-only": true}}, Undo: ptr(del(kept))},
	}, move(d, d.Root.Name, node)...)), []Step{nobodyElse(v)})
	return p, nil
}

// PlanDetach says how the disk comes back onto the nodes that it had; from names the node where that
// is not clear. told: the filter was told that it is detached.
func PlanDetach(g Guest, d *Disk, v *Volume, told bool, from string) (Plan, error) {
	p := Plan{Disk: *d}
	if !v.Attached(d) {
		if !told {
			p.Steps = append(p.Steps, somebodyElse(v))
		}
		left := leftovers(g, v)
		for i := range left {
			left[i].Tidy = true
		}
		p.Steps = append(p.Steps, paused(g, left)...)
		return p, nil
	}
	if len(g.Jobs) > 0 {
		return p, fmt.Errorf("block jobs run: wait for them or end them: %s", strings.Join(g.Jobs, ", "))
	}
	back, err := keptNode(g, v, from)
	if err != nil {
		return p, err
	}
	if back.Bytes != d.Root.Bytes {
		return p, fmt.Errorf("%s has %d bytes for the guest, and node %s, which it had before, %d", d.ID(), d.Root.Bytes, back.Name, back.Bytes)
	}
	tell := somebodyElse(v)
	if !told {
		tell.Undone = Attached
	}
	steps := append(move(d, d.Root.Name, back.Name), Step{What: "disconnect QEMU from the filter", QMP: ptr(del(d.Root.Name)), Tidy: true})
	if kept := g.node(d.Root.Name + keptSuffix); kept != nil {
		steps = append(steps, Step{What: "let go of what was kept", QMP: ptr(del(kept.Name)), Tidy: true})
	}
	p.Steps = append([]Step{tell}, paused(g, steps)...)
	return p, nil
}

// keptNode finds what the disk had before it was attached.
func keptNode(g Guest, v *Volume, from string) (*Node, error) {
	var fit []*Node
	for _, kind := range kinds { // a raw node before the file that it stands on
		for i := range g.Nodes {
			n := &g.Nodes[i]
			if n.Driver == kind && !n.ReadOnly && plainFile(n.File) && (from == "" || n.Name == from) && v.Same(n.File) {
				fit = append(fit, n)
			}
		}
		if len(fit) > 0 && (kind == "raw" || kind == kinds[len(kinds)-1]) {
			break
		}
	}
	switch {
	case len(fit) == 1:
		return fit[0], nil
	case len(fit) > 1:
		return nil, fmt.Errorf("several nodes are the disk of volume %s: name the one to go back to with --node: %s", v.Name, names(fit, func(n **Node) string { return (*n).Name }))
	case from != "":
		return nil, fmt.Errorf("node %q is not there, or is not the disk of volume %s (%s)", from, v.Name, v.Path)
	}
	return nil, fmt.Errorf("the node that the guest had is gone: add one for %s (blockdev-add, driver raw over file) and name it with --node", v.Path)
}

// move changes the node of a device, and makes sure of it.
func move(d *Disk, from, to string) []Step {
	set := func(node string) *Command {
		return &Command{"qom-set", map[string]any{"path": d.Device, "property": "drive", "value": node}}
	}
	return []Step{
		{What: "move the guest's disk onto it", QMP: set(to), Undo: set(from)},
		{What: "see that it is there", Make: &Expect{Device: d.Device, Node: to}},
	}
}

// paused has steps that change nodes carried out while the guest stands still for that moment, where
// threads of QEMU's may serve its disks: only then are all nodes its main loop's. A node that is
// added on top of one that such a thread serves ends QEMU 7.2.
func paused(g Guest, steps []Step) []Step {
	if !g.Running || !g.Threads || len(steps) == 0 {
		return steps
	}
	stop, cont := Command{Execute: "stop"}, Command{Execute: "cont"}
	first := Step{What: "pause the guest for a moment, as its disks have threads of their own", QMP: &stop, Undo: &cont}
	last := Step{What: "let it go on", QMP: &cont, Undo: &stop, Tidy: steps[len(steps)-1].Tidy}
	return slices.Concat([]Step{first}, steps, []Step{last})
}

func somebodyElse(v *Volume) Step {
	return Step{What: "tell the filter that writes go past it: no checkpoints of " + v.Name, Wish: Detached}
}

func nobodyElse(v *Volume) Step {
	return Step{What: "tell the filter that it has all writes: " + v.Name + " is synced whole", Wish: Attached}
}

// leftovers removes nodes of ours that an attaching that was killed left behind.
func leftovers(g Guest, v *Volume) (steps []Step) {
	used := map[string]bool{}
	for _, d := range g.Disks {
		used[d.Root.Name] = true
	}
	for i := range g.Nodes {
		n := &g.Nodes[i]
		if !strings.HasPrefix(n.Name, ourPrefix) || used[n.Name] || !v.has(n) {
			continue
		}
		if kept := g.node(n.Name + keptSuffix); kept != nil {
			steps = append(steps, Step{What: "remove what an earlier run left", QMP: ptr(del(kept.Name))})
		}
		steps = append(steps, Step{What: "remove what an earlier run left", QMP: ptr(del(n.Name))})
	}
	return steps
}

// freeName is a name for the filter's node that no node has; those that steps remove do.
func freeName(g Guest, steps []Step) string {
	taken := func(name string) bool {
		return g.node(name) != nil && !slices.ContainsFunc(steps, func(s Step) bool { return s.QMP.Arguments["node-name"] == name })
	}
	for i := 1; ; i++ {
		if name := fmt.Sprintf("%s%d", ourPrefix, i); !taken(name) && !taken(name+keptSuffix) {
			return name
		}
	}
}

func del(node string) Command { return Command{"blockdev-del", map[string]any{"node-name": node}} }

func ptr[T any](v T) *T { return &v }
