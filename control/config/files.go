package config

import (
	"crypto/tls"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// CheckFiles tells what of the files and folders that the configuration names would
// keep the VRA from running. It makes nothing.
func (c *VRA) CheckFiles() error {
	var m mistakes
	for _, f := range []struct{ where, path string }{{"tls.ca", c.TLS.CA}, {"tls.cert", c.TLS.Cert}, {"tls.key", c.TLS.Key}, {"tls.peer_ca", c.TLS.PeerCA}} {
		m.file(f.where, checkPEM(f.path))
	}
	if len(m) == 0 {
		if _, err := tls.LoadX509KeyPair(c.TLS.Cert, c.TLS.Key); err != nil {
			m.add("tls.key", "%s and %s are no pair: %v", c.TLS.Key, c.TLS.Cert, err)
		}
	}
	m.file("data_dir", checkFolder(c.DataDir))
	m.file("run_dir", checkFolder(c.RunDir))
	m.file("socket", checkFolderOf(c.Socket, c.RunDir))
	if c.Target != nil {
		m.file("target.store", checkFolder(c.Target.Store))
	}
	return m.err()
}

// CheckFiles tells what of the files and folders that the configuration names would
// keep the filter from running. It makes nothing.
func (c *Filter) CheckFiles() error {
	var m mistakes
	m.file("run_dir", checkFolder(c.RunDir))
	m.file("pool_socket", checkFolderOf(c.PoolSocket, c.RunDir))
	_, err := c.SocketGID()
	m.file("socket_group", err)
	for i, v := range c.Volumes {
		at := fmt.Sprintf("volumes[%d]", i)
		if v.Mirror == 0 {
			m.file(at+".path", checkDisk(v.Path))
		}
		if v.ActivityLog != "" && v.ActivityLog != noActivityLog { // without the one beside the disk a filter runs as well
			m.file(at+".activity_log", checkFolder(filepath.Dir(v.ActivityLog)))
		}
		for _, s := range v.sockets(at) {
			m.file(s.key, checkFolderOf(s.path, c.RunDir))
		}
	}
	return m.err()
}

// SocketGID is the number of SocketGroup; -1 when there is none.
func (c *Filter) SocketGID() (int, error) {
	if c.SocketGroup == "" {
		return -1, nil
	}
	g, err := user.LookupGroup(c.SocketGroup)
	if err != nil {
		return -1, fmt.Errorf("%q is no group of this machine", c.SocketGroup)
	}
	return strconv.Atoi(g.Gid)
}

func (m *mistakes) file(where string, err error) {
	if err != nil {
		m.add(where, "%v", err)
	}
}

func checkPEM(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return plainPath(err)
	}
	if block, _ := pem.Decode(text); block == nil {
		return fmt.Errorf("%s is no PEM file", path)
	}
	return nil
}

// plainPath takes the name of the system call out of an error.
func plainPath(err error) error {
	if pe, ok := errors.AsType[*fs.PathError](err); ok {
		return fmt.Errorf("%s: %w", pe.Path, pe.Err)
	}
	return err
}

// Ways to ask access(2).
const (
	mayEnter = 1
	mayWrite = 2
)

// checkFolder says whether the folder is there to be written to, or can be made.
func checkFolder(path string) error {
	for at := filepath.Clean(path); ; at = filepath.Dir(at) {
		info, err := os.Stat(at)
		switch {
		case (errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR)) && at != filepath.Dir(at):
			continue
		case err != nil:
			return plainPath(err)
		case !info.IsDir():
			return fmt.Errorf("%s is no folder", at)
		}
		if err := syscall.Access(at, mayEnter|mayWrite); err != nil {
			return fmt.Errorf("nothing can be made in %s: %w", at, err)
		}
		return nil
	}
}

// checkFolderOf says whether the folder of a socket is there; made is one that will be.
func checkFolderOf(socket, made string) error {
	dir := filepath.Dir(socket)
	if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) && dir != filepath.Clean(made) {
		return fmt.Errorf("the folder %s does not exist: make it, or name a socket in run_dir", dir)
	}
	return checkFolder(dir)
}

const sectorBytes = 512

// checkDisk says whether the file or device can be served as a disk.
func checkDisk(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return plainPath(err)
	}
	if mode := info.Mode(); !mode.IsRegular() && mode.Type() != os.ModeDevice {
		return fmt.Errorf("%s is neither a file nor a block device", path)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return plainPath(err)
	}
	defer f.Close()
	size, err := f.Seek(0, io.SeekEnd) // a device's size is not in its Stat
	if err != nil {
		return plainPath(err)
	}
	if size == 0 || size%sectorBytes != 0 {
		return fmt.Errorf("%s has %d bytes: want a multiple of %d, and more than none", path, size, sectorBytes)
	}
	return nil
}
