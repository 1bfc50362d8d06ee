package pairing

import (
	"bytes"
	"crypto/x509"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var now = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func newCA(t testing.TB, site string) *CA {
	t.Helper()
	ca, err := NewCA(site, now)
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

func issue(t testing.TB, ca *CA, role, id string) *Leaf {
	t.Helper()
	leaf, err := ca.Issue(Identity{role, id}, now, LeafLife)
	if err != nil {
		t.Fatal(err)
	}
	return leaf
}

func verify(leaf *x509.Certificate, ca *CA, at time.Time, between ...*x509.Certificate) error {
	roots, chain := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(ca.Certificate())
	for _, c := range between {
		chain.AddCert(c)
	}
	_, err := leaf.Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: chain, CurrentTime: at,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	return err
}

func TestLeafSaysWhoHoldsIt(t *testing.T) {
	ca := newCA(t, "west-1.a")
	leaf := issue(t, ca, "vra", "host_7").Certificate()
	if len(leaf.URIs) != 1 || leaf.URIs[0].String() != "holdfast://west-1.a/vra/host_7" {
		t.Errorf("a leaf names %v", leaf.URIs)
	}
	if got := ca.Certificate().URIs[0].String(); got != "holdfast://west-1.a/ca" {
		t.Errorf("a CA names %s", got)
	}
	if err := verify(leaf, ca, now); err != nil {
		t.Error(err)
	}
	if err := verify(leaf, newCA(t, "west-1.a"), now); err == nil {
		t.Error("another CA of the same name verifies the leaf")
	}
}

func TestLivesEnd(t *testing.T) {
	ca := newCA(t, "west")
	leaf := issue(t, ca, "vra", "a").Certificate()
	f := func(at time.Duration, ok bool) {
		t.Helper()
		if err := verify(leaf, ca, now.Add(at)); (err == nil) != ok {
			t.Errorf("at %v: %v", at, err)
		}
	}
	f(-2*time.Hour, false)
	f(-time.Minute, true) // the peer's clock may be behind
	f(LeafLife-time.Minute, true)
	f(LeafLife+time.Minute, false)
	for _, life := range []time.Duration{0, -time.Hour, CALife + time.Hour} {
		if _, err := ca.Issue(Identity{"vra", "a"}, now, life); err == nil {
			t.Errorf("a leaf with a life of %v", life)
		}
	}
}

func TestLeafSignsNothing(t *testing.T) {
	ca := newCA(t, "west")
	leaf := issue(t, ca, "vra", "a")
	rogue := &CA{"west", leaf.cert, leaf.key}
	forged, err := rogue.Issue(Identity{"zvm", "boss"}, now, time.Hour)
	if err != nil {
		return // it would not even sign
	}
	if verify(forged.Certificate(), ca, now, leaf.Certificate()) == nil {
		t.Error("a leaf signed another, and it verifies")
	}
}

func TestNamesAreChecked(t *testing.T) {
	ca := newCA(t, "west")
	for _, bad := range []string{"", "A", "-a", "a/b", "a b", "ä", "..", "a\n", strings.Repeat("a", 64)} {
		if _, err := NewCA(bad, now); err == nil {
			t.Errorf("a site is called %q", bad)
		}
		if _, err := ca.Issue(Identity{"vra", bad}, now, time.Hour); err == nil {
			t.Errorf("an id is %q", bad)
		}
		if _, err := ca.Issue(Identity{bad, "a"}, now, time.Hour); err == nil {
			t.Errorf("a role is %q", bad)
		}
	}
}

func TestFiles(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	ca := newCA(t, "west")
	if err := ca.Save(at("ca.pem"), at("ca.key")); err != nil {
		t.Fatal(err)
	}
	mode := func(name string, want fs.FileMode) {
		t.Helper()
		info, err := os.Stat(at(name))
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s has mode %v, want %v (%v)", name, info.Mode(), want, err)
		}
	}
	mode("ca.pem", 0o644)
	mode("ca.key", 0o600)
	if err := newCA(t, "west").Save(at("ca.pem"), at("other.key")); !errors.Is(err, fs.ErrExist) {
		t.Errorf("a CA was overwritten: %v", err)
	}

	again, err := LoadCA(at("ca.pem"), at("ca.key"))
	if err != nil || again.Site() != "west" || !bytes.Equal(again.CertPEM(), ca.CertPEM()) {
		t.Fatalf("loaded %v: %v", again, err)
	}
	leaf := issue(t, again, "vra", "a")
	if err := verify(leaf.Certificate(), ca, now); err != nil {
		t.Error(err)
	}
	for range 2 { // a renewed leaf replaces the old one
		if err := leaf.Save(at("a.pem"), at("a.key")); err != nil {
			t.Fatal(err)
		}
	}
	mode("a.pem", 0o644)
	mode("a.key", 0o600)
	left, _ := filepath.Glob(at(".*"))
	if len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}

	if _, err := LoadCA(at("a.pem"), at("a.key")); err == nil {
		t.Error("a leaf was loaded as a CA")
	}
	if _, err := LoadCA(at("ca.pem"), at("a.key")); err == nil {
		t.Error("a CA was loaded with another's key")
	}
	os.Chmod(at("ca.key"), 0o640)
	if _, err := LoadCA(at("ca.pem"), at("ca.key")); err == nil || !strings.Contains(err.Error(), "0600") {
		t.Errorf("a key that others can read was loaded: %v", err)
	}
}

func TestFailedSaveLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	ca := newCA(t, "west")
	if err := ca.Save(filepath.Join(dir, "missing", "ca.pem"), filepath.Join(dir, "ca.key")); err == nil {
		t.Fatal("saved into a folder that is not there")
	}
	if left, _ := os.ReadDir(dir); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}
