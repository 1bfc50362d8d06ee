package main

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/datapath/front"
	"github.com/holdfast-dr/holdfast/datapath/front/memdisk"
	"github.com/holdfast-dr/holdfast/datapath/front/nbd"
)

// watched is a disk whose reads the test can fail or hold up.
type watched struct {
	front.Device
	read func(off int64) error
}

func (w *watched) ReadAt(p []byte, off int64) error {
	if w.read != nil {
		if err := w.read(off); err != nil {
			return err
		}
	}
	return w.Device.ReadAt(p, off)
}

const exportBytes = 9<<20 + 512

// exportSite is a target with a view of two disks: vol1 has data here and there, vol2 none.
func exportSite(t *testing.T, read func(off int64) error) (*site, []byte) {
	t.Helper()
	content := make([]byte, exportBytes)
	for _, off := range []int{0, 1<<20 - 3, 5 << 20, 5<<20 + 70_000, exportBytes - 10} {
		copy(content[off:], "\x00holdfast")
	}
	full, empty := memdisk.New(exportBytes), memdisk.New(1<<20)
	for off := 0; off < len(content); off += 1 << 20 {
		p := content[off:min(off+1<<20, len(content))]
		w, err := full.BeginWrite(int64(off), len(p))
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range w.Buffers() {
			p = p[copy(b, p):]
		}
		if err := w.Commit(false); err != nil {
			t.Fatal(err)
		}
	}
	socket := filepath.Join(t.TempDir(), "v")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var srv nbd.Server
	if err := errors.Join(srv.Add(nbd.Export{Name: "vol1", Device: &watched{full, read}}), srv.Add(nbd.Export{Name: "vol2", Device: empty})); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- srv.Serve(ctx, l) }()
	t.Cleanup(func() { stop(); <-done })
	_, target := twoSites()
	target.view.Volumes = nil
	for _, name := range []string{"vol1", "vol2"} {
		target.view.Volumes = append(target.view.Volumes, &holdfastv1.ViewVolume{Name: name, Nbd: "nbd+unix:///" + name + "?socket=" + socket})
	}
	return target, content
}

func TestExport(t *testing.T) {
	target, content := exportSite(t, nil)
	out := filepath.Join(t.TempDir(), "images")
	code, stdout, stderr := holdfast(t, contextFile(t, nil, target), "export", "--checkpoint", "latest", "--out", out, "-o", "json")
	if code != 0 || !strings.Contains(stdout, `"checkpoint": "2"`) || !strings.Contains(stdout, `"size": 9437696`) || !strings.Contains(stderr, "copying: 100%") {
		t.Fatalf("exit %d, %s, %s", code, stdout, stderr)
	}
	if got, err := os.ReadFile(filepath.Join(out, "vol1")); err != nil || !bytes.Equal(got, content) {
		t.Errorf("vol1 differs: %v", err)
	}
	if got, err := os.ReadFile(filepath.Join(out, "vol2")); err != nil || !bytes.Equal(got, make([]byte, 1<<20)) {
		t.Errorf("vol2 differs: %v", err)
	}
	info, err := os.Stat(filepath.Join(out, "vol1"))
	if err != nil || info.Sys().(*syscall.Stat_t).Blocks*512 > 1<<20 {
		t.Errorf("vol1 is not sparse: %+v, %v", info.Sys(), err)
	}
	if left, _ := os.ReadDir(out); len(left) != 2 {
		t.Errorf("left %v", left)
	}
	if folder, err := os.Stat(out); err != nil || folder.Mode().Perm() != 0o700 || info.Mode().Perm() != 0o600 {
		t.Errorf("others can read it: %v, %v, %v", folder.Mode(), info.Mode(), err)
	}
	if len(target.closed) != 1 || target.closed[0] != "v1" {
		t.Errorf("closed %q", target.closed)
	}

	// Once more: what is there is not replaced, and stays.
	code, _, stderr = holdfast(t, contextFile(t, nil, target), "export", "--checkpoint", "before <upgrade>", "--out", out)
	if code != exitFailed || !strings.Contains(stderr, "is there already") {
		t.Errorf("exit %d, %s", code, stderr)
	}
	if got, err := os.ReadFile(filepath.Join(out, "vol1")); err != nil || !bytes.Equal(got, content) {
		t.Errorf("vol1 was touched: %v", err)
	}
}

// TestFailedExportLeavesNothing: no image, whole or in part, and no open view.
func TestFailedExportLeavesNothing(t *testing.T) {
	f := func(wantCode int, want string, read func(stop func(), off int64) error, args ...string) {
		t.Helper()
		ctx, stop := context.WithCancel(t.Context())
		defer stop()
		target, _ := exportSite(t, func(off int64) error { return read(stop, off) })
		above := t.TempDir()
		path := contextFile(t, nil, target)
		var out, errs bytes.Buffer
		code := run(ctx, append([]string{"--context", path, "export", "--out", filepath.Join(above, "images")}, args...), &out, &errs, os.Getenv)
		if code != wantCode || out.Len() != 0 || !strings.Contains(errs.String(), want) {
			t.Errorf("exit %d, %s, %s; want %d with %q", code, out.String(), errs.String(), wantCode, want)
		}
		if left, _ := os.ReadDir(above); len(left) != 0 {
			t.Errorf("left %v", left)
		}
		if wantClosed := min(1, len(target.view.Id)); target.opened.GetCheckpoint() != "77" && len(target.closed) != wantClosed {
			t.Errorf("closed %q", target.closed)
		}
	}
	fine := func(func(), int64) error { return nil }
	f(exitFailed, "export vol1", func(_ func(), off int64) error {
		if off >= 5<<20 {
			return errors.New("a broken block")
		}
		return nil
	}, "--checkpoint", "2")
	f(exitInterrupted, "interrupted", func(stop func(), off int64) error {
		if off >= 5<<20 {
			stop()
		}
		return nil
	}, "--checkpoint", "2")
	f(exitFailed, "no such checkpoint", fine, "--checkpoint", "77")
}

// TestExportSaysWhy: what a read by a view runs into is told as the target knows it, with
// what to do next.
func TestExportSaysWhy(t *testing.T) {
	f := func(happens func(*site), want ...string) {
		t.Helper()
		var once sync.Once
		var target *site
		target, _ = exportSite(t, func(off int64) error {
			if off < 5<<20 {
				return nil
			}
			once.Do(func() {
				target.mu.Lock()
				defer target.mu.Unlock()
				happens(target)
			})
			return errors.New("a broken block")
		})
		code, _, errs := holdfast(t, contextFile(t, nil, target), "export", "--checkpoint", "2", "--out", filepath.Join(t.TempDir(), "images"))
		for _, w := range want {
			if code != exitFailed || !strings.Contains(errs, w) {
				t.Errorf("exit %d, %s; want %q", code, errs, w)
			}
		}
	}
	f(func(s *site) { s.view.State, s.view.Reason = "closed", "1 GiB of 1 GiB are taken" },
		"gave way because 1 GiB of 1 GiB are taken: make room on the target's disk or, where it is the group's limit, set a higher one (holdfast group retention set lab --limit SIZE), or unpin")
	f(func(s *site) {
		s.view.State, s.view.Reason = "damaged", ""
		s.checkpoints[1].State, s.checkpoints[1].Reason = "bad", "volume 1 is damaged at 77"
	}, "checkpoint 2 is bad: volume 1 is damaged at 77; see holdfast checkpoint show 2")
	f(func(s *site) { s.checkpoints = s.checkpoints[:1] }, "checkpoint 2 is not there any more")
	f(func(s *site) { s.view.Id = "v9" }, "view v1 of the export was closed by someone else meanwhile")
	f(func(s *site) { s.view.State, s.view.Reason = "broken", "its scratch is gone" }, "view v1 is broken: its scratch is gone")
	f(func(s *site) { s.view.State, s.view.Reason = "good", "" }, "export vol1: nbd: ")
}

func TestNamesThatAreNoNamesAreNotWritten(t *testing.T) {
	target, _ := exportSite(t, nil)
	target.view.Volumes[0].Name = "../vol1"
	above := t.TempDir()
	code, _, stderr := holdfast(t, contextFile(t, nil, target), "export", "--checkpoint", "1", "--out", filepath.Join(above, "images"))
	if code != exitFailed || !strings.Contains(stderr, `name "../vol1"`) {
		t.Errorf("exit %d, %s", code, stderr)
	}
	if left, _ := os.ReadDir(above); len(left) != 0 {
		t.Errorf("left %v", left)
	}
}
