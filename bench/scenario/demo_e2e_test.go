//go:build e2e

package scenario_test

import (
	"bufio"
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// demonstrates runs the demo of a guest, interrupts it at a line that begins so (none: it goes on to its end), and returns its exit
// status and what it printed. Nothing may be left of it.
func demonstrates(t *testing.T, bin, interrupt string) (code int, out []byte) {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "demo")
	cmd := exec.Command(filepath.Join(bin, "holdfast"), "demo", "guest", "--kernel", kernel(t), "--dir", dir, "-o", "json")
	var printed bytes.Buffer
	cmd.Stdout = &printed
	said, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewScanner(said)
	for interrupted := false; lines.Scan(); {
		t.Log(lines.Text())
		if !interrupted && interrupt != "" && strings.HasPrefix(lines.Text(), interrupt) {
			interrupted = true
			cmd.Process.Signal(syscall.SIGINT)
		}
	}
	_ = cmd.Wait() // its exit status says all
	if _, err := os.Stat(dir); err == nil {
		t.Errorf("interrupted at %q it leaves %s", interrupt, dir)
	}
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range all {
		if text, _ := os.ReadFile(name); bytes.Contains(text, []byte(dir)) {
			t.Errorf("interrupted at %q it leaves a process: %q", interrupt, text)
		}
	}
	return cmd.ProcessState.ExitCode(), printed.Bytes()
}

// TestWholeDemoOfAGuest: the demo shows a guest come back, and leaves nothing, wherever it is interrupted.
func TestWholeDemoOfAGuest(t *testing.T) {
	t.Parallel()
	bin := built(t, "")
	code, out := demonstrates(t, bin, "")
	var got struct {
		Files, Bad int
		Ready      float64 `json:"ready_seconds"`
	}
	if err := json.Unmarshal(out, &got); code != 0 || err != nil || got.Files != 20 || got.Bad != 0 || got.Ready <= 0 {
		t.Errorf("exit %d, %v: %s", code, err, out)
	}
	for _, at := range []string{"2.", "   the guest says: SAFE", "5.", "start guest"} {
		if code, out := demonstrates(t, bin, at); code != 130 || len(out) > 0 {
			t.Errorf("interrupted at %q: exit %d: %s", at, code, out)
		}
	}
}
