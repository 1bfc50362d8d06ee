package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestCheckFiles finds what would keep a daemon from running, and makes nothing.
func TestCheckFiles(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	write := func(name string, size int) {
		t.Helper()
		if err := os.WriteFile(at(name), make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("disk", 4096)
	write("odd", 1000)
	write("empty", 0)
	f := func(want string, err error) {
		t.Helper()
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
	}
	filter := func(path, run, socket string) error {
		return (&Filter{RunDir: at(run), PoolSocket: at(socket), Volumes: []FilterVolume{{Path: at(path), NBD: at("nbd")}}}).CheckFiles()
	}
	f("", filter("disk", "run", "pool"))
	f("", filter("disk", "run/deep", "run/deep/pool"))
	f("volumes[0].path: "+at("none")+": no such file", filter("none", "run", "pool"))
	f("1000 bytes: want a multiple of 512", filter("odd", "run", "pool"))
	f("0 bytes", filter("empty", "run", "pool"))
	f("neither a file nor a block device", filter(".", "run", "pool"))
	f("run_dir: "+at("disk")+" is no folder", filter("disk", "disk", "pool"))
	f("run_dir: ", filter("disk", "disk/below", "pool"))
	f("pool_socket: the folder "+at("other")+" does not exist", filter("disk", "run", "other/pool"))
	f(`socket_group: "no-such-group" is no group of this machine`, (&Filter{RunDir: at("run"), PoolSocket: at("pool"), SocketGroup: "no-such-group"}).CheckFiles())

	c := &VRA{DataDir: at("data/deep"), RunDir: at("run"), Socket: at("run/s"), Target: &Target{Store: "/proc/store"}, TLS: TLS{CA: at("none"), Cert: at("disk"), Key: at("disk"), PeerCA: at("disk")}}
	err := c.CheckFiles()
	f("tls.ca: "+at("none")+": no such file", err)
	f("tls.cert: "+at("disk")+" is no PEM file", err)
	if strings.Contains(err.Error(), "data_dir") || strings.Contains(err.Error(), "socket") {
		t.Errorf("%v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 3 {
		t.Errorf("left %v", left)
	}
}
