package daemon

import (
	"bytes"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

func TestStatus(t *testing.T) {
	f := func(want int, says string, err error) {
		t.Helper()
		var stderr bytes.Buffer
		if got := status("vra", err, &stderr); got != want || stderr.String() != says {
			t.Errorf("%v: status %d, says %q; want %d, %q", err, got, stderr.String(), want, says)
		}
	}
	f(0, "", nil)
	f(0, "", flag.ErrHelp)
	f(1, "vra: no disk\n", errors.New("no disk"))
	f(1, "vra: site is needed\nvra: id is needed\n", errors.Join(errors.New("site is needed"), errors.New("id is needed")))
	f(2, "vra: --nice is 0 to 19: try --help\n", Usage(errors.New("--nice is 0 to 19")))
}

func TestFlags(t *testing.T) {
	type out struct{ said, file string }
	f := func(want out, wantErr error, args ...string) {
		t.Helper()
		var said bytes.Buffer
		flags := NewFlags("vra")
		more := flags.Bool("more", false, "says more")
		done, err := flags.Take(args, &said, &said)
		if !errors.Is(err, wantErr) || done != (err == nil && want.file == "") || flags.File != want.file && err == nil || !strings.HasPrefix(said.String(), want.said) || want.said == "" && said.Len() > 0 {
			t.Errorf("%q: done %v, %v, file %q, said %q", args, done, err, flags.File, said.String())
		}
		if *more != strings.Contains(strings.Join(args, " "), "--more") {
			t.Errorf("%q: --more %v", args, *more)
		}
	}
	f(out{file: "f"}, nil, "--config", "f")
	f(out{file: "f"}, nil, "--config=f", "--more", "--check-config")
	f(out{said: "vra devel (commit "}, nil, "--version")
	f(out{said: "Usage of vra:\n  -check-config\n"}, flag.ErrHelp, "--help")
	f(out{}, ErrUsage)
	f(out{}, ErrUsage, "--config", "f", "more")
	f(out{}, ErrUsage, "--config")
	f(out{}, ErrUsage, "--colour")
}

func TestChecked(t *testing.T) {
	f := func(wantDone bool, wantErr, says string, wrong error, args ...string) {
		t.Helper()
		var said bytes.Buffer
		flags := NewFlags("vra")
		if _, err := flags.Take(append([]string{"--config", "f"}, args...), &said, &said); err != nil {
			t.Fatal(err)
		}
		done, err := flags.Checked(wrong, &said)
		if done != wantDone || (err == nil) != (wantErr == "") || err != nil && err.Error() != wantErr || said.String() != says {
			t.Errorf("%q, %v: done %v, %v, said %q", args, wrong, done, err, said.String())
		}
	}
	f(false, "", "", nil)
	f(true, "", "config ok\n", nil, "--check-config")
	f(false, "f: site is needed", "", errors.New("site is needed"))
	f(false, "f: site is needed", "", errors.New("site is needed"), "--check-config")
}

// TestListen takes over what a dead process left, and nothing else.
func TestListen(t *testing.T) {
	dir, err := os.MkdirTemp("", "hf") // short: it holds sockets
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	path := filepath.Join(dir, "s")
	l, err := Listen(path, -1)
	if err != nil {
		t.Fatal(err)
	}
	mode := func(want os.FileMode, group int) {
		t.Helper()
		fi, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := int(fi.Sys().(*syscall.Stat_t).Gid); fi.Mode().Perm() != want || got != group {
			t.Errorf("socket %v of the group %d, want %v, %d", fi.Mode(), got, want, group)
		}
	}
	mode(0o600, os.Getgid())
	if _, err := Listen(path, -1); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("a socket in use: %v", err)
	}
	l.SetUnlinkOnClose(false) // as a killed process leaves it
	l.Close()
	group := os.Getgid()
	if os.Getuid() == 0 {
		group = 1 // any that is not our own
	}
	if l, err = Listen(path, group); err != nil {
		t.Fatal(err)
	}
	mode(0o660, group)
	l.Close()
	if os.Getuid() != 0 {
		if _, err := Listen(path, 0); err == nil || !strings.Contains(err.Error(), "run as a member of it") {
			t.Errorf("for a group that we are not in: %v", err)
		}
	}
	if err := os.WriteFile(path, []byte("a disk"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Listen(path, -1); err == nil {
		t.Error("a file that is no socket was taken over")
	}
	if got, err := os.ReadFile(path); err != nil || string(got) != "a disk" {
		t.Errorf("the file is %q, %v", got, err)
	}
}
