package kvm

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Volume is a volume of a filter, as a guest may have it.
type Volume struct {
	Name   string
	Path   string // of the disk that the filter serves
	Bytes  int64
	Socket string // where it is served over NBD, under its name; empty when it is not
	// Mirror says that the volume is a mirror target, of Bytes; Path is the guest's image then, of whatever format.
	Mirror bool
	// Same says whether the file that QEMU names so is that disk, whatever the name.
	Same func(file string) bool
}

// has says whether a node is the volume, served by its filter.
func (v *Volume) has(n *Node) bool {
	socket, name, ok := n.export()
	return ok && v.Socket != "" && socket == v.Socket && name == v.Name
}

// Attached says whether the disk is on the volume's filter.
func (v *Volume) Attached(d *Disk) bool { return v.has(&d.Root) }

// holds says whether the disk is the volume: attached, or by its file.
func (v *Volume) holds(d *Disk) bool {
	if v.Mirror {
		return d.Root.File == v.Path || plainFile(d.Root.File) && v.Same(d.Root.File)
	}
	return v.Attached(d) || plainFile(d.Root.File) && slices.Contains(kinds, d.Root.Driver) && v.Same(d.Root.File)
}

// kinds are the drivers of a raw disk's root node: a raw format over a file or device, or that itself.
var kinds = []string{"raw", "file", "host_device"}

func plainFile(file string) bool {
	return file != "" && !strings.HasPrefix(file, "json:") && !strings.Contains(file, "://")
}

// Find says which disk of the guest and which volume are meant. Empty words leave that to
// what fits; it must be one.
func Find(g Guest, volumes []Volume, device, volume string) (*Disk, *Volume, error) {
	var of []*Volume
	for i := range volumes {
		if volume == "" || volumes[i].Name == volume {
			of = append(of, &volumes[i])
		}
	}
	if len(of) == 0 {
		return nil, nil, fmt.Errorf("no filter serves a volume %q: those are %s", volume, names(volumes, func(v *Volume) string { return v.Name }))
	}
	var in []*Disk
	for i := range g.Disks {
		if d := &g.Disks[i]; device == "" && d.Device != "" && d.Root.Name != "" || d.Is(device) {
			in = append(in, d)
		}
	}
	have := names(g.Disks, func(d *Disk) string { return d.describe() })
	switch {
	case len(g.Disks) == 0:
		return nil, nil, errors.New("the guest has no disks")
	case len(in) == 0 && device != "":
		return nil, nil, fmt.Errorf("the guest has no disk %q: those are %s", device, have)
	case len(in) > 1 && device != "":
		return nil, nil, fmt.Errorf("%q names several disks of the guest: name one by its device: %s", device, have)
	}
	type pair struct {
		d *Disk
		v *Volume
	}
	var pairs []pair
	for _, d := range in {
		for _, v := range of {
			if v.holds(d) {
				pairs = append(pairs, pair{d, v})
			}
		}
	}
	switch {
	case len(pairs) == 1:
		return pairs[0].d, pairs[0].v, nil
	case len(pairs) > 1:
		return nil, nil, fmt.Errorf("several disks fit: name one with --device and --volume: %s", names(pairs, func(p *pair) string { return p.d.ID() + " is " + p.v.Name }))
	case len(in) == 1:
		if err := suits(g, in[0]); err != nil {
			return nil, nil, err // which is why nothing fits
		}
	}
	return nil, nil, fmt.Errorf("no disk of the guest is that of a volume: the guest has %s; the filter serves %s",
		have, names(volumes, func(v *Volume) string { return v.Name + ": " + v.Path }))
}

// names joins what there is for a message.
func names[T any](list []T, name func(*T) string) string {
	var out []string
	for i := range list {
		out = append(out, name(&list[i]))
	}
	if len(out) == 0 {
		return "none"
	}
	return strings.Join(out, ", ")
}

func (d *Disk) describe() string {
	if d.Root.Name == "" {
		return d.ID() + " (empty)"
	}
	return fmt.Sprintf("%s (%s %s)", d.ID(), d.Root.Driver, d.Root.File)
}

// suits says why a disk cannot be attached, from what QEMU says alone.
func suits(g Guest, d *Disk) error {
	id := d.ID()
	switch {
	case g.Version[0] < 6 || g.Version[0] == 6 && g.Version[1] < 2:
		return fmt.Errorf("QEMU %d.%d cannot change the disk of a running device: 6.2 and later can", g.Version[0], g.Version[1])
	case d.Root.Name == "":
		return fmt.Errorf("%s is empty", id)
	case d.Device == "":
		return fmt.Errorf("%s is the drive of no device of the guest", id)
	case d.Depth > 0:
		return fmt.Errorf("%s stands on %d backing files: only raw disks are attached; others are mirrored: make the volume a mirror target, and say --mirror", id, d.Depth)
	case !slices.Contains(kinds, d.Root.Driver):
		return fmt.Errorf("%s is of driver %s: only raw disks in a file or on a block device are attached; others are mirrored: make the volume a mirror target, and say --mirror", id, d.Root.Driver)
	case !plainFile(d.Root.File):
		return fmt.Errorf("%s is no plain file or block device: %s", id, d.Root.File)
	case d.Root.ReadOnly:
		return fmt.Errorf("%s is read-only: nothing of it changes", id)
	case d.Controllers:
		return fmt.Errorf("%s is served by a thread of its controller's (iothread), from which QEMU does not let it be moved: only disks with one of their own, or none, are attached", id)
	case len(g.Jobs) > 0:
		return fmt.Errorf("block jobs run: wait for them or end them: %s", strings.Join(g.Jobs, ", "))
	case len(d.Bitmaps) > 0:
		return fmt.Errorf("%s has dirty bitmaps, which would miss what is written while it is attached: remove them first: %s", id, names(d.Bitmaps, func(b *Bitmap) string { return b.Name }))
	}
	return nil
}
