package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/datapath/capture"
)

const mirrorBytes = 64 << 20

// mirrorShore is a shore whose volume is a mirror target.
func mirrorShore(t *testing.T) *shore {
	s := newShore(t)
	s.write(s.file, fmt.Sprintf("run_dir: %s\ngroup: {name: g, id: \"0000000000000abc\"}\npool: 8MiB\npool_socket: %s\nvolumes:\n- {name: vol1, id: 1, path: %s, mirror: 64MiB, nbd: %s}\n",
		s.dir, s.at("pool"), s.disk, s.at("nbd")))
	return s
}

func (s *shore) image(args ...string) {
	s.t.Helper()
	if out, err := exec.Command("qemu-img", args...).CombinedOutput(); err != nil {
		s.t.Fatalf("qemu-img %q: %v\n%s; install it: apt-get install qemu-utils", args, err, out)
	}
}

// vra is what a VRA sees of the group.
func (s *shore) vra() *capture.Tap {
	s.t.Helper()
	tap, err := capture.OpenTap(capture.TapConfig{RunDir: s.dir, Group: 0xabc, Filters: []string{s.at("pool")}, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		s.t.Fatal(err)
	}
	for _, ok := tap.Volumes(); !ok; _, ok = tap.Volumes() {
		if s.t.Context().Err() != nil {
			s.t.Fatal("the filter does not answer the VRA")
		}
	}
	return tap
}

// synced reads all that is dirty and returns a disk on which that, and all that was captured, was written.
func (s *shore) synced(tap *capture.Tap) (disk []byte, read int64) {
	s.t.Helper()
	disk = bytes.Repeat([]byte{0xee}, mirrorBytes)
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- tap.SyncRead(ctx, 1, 0, mirrorBytes) }()
	over := false
	for {
		ws, err := tap.Next(ctx, 64, 10*time.Millisecond)
		if err != nil {
			s.t.Fatal(err)
		}
		for _, w := range ws {
			switch part := disk[w.Off : w.Off+w.Len]; w.Kind {
			case capture.Zero, capture.SyncZero:
				clear(part)
			case capture.SyncData:
				read += w.Len
				fallthrough
			case capture.Data:
				for _, run := range w.Data {
					part = part[copy(part, run):]
				}
			}
		}
		tap.Free(ws)
		if over && len(ws) == 0 {
			return disk, read
		}
		select {
		case err := <-done:
			if err != nil {
				s.t.Fatal(err)
			}
			over = true
		default:
		}
	}
}

func (s *shore) wantBytes(disk []byte, off int, n int, want byte) {
	s.t.Helper()
	for i := off; i < off+n; i++ {
		if disk[i] != want {
			s.t.Fatalf("at %d it is %#x, want %#x", i, disk[i], want)
		}
	}
}

// dirty is how many blocks are.
func (s *shore) dirty(tap *capture.Tap) int64 {
	s.t.Helper()
	d, err := tap.Dirty(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	return d[1].Blocks
}

// TestMirrorKinds mirrors disks of all the kinds that have to stay where they are; reads what they hold, through QEMU, and gets what is written; loses
// the filter under writes, which the guest does not notice; syncs what was written meanwhile, and no more; and leaves the guest as it was.
func TestMirrorKinds(t *testing.T) {
	f := func(name, format string, persistent bool, args ...string) {
		t.Run(name, func(t *testing.T) {
			s := mirrorShore(t)
			os.Remove(s.disk)
			if name == "backed" {
				s.image("create", "-q", "-f", "qcow2", s.at("base"), "64M")
				s.image("create", "-q", "-f", format, "-b", "base", "-F", "qcow2", s.disk)
			} else {
				s.image("create", "-q", "-f", format, s.disk, "64M")
			}
			s.startFilter()
			s.startQEMU(args...)
			if name == "running" {
				s.cont()
			}
			if p := s.past(); p != int(capture.PastUnmirrored) {
				t.Fatalf("before anything was mirrored the filter says %d", p)
			}
			s.qemuIO("write -P 1 1M 128k")
			s.qemuIO("write -P 2 4M 64k")
			before := s.look()
			if name == "raw" { // QEMU has one NBD server, and it is another's
				if err := s.qmp(fmt.Sprintf(`{"execute":"nbd-server-start","arguments":{"addr":{"type":"unix","data":{"path":%q}}}}`, s.at("others"))); err != nil {
					t.Fatal(err)
				}
				s.fails("somebody else's: end that (nbd-server-stop)", "attach", "--mirror")
				if err := s.qmp(`{"execute":"nbd-server-stop"}`); err != nil {
					t.Fatal(err)
				}
			}
			dry := s.ok(true, "attach", "--mirror", "--dry-run")
			if after := s.look(); fmt.Sprint(before) != fmt.Sprint(after) {
				t.Fatalf("a dry run changed %v to %v", before, after)
			}
			r := s.ok(true, "attach", "--mirror")
			if !r.Mirror || r.State != "attached" || len(r.Steps) != len(dry.Steps) || s.past() != int(capture.PastNone) {
				t.Fatalf("%+v; the filter says %d", r, s.past())
			}
			s.ok(false, "attach", "--mirror")
			tap := s.vra()
			if n := s.dirty(tap); n != mirrorBytes/4096 {
				t.Errorf("%d blocks are dirty at first", n)
			}
			disk, read := s.synced(tap)
			s.wantBytes(disk, 1<<20, 128<<10, 1)
			s.wantBytes(disk, 4<<20, 64<<10, 2)
			s.wantBytes(disk, 2<<20, 1<<20, 0)
			if format == "qcow2" && (read < 192<<10 || read > 1<<20) {
				t.Errorf("%d bytes were read of a disk with 192 KiB", read)
			}
			s.qemuIO("write -P 3 1M 4k")
			s.qemuIO("write -P 0 4M 64k")
			s.qemuIO("write -P 4 6M 64k")
			s.qemuIO("flush")
			disk, _ = s.synced(tap)
			s.wantBytes(disk, 1<<20, 4<<10, 3)
			s.wantBytes(disk, 4<<20, 64<<10, 0)
			s.wantBytes(disk, 6<<20, 64<<10, 4)
			tap.PublishDurable(tap.TakeTicket())

			// The filter dies. The guest's next write ends the job, and nothing else.
			s.endFilter()
			tap.Close()
			s.qemuIO("write -P 5 20M 4k")
			s.qemuIO("read -P 5 20M 4k")
			s.startFilter()
			if p := s.past(); p != int(capture.PastUnmirrored) {
				t.Fatalf("a filter that is started again says %d", p)
			}
			tap = s.vra()
			if n := s.dirty(tap); n != 1 { // by which no resync can close
				t.Errorf("%d blocks are dirty without a mirror", n)
			}
			defer tap.Close()
			if err := tap.SyncRead(t.Context(), 1, 0, 4096); err == nil || !strings.Contains(err.Error(), "not mirrored") {
				t.Errorf("a sync read without a mirror: %v", err)
			}
			s.ok(true, "attach", "--mirror")
			if n := s.dirty(tap); n != 2*4096 { // the region that was written since, and the one since it was attached first
				t.Errorf("%d blocks are dirty after a write of 4 KiB", n)
			}
			disk, _ = s.synced(tap)
			s.wantBytes(disk, 20<<20, 4<<10, 5)

			// QEMU ends and begins anew: what it noted is in a qcow2 image.
			s.endQuietly()
			s.lost()
			s.startQEMU(args...)
			s.qemuIO("write -P 6 50M 4k")
			s.ok(true, "attach", "--mirror")
			if n, all := s.dirty(tap), int64(mirrorBytes/4096); persistent == (n == all) {
				t.Errorf("%d blocks are dirty after QEMU was started anew", n)
			}
			disk, _ = s.synced(tap)
			s.wantBytes(disk, 50<<20, 4<<10, 6)

			s.ok(true, "detach")
			if s.past() != int(capture.PastUnmirrored) {
				t.Errorf("detached, and the filter says %d", s.past())
			}
			s.ok(true, "detach", "--forget")
			s.ok(false, "detach")
			if after := s.look(); fmt.Sprint(after.Disks[0].Root) != fmt.Sprint(before.Disks[0].Root) && name != "drive" || len(after.Disks[0].Bitmaps)+len(after.Jobs)+len(after.Exports) > 0 {
				t.Errorf("detached, it is\n%v, and was\n%v", after, before)
			}
			s.qemuIO("read -P 6 50M 4k")
		})
	}
	named := func(driver string, device ...string) []string {
		return append([]string{"-blockdev", "driver=" + driver + ",file.driver=file,file.filename=disk,node-name=r0"}, device...)
	}
	f("drive", "qcow2", true, "-drive", "file=disk,format=qcow2,if=none,id=d0,discard=unmap", "-device", "virtio-blk-pci,drive=d0,id=vd0")
	f("backed", "qcow2", true, named("qcow2", "-device", "virtio-blk-pci,drive=r0,id=vd0")...)
	f("running", "qcow2", true, named("qcow2", "-device", "virtio-scsi-pci", "-device", "scsi-hd,drive=r0,id=sd0")...)
	f("raw", "raw", false, named("raw", "-device", "virtio-blk-pci,drive=r0,id=vd0")...)
}

// endQuietly has QEMU end, with all that is its own in order.
func (s *shore) endQuietly() {
	s.t.Helper()
	if err := s.qmp(`{"execute":"quit"}`); err != nil {
		s.t.Fatal(err)
	}
	if err := s.qemu.Wait(); err != nil {
		s.t.Fatal(err)
	}
}

// lost waits until the filter has seen that nothing is mirrored any more.
func (s *shore) lost() {
	s.t.Helper()
	for s.past() != int(capture.PastUnmirrored) {
		if s.t.Context().Err() != nil {
			s.t.Fatal("the filter does not see that QEMU is gone")
		}
	}
}
