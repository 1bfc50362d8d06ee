package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/holdfast-dr/holdfast/journal"
	"github.com/holdfast-dr/holdfast/journal/view"
)

// extract writes the disks of a checkpoint into a folder, holes as holes.
func extract(ctx context.Context, d *dump, args []string) (err error) {
	g, err := d.group(args[0])
	if err != nil {
		return err
	}
	number, err := strconv.ParseUint(args[1], 10, 64)
	if err != nil {
		return fmt.Errorf("checkpoint %q: a number as list prints it: %w", args[1], errUsage)
	}
	cp, err := g.Checkpoint(number)
	if err != nil {
		return fmt.Errorf("%w; list shows those there are", err)
	}
	v, err := g.OpenView(number, journal.ViewOptions{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.Close()) }()
	if err := os.MkdirAll(args[2], 0o700); err != nil {
		return err
	}
	if cp.Reason != "" {
		fmt.Fprintf(d.log, "checkpoint %d is %s: %s\n", number, cp.State, cp.Reason)
	}
	names := fileNames(v.Volumes())
	for i, vol := range v.Volumes() {
		device, _ := v.Device(vol.ID)
		name := filepath.Join(args[2], names[i])
		if err := d.extractVolume(ctx, device, name, vol); err != nil {
			return fmt.Errorf("volume %d (%s): %w; %s is not whole", vol.ID, vol.Name, err, name)
		}
		fmt.Fprintf(d.out, "%s  %s  %s\n", name, size(vol.Bytes), vol.Name)
	}
	return nil
}

// fileNames are the names of the volumes, as export has them; a volume gets that of its
// number where its name is none for a file, or another's too.
func fileNames(volumes []view.Volume) []string {
	names, taken := make([]string, len(volumes)), map[string]bool{}
	for i, vol := range volumes {
		names[i] = vol.Name
		if strings.Trim(vol.Name, "abcdefghijklmnopqrstuvwxyz0123456789._-") != "" || strings.HasPrefix(vol.Name, ".") || vol.Name == "" || taken[vol.Name] {
			names[i] = fmt.Sprintf("volume %d.raw", vol.ID) // with a space, which no name of a volume has
		}
		taken[names[i]] = true
	}
	return names
}

func (d *dump) extractVolume(ctx context.Context, device *view.Device, name string, vol view.Volume) (err error) {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	if err := f.Truncate(vol.Bytes); err != nil {
		return err
	}
	p := newProgress(d.log, name, 0)
	defer p.end()
	buf := make([]byte, 1<<20)
	off, failed := int64(0), error(nil)
	err = device.Extents(0, vol.Bytes, func(n int64, hole bool) bool {
		for end := off + n; off < end && failed == nil; {
			k := min(end-off, int64(len(buf)))
			if hole {
				k = end - off
			} else if failed = device.ReadAt(buf[:k], off); failed == nil {
				_, failed = f.WriteAt(buf[:k], off)
				p.add(int(k))
			}
			off += k
			failed = errors.Join(failed, ctx.Err())
		}
		return failed == nil
	})
	if err = errors.Join(failed, err); err != nil {
		return err
	}
	return f.Sync()
}
