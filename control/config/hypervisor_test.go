package config

import (
	"strings"
	"testing"
	"time"
)

func TestHypervisor(t *testing.T) {
	f := func(word, uri, socket, again string) {
		t.Helper()
		h, err := ParseHypervisor(word)
		if err != nil || h.URI != uri || h.Socket != socket || h.String() != again {
			t.Errorf("%q is %+v, %v, written %q", word, h, err, h)
		}
		if back, err := ParseHypervisor(h.String()); err != nil || back != h {
			t.Errorf("%q reads as %+v, %v", h, back, err)
		}
	}
	f("", "", "", "qemu")
	f("qemu", "", "", "qemu")
	f("qemu:///system", "qemu:///system", "", "qemu:///system")
	f("qemu+unix:///system", "qemu:///system", "", "qemu:///system")
	f("qemu+unix:///session?socket=/run/user/7/libvirt/libvirt-sock", "qemu:///session", "/run/user/7/libvirt/libvirt-sock", "qemu+unix:///session?socket=%2Frun%2Fuser%2F7%2Flibvirt%2Flibvirt-sock")
	f("qemu:///system?socket=/a b", "qemu:///system", "/a b", "qemu+unix:///system?socket=%2Fa+b")
	for word, want := range map[string]string{
		"kvm": "none that is known", "xen:///system": "none that is known", "qemu+ssh://root@host/system": "none that is known", "qemu://host/system": "another host",
		"qemu:///": "names no connection", "qemu:///session": "not named", "qemu:///system?socket=run": "no absolute path", "qemu:///system?no_verify=1": "more than a socket", "qemu:// /": "does not read",
	} {
		if _, err := ParseHypervisor(word); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", word, err, want)
		}
	}
}

func TestVerify(t *testing.T) {
	f := func(verify, want string) {
		t.Helper()
		var c Machines
		err := parse([]byte("verify: "+verify+"\nmachines:\n  - {name: web1, disks: [web1]}\n"), &c)
		if (want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", verify, err, want)
		}
		if err == nil && c.Verify.Keep == 0 {
			t.Error("no report would be kept")
		}
	}
	f(`{every: 24h}`, "")
	f(`{every: 168h, at: "02:30", keep: 5}`, "")
	f(`{every: 6h, at: "02:30"}`, "not whole days")
	f(`{every: 24h, at: "2:30"}`, "want hours and minutes")
	f(`{every: 24h, at: "24:00"}`, "want hours and minutes")
	f(`{every: 1m}`, "verify.every: 1m is not between")
	f(`{at: "02:30"}`, "verify.every: 0s is not between")
	f(`{every: 24h, keep: -1}`, "verify.keep")
	if Clock("").SinceMidnight() >= 0 || Clock("23:59").SinceMidnight() != 24*time.Hour-time.Minute {
		t.Error("a time of day is another one")
	}
}

func TestMachineSource(t *testing.T) {
	f := func(source, want string) {
		t.Helper()
		var c Machines
		err := parse([]byte("hypervisor: qemu:///system\nmachines:\n  - {name: web1, disks: [web1], source: "+source+"}\n"), &c)
		if (want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", source, err, want)
		}
		if err == nil && !c.Hypervisor.Libvirt() {
			t.Error("the file's hypervisor is lost")
		}
	}
	f("{libvirt: qemu:///system, domain: web1}", "")
	f("{qmp: /run/web1}", "")
	f("{qmp: /run/web1, libvirt: qemu:///system, domain: web1}", "so is qmp")
	f("{domain: web1}", "without the libvirt")
	f("{libvirt: qemu, domain: web1}", "without the libvirt")
	f("{libvirt: qemu:///system}", "domain: is missing")
	f("{libvirt: 'xen:///', domain: web1}", "none that is known")
}
