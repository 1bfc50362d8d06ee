// Package guest makes a small real guest: a disk with a file system, and Debian's kernel for virtual machines with what it needs to
// reach that disk. Its programs are busybox and a script that writes files whose content follows from their numbers and says
// which are safe on the disk, or reads them and says which are not what they were. It goes off when its power button is pressed.
//
// What it says on its first serial port:
//
//	UP              its disk is mounted
//	SAFE n          file n is on the disk, and synced
//	BYE             its power button was pressed, all is synced, and it goes off
//	ORDERLY         the disk is that of a guest which had said BYE
//	READ n BAD m    it read n files, and m are not what they were
package guest

import (
	"bytes"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

//go:embed first
var first []byte

//go:embed init
var initScript []byte

// modules are what the kernel must load for the disk and the power button, each after those that it needs.
var modules = []string{"virtio/virtio", "virtio/virtio_ring", "virtio/virtio_pci_modern_dev", "virtio/virtio_pci_legacy_dev", "virtio/virtio_pci", "block/virtio_blk", "input/evdev", "acpi/button"}

// Kit is what guests are made of.
type Kit struct {
	Kernel, Initrd string // files

	dir     string
	busybox []byte
}

// New makes what guests need in dir, of a kernel that is unpacked below root, as tools/setup/kernel.sh leaves it.
func New(dir, root string) (*Kit, error) {
	path, err := exec.LookPath("busybox")
	if err != nil {
		return nil, errors.New("busybox is not there; install it: apt-get install busybox-static")
	}
	k := &Kit{dir: dir, Initrd: filepath.Join(dir, "initrd")}
	if k.busybox, err = os.ReadFile(path); err != nil {
		return nil, err
	}
	if k.Kernel, err = only(filepath.Join(root, "boot", "vmlinuz-*")); err != nil {
		return nil, err
	}
	var a archive
	a.folder("bin", "dev", "proc", "mod", "new")
	a.file("init", 0o755, first)
	a.file("bin/busybox", 0o755, k.busybox)
	for _, m := range modules {
		name, err := only(filepath.Join(root, "lib", "modules", "*", "kernel", "drivers", m+".ko"))
		if err != nil {
			return nil, err
		}
		text, err := os.ReadFile(name)
		if err != nil {
			return nil, err
		}
		a.file("mod/"+filepath.Base(name), 0o644, text)
	}
	return k, os.WriteFile(k.Initrd, a.end(), 0o600)
}

func only(pattern string) (string, error) {
	names, err := filepath.Glob(pattern)
	if err == nil && len(names) != 1 {
		err = fmt.Errorf("%s: %q; want one: name a folder that tools/setup/kernel.sh made", pattern, names)
	}
	if err != nil {
		return "", err
	}
	return names[0], nil
}

// Job is what a guest does, by the kernel's command line.
type Job string

// The jobs.
const (
	Write Job = "write" // files, and then one again and again until it is ended
	Read  Job = "read"  // them back, and goes off
	Stay  Job = "stay"  // reads them back, and stays
)

// Cmdline is the kernel's command line for a guest of so many files; more are further words of it: pause=SECONDS between what is written
// again and again, disks=2 where the files are on a second disk, more=N files to write after it has read those.
func Cmdline(job Job, files int, more string) string {
	// Where its processor is emulated on a busy host the kernel may find at boot that no timer ticks, and go no further.
	text := fmt.Sprintf("console=ttyS0 panic=-1 quiet no_timer_check job=%s files=%d", job, files)
	if more != "" {
		text += " " + more
	}
	return text
}

// MakeDisk makes a guest's disk of that size in bytes: a file system with its programs.
func (k *Kit) MakeDisk(name string, size int64) error {
	root := filepath.Join(k.dir, "root")
	for _, d := range []string{"bin", "dev", "proc", "data", "sbin", "etc/acpi/PWRF"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			return err
		}
	}
	for to, text := range map[string][]byte{"bin/busybox": k.busybox, "sbin/init": initScript, "etc/acpi/PWRF/00000080": []byte("#!/bin/sh\n: >/dev/pressed\n")} {
		if err := os.WriteFile(filepath.Join(root, to), text, 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		return err
	}
	return format(name, size, "-d", root)
}

// MakeSecond makes an empty file system of that size in bytes, for a guest whose files are on a disk of their own (disks=2).
func MakeSecond(name string, size int64) error {
	if err := os.WriteFile(name, nil, 0o600); err != nil {
		return err
	}
	return format(name, size)
}

// format makes a file system in a file, of that size.
func format(name string, size int64, more ...string) error {
	if err := os.Truncate(name, size); err != nil {
		return err
	}
	mke2fs, err := exec.LookPath("mke2fs")
	if err != nil {
		mke2fs = "/sbin/mke2fs" // which is in nobody's path but root's
	}
	args := append(append([]string{"-q", "-t", "ext4", "-b", "4096"}, more...), name)
	if out, err := exec.Command(mke2fs, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("mke2fs (apt-get install e2fsprogs): %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

// archive is a cpio archive of the kind that kernels unpack ("newc").
type archive struct {
	bytes.Buffer
	inode int
}

func (a *archive) add(name string, mode int, p []byte) {
	a.inode++
	fmt.Fprintf(a, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		a.inode, mode, 0, 0, 1, 0, len(p), 0, 0, 0, 0, len(name)+1, 0, name)
	a.pad()
	a.Write(p)
	a.pad()
}

func (a *archive) pad() { a.Write(make([]byte, -a.Len()&3)) }

func (a *archive) folder(names ...string) {
	for _, name := range names {
		a.add(name, 0o40755, nil)
	}
}

func (a *archive) file(name string, mode int, p []byte) { a.add(name, 0o100000|mode, p) }

func (a *archive) end() []byte {
	a.add("TRAILER!!!", 0, nil)
	return a.Bytes()
}
