// Package kvmtest is for tests of machines: a libvirtd of their own, and the smallest guest.
package kvmtest

import (
	"bytes"
	"errors"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/digitalocean/go-libvirt"

	"github.com/holdfast-dr/holdfast/control/config"
)

const qemu = "qemu-system-x86_64"

// BootSector says HELLO on the first serial port, and turns the machine off when its power button is pressed.
var BootSector = append(slices.Concat([]byte{
	0x31, 0xc0, 0x8e, 0xd8, 0xfc, // ds = 0, upwards
	0xba, 0x02, 0x06, 0xb8, 0x00, 0x01, 0xef, // the power button counts
	0xbe, 0x31, 0x7c, // each byte of what stands behind
	0xac, 0x84, 0xc0, 0x74, 0x06, 0xba, 0xf8, 0x03, 0xee, 0xeb, 0xf5,
	0xba, 0x00, 0x06, 0xed, 0xf6, 0xc4, 0x01, 0x74, 0xf7, // until it is pressed
	0xba, 0x04, 0x06, 0xb8, 0x00, 0x20, 0xef, // off
	0xeb, 0xfe, 0, 0, 0, 0, 0,
}, []byte("HELLO\n"), make([]byte, 510-49-6)), 0x55, 0xaa)

// rootDaemon runs libvirtd where nothing of the host's is seen or left: its folders are in memory, and gone
// with the namespace.
const rootDaemon = `set -e
mkdir "$1/etc" "$1/run"
cp -a /etc/. "$1/etc/"
mkdir -p "$1/etc/libvirt"
mount --bind "$1/etc" /etc
for g in libvirt-qemu kvm; do grep -q ^$g: /etc/group || echo "$g:x:64055:" >>/etc/group; done
grep -q ^libvirt-qemu: /etc/passwd || echo libvirt-qemu:x:64055:64055::/:/bin/false >>/etc/passwd
for p in /run /var/cache /var/log /var/lib; do mount -t tmpfs none $p; done
cp "$1/qemu.conf" /etc/libvirt/
exec libvirtd -f "$1/libvirtd.conf" -p "$1/pid"`

// Libvirtd starts a libvirtd of the test's own, which ends with it, and says where it is. The test is skipped where there is none.
func Libvirtd(t testing.TB) config.Hypervisor {
	t.Helper()
	for _, name := range []string{"libvirtd", qemu} {
		if _, err := exec.LookPath(name); err != nil {
			t.Skip(name + " is not there; install it: apt-get install libvirt-daemon qemu-system-x86")
		}
	}
	dir, err := os.MkdirTemp("", "hfv") // sockets have short names
	if err != nil {
		t.Fatal(err)
	}
	write := func(name, text string) {
		t.Helper()
		if err := errors.Join(os.MkdirAll(filepath.Dir(filepath.Join(dir, name)), 0o700), os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	qemuConf := "security_driver = \"none\"\nstdio_handler = \"file\"\n"
	daemonConf := "log_outputs = \"3:file:" + dir + "/log\"\nauth_unix_rw = \"none\"\n"
	var c *exec.Cmd
	where := config.Hypervisor{URI: "qemu:///session", Socket: dir + "/run/libvirt/libvirt-sock"}
	if os.Getuid() == 0 {
		write("qemu.conf", qemuConf+"user = \"root\"\ngroup = \"root\"\ndynamic_ownership = 0\nremember_owner = 0\nnamespaces = []\ncgroup_controllers = []\n")
		write("libvirtd.conf", daemonConf+"unix_sock_dir = \""+dir+"/run\"\n")
		where = config.Hypervisor{URI: "qemu:///system", Socket: dir + "/run/libvirt-sock"}
		c = exec.Command("unshare", "--mount", "sh", "-c", rootDaemon, "sh", dir)
	} else {
		write("config/libvirt/qemu.conf", qemuConf)
		write("config/libvirt/libvirtd.conf", daemonConf)
		c = exec.Command("libvirtd")
		c.Env = append(os.Environ(), "HOME="+dir, "XDG_RUNTIME_DIR="+dir+"/run", "XDG_CONFIG_HOME="+dir+"/config", "XDG_CACHE_HOME="+dir+"/cache", "XDG_DATA_HOME="+dir+"/data")
		write("run/.made", "")
	}
	var said bytes.Buffer
	c.Stdout, c.Stderr = &said, &said
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }()
	t.Cleanup(func() {
		c.Process.Signal(syscall.SIGTERM)
		<-ended
		if t.Failed() {
			log, _ := os.ReadFile(dir + "/log")
			t.Logf("libvirtd said: %s\n%s", said.Bytes(), log)
		}
		os.RemoveAll(dir)
	})
	late, tick := time.Now().Add(30*time.Second), time.NewTicker(10*time.Millisecond)
	defer tick.Stop()
	for ; ; <-tick.C {
		if _, err := os.Stat(where.Socket); err == nil {
			return where
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("libvirtd ended: %v: %s", err, said.Bytes())
		default:
		}
		if time.Now().After(late) {
			t.Fatal("libvirtd does not listen")
		}
	}
}

// dialed gives a connection that stands to the library.
type dialed struct{ net.Conn }

func (d dialed) Dial() (net.Conn, error) { return d.Conn, nil }

// Domain has libvirt run a domain of such a description until the test ends, as somebody who knows nothing of Holdfast, and returns
// what says whether it runs.
func Domain(t testing.TB, where config.Hypervisor, described string) (runs func() bool) {
	t.Helper()
	conn, err := net.Dial("unix", where.Socket)
	if err != nil {
		t.Fatal(err)
	}
	c := libvirt.NewWithDialer(dialed{conn})
	if err := c.ConnectToURI(libvirt.ConnectURI(where.URI)); err != nil {
		t.Fatal(err)
	}
	d, err := c.DomainDefineXML(described)
	if err == nil {
		err = c.DomainCreate(d)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = c.DomainDestroy(d) // it may be off
		_ = c.Disconnect()
		conn.Close()
	})
	return func() bool {
		active, err := c.DomainIsActive(d)
		if err != nil {
			t.Error(err)
		}
		return active == 1
	}
}
