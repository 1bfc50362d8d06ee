package scenario

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

const tmpfsMagic = 0x01021994

// runPlaces are where a runtime folder may be made, best first: short, because the
// path of a socket holds 107 bytes, and in memory.
func runPlaces(uid int, xdg string) []string {
	if uid == 0 {
		return []string{"/run", "/dev/shm"}
	}
	var places []string
	if filepath.IsAbs(xdg) && len(xdg) <= maxRunPlace {
		places = append(places, xdg)
	}
	return append(places, "/dev/shm", "/tmp")
}

// maxRunPlace leaves room for the folder's own name and the longest socket's in 107 bytes.
const maxRunPlace = 64

// memoryFirst moves the places that are in memory before the others, and drops those
// that do not exist.
func memoryFirst(places []string) []string {
	var inMemory, others []string
	for _, p := range places {
		var fs syscall.Statfs_t
		if err := syscall.Statfs(p, &fs); err != nil {
			continue
		}
		if int64(fs.Type) == tmpfsMagic {
			inMemory = append(inMemory, p)
		} else {
			others = append(others, p)
		}
	}
	return append(inMemory, others...)
}

// makeRunDir makes a folder that is this lab's alone, in the first of places that
// takes it, and puts the lab's mark in it. The manifest names it first.
func (m *manifest) makeRunDir(dir string, places []string) error {
	last := os.ErrNotExist
	for _, place := range places {
		m.RunDir = filepath.Join(place, runPrefix+strings.ToLower(rand.Text()[:8]))
		if err := m.save(dir); err != nil {
			return err
		}
		if last = os.Mkdir(m.RunDir, 0o700); last != nil {
			continue
		}
		return os.WriteFile(filepath.Join(m.RunDir, markerName), []byte(m.ID), 0o600)
	}
	m.RunDir = ""
	return fmt.Errorf("no place for sockets in %s: %w", strings.Join(places, ", "), last)
}
