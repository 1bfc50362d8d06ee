package pairing

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// drain shakes hands and then takes what comes: a pipe holds nothing back for a reader that went away.
func drain(c *tls.Conn) {
	c.Handshake()
	io.Copy(io.Discard, c.NetConn())
}

// shake has a server that trusts the site's CA meet a client with some leaf, or none, and tells what
// the server says of it.
func shake(t *testing.T, server *Trust, roles []string, client *tls.Config) (Name, error) {
	t.Helper()
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	go drain(tls.Client(far, client))
	c := tls.Server(near, server.Server(roles...))
	if err := c.HandshakeContext(t.Context()); err != nil {
		return Name{}, err
	}
	return server.Peer(c.ConnectionState())
}

func trust(t *testing.T, ca *CA, leaf *Leaf, at time.Time) *Trust {
	t.Helper()
	tr, err := NewTrust(ca.Certificate(), leaf.TLS(), func() time.Time { return at })
	if err != nil {
		t.Fatal(err)
	}
	return tr
}

func TestTrust(t *testing.T) {
	ca := newCA(t, "west")
	leaf := issue(t, ca, "sidecar", "vra-1")
	f := func(what string, server *Trust, client *tls.Config, want Reason) {
		t.Helper()
		name, err := shake(t, server, []string{"admin", "monitor"}, client)
		refused, _ := errors.AsType[*Refused](err)
		switch {
		case want == "" && (err != nil || name != Name{"west", "admin", "ann"}):
			t.Errorf("%s: %v, %v", what, name, err)
		case want != "" && (refused == nil || refused.Reason != want || !strings.Contains(err.Error(), string(want))):
			t.Errorf("%s: %v, want %s", what, err, want)
		}
	}
	client := func(l *Leaf) *tls.Config {
		c := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS13}
		if l != nil {
			c.Certificates = []tls.Certificate{l.TLS()}
		}
		return c
	}
	server := trust(t, ca, leaf, now)
	ann := issue(t, ca, "admin", "ann")
	f("one of ours", server, client(ann), "")
	f("none", server, client(nil), NoCertificate)
	f("another role", server, client(issue(t, ca, "vra", "vra-2")), WrongRole)
	f("another site", server, client(issue(t, newCA(t, "east"), "admin", "ann")), OtherSite)
	f("our site, another CA", server, client(issue(t, newCA(t, "west"), "admin", "ann")), WrongCA)
	f("too late", trust(t, ca, leaf, now.Add(LeafLife+time.Hour)), client(ann), Expired)
	f("too early", trust(t, ca, leaf, now.Add(-2*skew)), client(ann), NotYet)
	f("the CA itself", server, client(&Leaf{ca.cert, ca.key}), NoName)
	noURI := *ann.cert
	noURI.URIs = nil
	bare, err := sign(&noURI, ca.cert, ann.key.Public(), ca.key)
	if err != nil {
		t.Fatal(err)
	}
	f("no URI", server, client(&Leaf{bare, ann.key}), NoName)
	old := client(ann)
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	if _, err := shake(t, server, []string{"admin"}, old); err == nil {
		t.Error("TLS 1.2 is taken")
	}
	if _, err := server.check(tls.ConnectionState{Version: tls.VersionTLS12}, x509.ExtKeyUsageClientAuth, nil); !strings.Contains(err.Error(), string(OldTLS)) {
		t.Errorf("TLS 1.2: %v", err)
	}
	if name := server.Name(); name.String() != "west/sidecar/vra-1" {
		t.Errorf("we are %v", name)
	}
	if leaf, ca := server.Ends(); !leaf.Equal(now.Add(LeafLife)) || !ca.Equal(now.Add(CALife)) {
		t.Errorf("ends %v, %v", leaf, ca)
	}
}

// TestTrustBothWays: the end that dials looks as closely.
func TestTrustBothWays(t *testing.T) {
	ca := newCA(t, "west")
	sidecar, ann := trust(t, ca, issue(t, ca, "sidecar", "vra-1"), now), trust(t, ca, issue(t, ca, "admin", "ann"), now)
	impostor := trust(t, ca, issue(t, ca, "monitor", "mon"), now)
	if name, err := shake(t, sidecar, []string{"admin"}, ann.Client("sidecar")); err != nil || name.ID != "ann" {
		t.Errorf("%v, %v", name, err)
	}
	near, far := net.Pipe()
	defer near.Close()
	go drain(tls.Server(near, impostor.Server("admin")))
	defer far.Close()
	if err := tls.Client(far, ann.Client("sidecar")).HandshakeContext(t.Context()); err == nil || !strings.Contains(err.Error(), string(WrongRole)) {
		t.Errorf("a monitor that listens: %v", err)
	}
	for id, want := range map[string]string{"vra-1": "", "": "", "vra-2": string(OtherID)} {
		near, far := net.Pipe()
		defer near.Close()
		go drain(tls.Server(near, sidecar.Server("admin")))
		defer far.Close()
		if err := tls.Client(far, ann.ClientOf("sidecar", id)).HandshakeContext(t.Context()); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("who dials %q: %v, want %q", id, err, want)
		}
	}
}

func TestNewTrustRefuses(t *testing.T) {
	ca := newCA(t, "west")
	for what, leaf := range map[string]tls.Certificate{
		"another site's": issue(t, newCA(t, "east"), "sidecar", "a").TLS(),
		"another CA's":   issue(t, newCA(t, "west"), "sidecar", "a").TLS(),
		"none":           {},
		"no name":        (&Leaf{ca.cert, ca.key}).TLS(),
	} {
		if _, err := NewTrust(ca.Certificate(), leaf, nil); err == nil {
			t.Errorf("%s is taken as our own", what)
		}
	}
	if _, err := NewTrust(issue(t, ca, "sidecar", "a").cert, issue(t, ca, "sidecar", "a").TLS(), nil); err == nil {
		t.Error("a leaf is taken as a CA")
	}
}

func TestLoadTrust(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	ca, err := NewCA("west", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := ca.IssueAt(Identity{"sidecar", "vra-1"}, Hosts{"127.0.0.1", "vra-1.example"}, time.Now(), LeafLife)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(ca.Save(at("ca.pem"), at("ca-key.pem")), leaf.Save(at("cert.pem"), at("key.pem"))); err != nil {
		t.Fatal(err)
	}
	if tr, err := LoadTrust(at("ca.pem"), at("cert.pem"), at("key.pem")); err != nil || tr.Name().Role != "sidecar" {
		t.Errorf("%v, %v", tr, err)
	}
	if err := leaf.cert.VerifyHostname("vra-1.example"); err != nil {
		t.Error(err)
	}
	if err := leaf.cert.VerifyHostname("127.0.0.1"); err != nil {
		t.Error(err)
	}
	for _, bad := range [][3]string{{"none", "cert.pem", "key.pem"}, {"ca.pem", "none", "key.pem"}, {"ca.pem", "cert.pem", "none"}, {"ca.pem", "cert.pem", "ca-key.pem"}, {"cert.pem", "cert.pem", "key.pem"}} {
		if _, err := LoadTrust(at(bad[0]), at(bad[1]), at(bad[2])); err == nil {
			t.Errorf("%v load", bad)
		}
	}
}

func FuzzNameOf(f *testing.F) {
	f.Add("holdfast://west/vra/vra-1")
	f.Add("holdfast://west/vra/vra-1/more")
	f.Add("https://west/vra/vra-1?x#y")
	f.Fuzz(func(t *testing.T, text string) {
		u, err := url.Parse(text)
		if err != nil {
			return
		}
		name, err := NameOf(&x509.Certificate{URIs: []*url.URL{u}})
		if err == nil && "holdfast://"+name.String() != u.String() {
			t.Errorf("%q is read as %v", text, name)
		}
	})
}
