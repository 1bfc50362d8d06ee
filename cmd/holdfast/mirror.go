package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"path/filepath"

	"github.com/holdfast-dr/holdfast/control/hypervisor/kvm"
	"github.com/holdfast-dr/holdfast/datapath/capture"
	"github.com/holdfast-dr/holdfast/datapath/front/nbd"
)

// otherWay says why a volume is not for this attach.
func otherWay(s servedVolume) error {
	if s.Mirror {
		return fmt.Errorf("volume %s is a mirror target: say --mirror", s.Name)
	}
	return fmt.Errorf("volume %s has a disk of its own: without --mirror, or make it a mirror target (mirror in the filter's file)", s.Name)
}

// mirrorDisk is the volume of a guest's image: found by the file that it is, where it is one (found, nil), and else by its name.
func mirrorDisk(v, found kvm.Volume, err error) kvm.Volume {
	v.Same = found.Same
	if err != nil {
		v.Same = func(file string) bool { return file == v.Path }
	}
	return v
}

// planMirror plans attaching or detaching a guest that is mirrored.
func (a *app) planMirror(ctx context.Context, o *attaching, in bool, g kvm.Guest, d *kvm.Disk, v *kvm.Volume, s servedVolume) (kvm.Plan, error) {
	m, err := s.filter.Mirror(ctx)
	if !in { // with the filter or without
		return kvm.PlanUnmirror(g, d, v, kvm.Mirrored{Stands: err == nil && m.Past == capture.PastNone}, o.forget), nil
	}
	if err == nil {
		err = s.Serves(ctx)
	}
	if err != nil {
		return kvm.Plan{}, s.silent(err)
	}
	if m.Bytes != v.Bytes {
		return kvm.Plan{}, fmt.Errorf("the filter that runs has %d bytes for volume %s, and its file says %d: start it again", m.Bytes, s.Name, v.Bytes)
	}
	serve := o.serve
	if serve == "" {
		serve = o.qmp + ".nbd"
	}
	if serve, err = filepath.Abs(serve); err != nil {
		return kvm.Plan{}, err
	}
	token, err := newToken()
	if err != nil {
		return kvm.Plan{}, err
	}
	return kvm.PlanMirror(g, d, v, kvm.Mirrored{Stands: m.Past == capture.PastNone, Token: m.Token}, kvm.MirrorOptions{Socket: serve, Token: token})
}

// newToken names a bitmap as none was named before.
func newToken() (uint64, error) {
	var p [8]byte
	if _, err := rand.Read(p[:]); err != nil {
		return 0, err
	}
	return binary.LittleEndian.Uint64(p[:])>>1 | 1, nil
}

// Join tells the filter that QEMU mirrors to it.
func (s servedVolume) Join(ctx context.Context, j kvm.Join) error {
	changes := ""
	if j.Bitmap != "" {
		changes = exportURI(j.Changes)
	}
	return s.filter.Join(ctx, j.Token, exportURI(j.Source), j.Bitmap, changes)
}

func exportURI(e kvm.Export) string {
	return nbd.URI{Network: "unix", Address: e.Socket, Export: e.Name}.String()
}
