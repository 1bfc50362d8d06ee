package kvm

import (
	"context"
	"encoding/json"
	"errors"
	"net/url"
	"path"
	"strings"
)

// Guest is what QEMU says of a guest's disks.
type Guest struct {
	Version [2]int
	Disks   []Disk
	Nodes   []Node
	Jobs    []string // block jobs that run
	Exports []string // ids of what QEMU exports itself
	Running bool     // it is not paused
	Threads bool     // QEMU has threads that serve disks beside its main loop
}

// Disk is a device of the guest and what it holds.
type Disk struct {
	Name    string   // of the drive; empty where there is a device alone
	Device  string   // its QOM path; empty when it is no guest's
	Root    Node     // what it is read from and written to; without a name when it is empty
	Depth   int      // backing files
	Bitmaps []Bitmap // those with names
	// Controllers says that a thread of its controller's serves it, as with virtio-scsi, and not one of its own.
	Controllers bool
	Threaded    bool // a thread of QEMU's serves it, its own or its controller's
}

// Bitmap is a dirty bitmap of a disk.
type Bitmap struct {
	Name         string
	Recording    bool // what is written is noted
	Inconsistent bool // QEMU or its host crashed, and it tells nothing
}

// Node is a node of QEMU's block graph.
type Node struct {
	Name         string
	Driver       string
	File         string // as QEMU names it: a path, a URI, or json:...
	ReadOnly     bool
	DetectZeroes string
	Bytes        int64
	Keeps        bool // bitmaps can be kept in the image
}

// What QEMU answers, as far as it is used.
type (
	image struct {
		VirtualSize int64 `json:"virtual-size"`
		Specific    struct {
			Type string
			Data json.RawMessage
		} `json:"format-specific"`
	}
	inserted struct {
		NodeName     string `json:"node-name"`
		Drv          string
		File         string
		RO           bool
		DetectZeroes string `json:"detect_zeroes"`
		Depth        int    `json:"backing_file_depth"`
		Image        image
		Bitmaps      []Bitmap `json:"dirty-bitmaps"`
	}
	queriedBlock struct {
		Device, QDev string
		Inserted     *inserted
	}
	queriedJob struct {
		Device, Type string
	}
)

func (i inserted) node() Node {
	return Node{Name: i.NodeName, Driver: i.Drv, File: i.File, ReadOnly: i.RO, DetectZeroes: i.DetectZeroes, Bytes: i.Image.VirtualSize, Keeps: i.Image.keeps()}
}

// keeps says whether it is a format, and a version of that, in which QEMU keeps bitmaps.
func (i image) keeps() bool {
	var data struct{ Compat string }
	return i.Specific.Type == "qcow2" && json.Unmarshal(i.Specific.Data, &data) == nil && data.Compat != "0.10"
}

// Look asks QEMU for the disks of its guest.
func Look(ctx context.Context, m *Monitor) (Guest, error) {
	g := Guest{Version: m.Version}
	var blocks []queriedBlock
	var nodes []inserted
	var jobs []queriedJob
	var threads, exports []struct{ ID string }
	var status struct{ Running bool }
	for _, q := range []struct {
		c    Command
		into any
	}{
		{Command{Execute: "query-block"}, &blocks},
		{Command{Execute: "query-named-block-nodes", Arguments: map[string]any{"flat": true}}, &nodes},
		{Command{Execute: "query-block-jobs"}, &jobs},
		{Command{Execute: "query-block-exports"}, &exports},
		{Command{Execute: "query-iothreads"}, &threads},
		{Command{Execute: "query-status"}, &status},
	} {
		if err := m.Do(ctx, q.c, q.into); err != nil {
			return g, err
		}
	}
	g.Disks, g.Nodes, g.Jobs = disks(blocks), nodesOf(nodes), jobsOf(jobs)
	for _, e := range exports {
		g.Exports = append(g.Exports, e.ID)
	}
	g.Running, g.Threads = status.Running, len(threads) > 0
	for i := range g.Disks {
		d := &g.Disks[i]
		if !g.Threads || d.Device == "" {
			continue
		}
		if own, err := property(ctx, m, d.Device, "iothread"); err != nil || own != "" {
			if err != nil {
				return g, err
			}
			d.Threaded = true
			continue
		}
		bus, err := property(ctx, m, d.Device, "parent_bus")
		if err != nil {
			return g, err
		}
		thread, err := property(ctx, m, path.Dir(bus), "iothread")
		if err != nil {
			return g, err
		}
		d.Controllers = thread != ""
		d.Threaded = d.Controllers
	}
	return g, nil
}

// property is a property of an object; empty when it has none of that name.
func property(ctx context.Context, m *Monitor, object, name string) (value string, err error) {
	err = m.Do(ctx, Command{Execute: "qom-get", Arguments: map[string]any{"path": object, "property": name}}, &value)
	if _, refused := errors.AsType[*Refused](err); refused {
		return "", nil
	}
	return value, err
}

func disks(blocks []queriedBlock) (list []Disk) {
	for _, b := range blocks {
		d := Disk{Name: b.Device, Device: b.QDev}
		if d.Device != "" && !strings.HasPrefix(d.Device, "/") {
			d.Device = "/machine/peripheral/" + d.Device // an id stands for that
		}
		if b.Inserted != nil {
			d.Root, d.Depth = b.Inserted.node(), b.Inserted.Depth
			for _, m := range b.Inserted.Bitmaps {
				if m.Name != "" { // others are a job's
					d.Bitmaps = append(d.Bitmaps, m)
				}
			}
		}
		list = append(list, d)
	}
	return list
}

func nodesOf(list []inserted) (nodes []Node) {
	for _, n := range list {
		nodes = append(nodes, n.node())
	}
	return nodes
}

func jobsOf(list []queriedJob) (jobs []string) {
	for _, j := range list {
		jobs = append(jobs, strings.TrimSpace(j.Type+" "+j.Device))
	}
	return jobs
}

// ID is the short name of a disk's device, for people and for --device.
func (d *Disk) ID() string {
	name := strings.TrimSuffix(d.Device, "/virtio-backend")
	if under, ok := strings.CutPrefix(name, "/machine/peripheral/"); ok {
		return under
	}
	if d.Name != "" {
		return d.Name
	}
	if name == "" {
		return d.Root.Name
	}
	return path.Base(name)
}

// Is says whether a user's word names the disk.
func (d *Disk) Is(word string) bool {
	return word != "" && (word == d.ID() || word == d.Name || word == d.Device || word == d.Root.Name)
}

// export takes the URI of a node apart that speaks NBD over a unix socket.
func (n *Node) export() (socket, name string, ok bool) {
	if n.Driver != "nbd" {
		return "", "", false
	}
	u, err := url.Parse(n.File)
	if err != nil || u.Scheme != "nbd+unix" {
		return "", "", false
	}
	return u.Query().Get("socket"), strings.TrimPrefix(u.Path, "/"), true
}

// node finds a node by its name.
func (g *Guest) node(name string) *Node {
	for i := range g.Nodes {
		if g.Nodes[i].Name == name {
			return &g.Nodes[i]
		}
	}
	return nil
}
