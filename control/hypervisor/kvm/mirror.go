package kvm

import (
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// A guest that keeps its own way to its disk is mirrored: QEMU writes to its image, as before, and then the same to the filter, before
// it answers the guest (drive-mirror, write-blocking, nothing copied). What has to be read, as in the beginning, the filter reads
// through an export of the guest's disk that QEMU serves, read-only. A dirty bitmap of ours notes what the guest writes all the while, so that
// after a mirror that was lost only that is looked at. drive-mirror and not blockdev-mirror: its way to the filter ends with the
// job, which is how the filter sees that.

// Mirrored is what a filter says of a mirror target.
type Mirrored struct {
	Stands bool   // it has the guest's writes
	Token  uint64 // of the bitmap that notes what is written meanwhile; 0 for none
}

// Join is what a filter is told when QEMU mirrors to it.
type Join struct {
	Token   uint64 // of the bitmap from now on
	Source  Export // where the guest's disk is read
	Bitmap  string // what was written while nothing was mirrored; empty: that is not known, all may have been
	Changes Export // that shows it
}

// Export is one of QEMU's own NBD server.
type Export struct{ Socket, Name string }

// MirrorOptions of attaching.
type MirrorOptions struct {
	Socket string // where QEMU is to serve the disk to the filter
	Token  uint64 // a new one, not 0
}

// bitmapPrefix begins the names of our bitmaps of a volume.
func bitmapPrefix(v *Volume) string { return ourPrefix + v.Name + "-" }

func bitmapName(v *Volume, token uint64) string {
	return fmt.Sprintf("%s%016x", bitmapPrefix(v), token)
}

// changesBitmap is the bitmap that the filter reads at a joining.
func changesBitmap(v *Volume) string { return bitmapPrefix(v) + "changes" }

// changesExport is the id of the export that shows it, and changesName its name: no volume's, whatever that is called.
func changesExport(v *Volume) string {
	if invariant.Planted("kvm/changes-like-a-volume") {
		return changesBitmap(v)
	}
	return "holdfast.changes-" + v.Name
}

func changesName(v *Volume) string { return v.Name + "/changes" }

// PlanMirror says how the disk's writes come to the volume's filter beside the guest's own way. now is what the filter says.
func PlanMirror(g Guest, d *Disk, v *Volume, now Mirrored, o MirrorOptions) (Plan, error) {
	p := Plan{Disk: *d}
	if err := suitsMirror(g, d, v); err != nil {
		return p, err
	}
	job := ourPrefix + v.Name
	runs, shown := slices.Contains(g.Jobs, "mirror "+job), slices.Contains(g.Exports, job)
	if runs && shown && now.Stands {
		return p, nil
	}
	node := d.Root.Name
	left, shows := changesBitmap(v), changesExport(v)
	p.Steps = slices.Concat(endMirror(runs, job), withdraw(g, shows), withdraw(g, job))
	known, before := "", []string{}
	for _, b := range d.Bitmaps {
		switch {
		case !strings.HasPrefix(b.Name, bitmapPrefix(v)):
		case b.Name == bitmapName(v, now.Token) && now.Token != 0 && b.Recording && !b.Inconsistent:
			known, before = b.Name, append(before, b.Name)
		default:
			p.Steps = append(p.Steps, Step{What: "remove a bitmap that tells nothing", QMP: ptr(forget(node, b.Name))})
		}
	}
	add := func(name string, more map[string]any) Step {
		args := map[string]any{"node": node, "name": name}
		for k, a := range more {
			args[k] = a
		}
		return Step{What: "have QEMU note what the guest writes", QMP: &Command{"block-dirty-bitmap-add", args}, Undo: ptr(forget(node, name))}
	}
	show := func(id, name string, bitmaps []string) Step {
		args := map[string]any{"type": "nbd", "id": id, "node-name": node, "name": name, "writable": false}
		if bitmaps != nil {
			args["bitmaps"] = bitmaps
		}
		return Step{What: "let the filter read the guest's disk", QMP: &Command{"block-export-add", args}, Undo: ptr(hide(id))}
	}
	target := url.URL{Scheme: "nbd+unix", Path: "/" + v.Name, RawQuery: url.Values{"socket": {v.Socket}}.Encode()}
	join := Join{Token: o.Token, Source: Export{o.Socket, v.Name}}
	p.Steps = append(p.Steps,
		add(bitmapName(v, o.Token), map[string]any{"persistent": d.Root.Keeps}),
		Step{What: "have QEMU serve NBD", QMP: &Command{"nbd-server-start", map[string]any{"addr": map[string]any{"type": "unix", "data": map[string]any{"path": o.Socket}}}},
			Already: "already running", Serves: o.Socket},
		show(job, v.Name, nil),
		Step{What: "mirror each write of the guest to the filter", QMP: &Command{"drive-mirror", map[string]any{
			"job-id": job, "device": node, "target": target.String(), "format": "raw", "mode": "existing",
			"sync": "none", "copy-mode": "write-blocking", "on-target-error": "report"}}, Undo: ptr(cancel(job))},
		Step{What: "see that it does", Make: &Expect{Ready: job}},
	)
	var tidy []Step
	if known != "" {
		gather := add(left, map[string]any{"disabled": true})
		gather.What = "take down what was written while nothing was mirrored"
		join.Bitmap, join.Changes = left, Export{o.Socket, changesName(v)}
		p.Steps = append(p.Steps, gather,
			Step{What: gather.What, QMP: &Command{"block-dirty-bitmap-merge", map[string]any{"node": node, "target": left, "bitmaps": []string{known}}}},
			show(shows, join.Changes.Name, []string{left}))
		tidy = append(withdraw(Guest{Exports: []string{shows}}, shows), Step{What: "remove what was taken down", QMP: ptr(forget(node, left))})
	}
	what := "tell the filter that it has all writes: " + v.Name + " is synced whole"
	if known != "" {
		what = "tell the filter that it has all writes: what was written meanwhile of " + v.Name + " is synced"
	}
	p.Steps = append(p.Steps, Step{What: what, Wish: Joined, Join: &join})
	for _, name := range before {
		tidy = append(tidy, Step{What: "remove the bitmap that was told", QMP: ptr(forget(node, name))})
	}
	for _, s := range tidy {
		s.Tidy = true
		p.Steps = append(p.Steps, s)
	}
	return p, nil
}

// PlanUnmirror says how the guest is left with its own way alone. The bitmap stays, for the next time, unless it is to be forgotten.
func PlanUnmirror(g Guest, d *Disk, v *Volume, now Mirrored, forgets bool) Plan {
	p := Plan{Disk: *d}
	job := ourPrefix + v.Name
	if now.Stands {
		p.Steps = append(p.Steps, somebodyElse(v))
	}
	p.Steps = slices.Concat(p.Steps, endMirror(slices.Contains(g.Jobs, "mirror "+job), job), withdraw(g, changesExport(v)), withdraw(g, job))
	if len(p.Steps) > 0 && !slices.ContainsFunc(g.Exports, func(id string) bool { return id != job && id != changesExport(v) }) {
		p.Steps = append(p.Steps, Step{What: "have QEMU serve NBD no more", QMP: &Command{Execute: "nbd-server-stop"}, Tidy: true, Already: "not running"})
	}
	for _, b := range d.Bitmaps {
		if forgets && strings.HasPrefix(b.Name, bitmapPrefix(v)) {
			p.Steps = append(p.Steps, Step{What: "forget what was written since", QMP: ptr(forget(d.Root.Name, b.Name)), Tidy: true})
		}
	}
	return p
}

// suitsMirror says why a disk cannot be mirrored.
func suitsMirror(g Guest, d *Disk, v *Volume) error {
	id := d.ID()
	switch {
	case g.Version[0] < 6 || g.Version[0] == 6 && g.Version[1] < 2:
		return fmt.Errorf("QEMU %d.%d is not known to mirror so: 6.2 and later are", g.Version[0], g.Version[1])
	case d.Root.Name == "":
		return fmt.Errorf("%s is empty", id)
	case d.Device == "":
		return fmt.Errorf("%s is the drive of no device of the guest", id)
	case d.Root.ReadOnly:
		return fmt.Errorf("%s is read-only: nothing of it changes", id)
	case d.Threaded && !invariant.Planted("kvm/mirror-threads"):
		return fmt.Errorf("%s is served by a thread (iothread): QEMU 7.2 ends when somebody reads such a disk through it and is gone, so such disks are not mirrored", id)
	case d.Root.Bytes != v.Bytes:
		return fmt.Errorf("%s has %d bytes for the guest, and volume %s has %d: they must be the same: see mirror in the filter's file", id, d.Root.Bytes, v.Name, v.Bytes)
	}
	for _, j := range g.Jobs {
		if !strings.HasPrefix(j, "mirror "+ourPrefix) {
			return fmt.Errorf("block jobs run: wait for them or end them: %s", j)
		}
	}
	return nil
}

// endMirror ends the job, whatever becomes of what it has under way to the filter: the guest's own disk has it.
func endMirror(runs bool, job string) []Step {
	if !runs {
		return nil
	}
	return []Step{
		{What: "end the mirror", QMP: ptr(cancel(job)), Already: "not found"}, // it may just be ending by itself
		{What: "see that it has ended", Make: &Expect{Ended: job}},
	}
}

// withdraw ends an export of ours, if it is there.
func withdraw(g Guest, id string) []Step {
	if !slices.Contains(g.Exports, id) {
		return nil
	}
	return []Step{
		{What: "have QEMU show the disk no more", QMP: ptr(hide(id))},
		{What: "see that it does not", Make: &Expect{Withdrawn: id}},
	}
}

func forget(node, bitmap string) Command {
	return Command{"block-dirty-bitmap-remove", map[string]any{"node": node, "name": bitmap}}
}

func hide(id string) Command {
	return Command{"block-export-del", map[string]any{"id": id, "mode": "hard"}}
}

func cancel(job string) Command {
	return Command{"block-job-cancel", map[string]any{"device": job, "force": true}}
}
