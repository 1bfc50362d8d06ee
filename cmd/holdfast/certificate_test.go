package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/pairing"
)

// TestCertificates makes an authority and certificates, which are trusted as they say, and renews one.
func TestCertificates(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	ok := func(args ...string) (c certified) {
		t.Helper()
		code, out, errs := holdfast(t, "", append([]string{"certificate", "-o", "json"}, args...)...)
		if err := json.Unmarshal([]byte(out), &c); code != 0 || err != nil || errs != "" {
			t.Fatalf("%q: exit %d, %v, %s%s", args, code, err, out, errs)
		}
		return c
	}
	if c := ok("authority", "--site", "west", "--dir", dir); c.Name != "west/ca" || c.Certificate != at("ca.pem") || c.Key != at("ca-key.pem") {
		t.Errorf("%+v", c)
	}
	issue := func(role, id, out string, more ...string) certified {
		t.Helper()
		return ok(append([]string{"issue", "--authority", dir, "--role", role, "--id", id, "--out", at(out)}, more...)...)
	}
	held := func(out, name string, days int) *pairing.Trust {
		t.Helper()
		trust, err := pairing.LoadTrust(at("ca.pem"), at(out+".pem"), at(out+"-key.pem"))
		if err != nil {
			t.Fatal(err)
		}
		ends, _ := trust.Ends()
		if left := time.Until(ends); trust.Name().String() != name || left > time.Duration(days)*24*time.Hour || left < time.Duration(days)*24*time.Hour-time.Hour {
			t.Errorf("%s: %s until %v", out, trust.Name(), ends)
		}
		return trust
	}
	c := issue("sidecar", "vra-1", "sidecar", "--host", "192.0.2.7", "--host", "vra-1.west.example")
	if trust := held("sidecar", "west/sidecar/vra-1", 30); c.Name != trust.Name().String() || c.Ends == nil {
		t.Errorf("%+v", c)
	}
	cert, err := os.ReadFile(at("sidecar.pem"))
	if err != nil {
		t.Fatal(err)
	}
	issue("admin", "ann", "ann", "--days", "7")
	held("ann", "west/admin/ann", 7)
	issue("sidecar", "vra-1", "sidecar", "--days", "90")
	held("sidecar", "west/sidecar/vra-1", 90)
	if again, err := os.ReadFile(at("sidecar.pem")); err != nil || string(again) == string(cert) {
		t.Errorf("it is not another one: %v", err)
	}
	for _, key := range []string{"ca-key.pem", "ann-key.pem"} {
		if fi, err := os.Stat(at(key)); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", key, fi.Mode(), err)
		}
	}

	f := func(want int, words string, args ...string) {
		t.Helper()
		if code, out, errs := holdfast(t, "", append([]string{"certificate"}, args...)...); code != want || !strings.Contains(errs, words) || out != "" {
			t.Errorf("%q: exit %d, %q, %q; want %d, %q", args, code, out, errs, want, words)
		}
	}
	f(exitUsage, "--site and --dir are needed", "authority", "--dir", dir)
	f(exitUsage, "names are of a-z", "authority", "--site", "West", "--dir", t.TempDir())
	f(exitFailed, "file already exists", "authority", "--site", "west", "--dir", dir)
	f(exitFailed, "no such file", "authority", "--site", "west", "--dir", at("none"))
	good := []string{"issue", "--authority", dir, "--out", at("x")}
	f(exitUsage, "--authority, --role, --id and --out are needed", append(good, "--role", "vra")...)
	f(exitUsage, `role "root": want one of vra, sidecar`, append(good, "--role", "root", "--id", "x")...)
	f(exitUsage, "are no names", append(good, "--role", "vra", "--id", "../x")...)
	f(exitUsage, "--days is 1 to 3650", append(good, "--role", "vra", "--id", "x", "--days", "3651")...)
	f(exitUsage, "is beyond that of the CA", append(good, "--role", "vra", "--id", "x", "--days", "3650")...)
	f(exitFailed, "no such file", "issue", "--authority", at("none"), "--role", "vra", "--id", "x", "--out", at("x"))
	f(exitFailed, "no such file", "issue", "--authority", dir, "--role", "vra", "--id", "x", "--out", at("none/x"))
	if _, err := os.Stat(at("x.pem")); err == nil {
		t.Error("what failed left a file")
	}
}
