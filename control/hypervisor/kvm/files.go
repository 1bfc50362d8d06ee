package kvm

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
)

// fileID is which file it is, whatever its names.
type fileID struct {
	block    bool
	dev, ino uint64
}

func idOf(path string) (fileID, error) {
	info, err := os.Stat(path)
	if err != nil {
		return fileID{}, err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fileID{}, fmt.Errorf("%s: no inode", path)
	}
	if info.Mode().Type() == os.ModeDevice {
		return fileID{block: true, dev: uint64(st.Rdev)}, nil
	}
	return fileID{dev: uint64(st.Dev), ino: st.Ino}, nil
}

// Disk makes the volume of the disk at a path: how long it is, and how it is told from others.
// QEMU may have its own root and working folder.
func (m *Monitor) Disk(v Volume) (Volume, error) {
	id, err := idOf(v.Path)
	if err != nil {
		return v, err
	}
	f, err := os.Open(v.Path)
	if err != nil {
		return v, err
	}
	defer f.Close()
	if v.Bytes, err = f.Seek(0, io.SeekEnd); err != nil { // a device's size is not in its Stat
		return v, err
	}
	pid := m.PID
	v.Same = func(file string) bool {
		for _, name := range placesOf(pid, file) {
			if got, err := idOf(name); err == nil {
				return got == id
			}
		}
		return false
	}
	return v, nil
}

// placesOf is where a file that a process names so may be seen from here, the surest first.
func placesOf(pid int, file string) (places []string) {
	if pid > 0 {
		under := "root"
		if !filepath.IsAbs(file) {
			under = "cwd"
		}
		places = append(places, filepath.Join("/proc", strconv.Itoa(pid), under, file))
	}
	if filepath.IsAbs(file) {
		places = append(places, file)
	}
	return places
}
