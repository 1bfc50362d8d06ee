package pairing

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Name is whom a leaf is for.
type Name struct{ Site, Role, ID string }

// String is the name as people read it.
func (n Name) String() string { return n.Site + "/" + n.Role + "/" + n.ID }

// NameOf reads whom a leaf is for: its one URI.
func NameOf(cert *x509.Certificate) (Name, error) {
	if len(cert.URIs) != 1 {
		return Name{}, fmt.Errorf("it has %d URI names, and one says whom it is for", len(cert.URIs))
	}
	u := cert.URIs[0]
	role, id, _ := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	n := Name{u.Host, role, id}
	// The comparison leaves no other way to write the same name.
	if !validName(n.Site) || !validName(n.Role) || !validName(n.ID) || u.String() != "holdfast://"+n.String() {
		return Name{}, fmt.Errorf("its name %.100q is none of ours", u.String())
	}
	return n, nil
}

// Reason says in a word why a certificate is refused, for logs and metrics.
type Reason string

// The reasons.
const (
	NoCertificate Reason = "no-certificate"
	NoName        Reason = "no-name"    // without a URI of ours
	OtherSite     Reason = "other-site" // it says that it is of a site that is not ours
	WrongCA       Reason = "wrong-ca"   // it says that it is of our site, and our CA did not sign it
	Expired       Reason = "expired"
	NotYet        Reason = "not-yet-valid"
	WrongRole     Reason = "wrong-role"
	OtherID       Reason = "other-id" // it is of our site and of the role, and not who was dialled
	OldTLS        Reason = "old-tls"
)

// Refused is why the other end of a connection is not who it should be.
type Refused struct {
	Reason Reason
	Name   Name // who it says it is; empty when it does not say
	Err    error
}

func (r *Refused) Error() string {
	if r.Name == (Name{}) {
		return fmt.Sprintf("certificate refused (%s): %v", r.Reason, r.Err)
	}
	return fmt.Sprintf("certificate of %s refused (%s): %v", r.Name, r.Reason, r.Err)
}

func (r *Refused) Unwrap() error { return r.Err }

// Trust is one end of connections within a site: our own leaf, and the CA that those at the other end
// have theirs from.
type Trust struct {
	site string
	ca   *x509.Certificate
	leaf tls.Certificate
	name Name
	now  func() time.Time
}

// NewTrust makes one of a leaf of the CA. now is the clock that certificates are judged by; nil is time.Now.
func NewTrust(ca *x509.Certificate, leaf tls.Certificate, now func() time.Time) (*Trust, error) {
	site, err := siteOf(ca)
	if err != nil {
		return nil, err
	}
	if now == nil {
		now = time.Now
	}
	t := &Trust{site: site, ca: ca, leaf: leaf, now: now}
	if leaf.Leaf == nil {
		return nil, errors.New("no certificate of our own")
	}
	if t.name, err = NameOf(leaf.Leaf); err != nil {
		return nil, fmt.Errorf("own certificate: %w", err)
	}
	if t.name.Site != site {
		return nil, fmt.Errorf("own certificate is of the site %s, and the CA of %s", t.name.Site, site)
	}
	if err := leaf.Leaf.CheckSignatureFrom(ca); err != nil {
		return nil, fmt.Errorf("own certificate is not signed by the CA of %s: %w", site, err)
	}
	return t, nil
}

// LoadTrust reads the CA's certificate, and the leaf with its key.
func LoadTrust(caFile, certFile, keyFile string) (*Trust, error) {
	ca, err := loadCert(caFile)
	if err != nil {
		return nil, err
	}
	if _, err := loadKey(keyFile); err != nil { // it may be one that others can read
		return nil, err
	}
	leaf, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, fmt.Errorf("%s and %s: %w", certFile, keyFile, err)
	}
	t, err := NewTrust(ca, leaf, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", certFile, err)
	}
	return t, nil
}

// Name is our own.
func (t *Trust) Name() Name { return t.name }

// Ends is when our own certificate, and the CA's, are no longer good.
func (t *Trust) Ends() (leaf, ca time.Time) { return t.leaf.Leaf.NotAfter, t.ca.NotAfter }

// Server is the TLS of the end that listens: it takes leaves of the site with one of these roles. TLS 1.3 only.
// The errors of its handshakes wrap a *Refused where it is the certificate that is refused.
func (t *Trust) Server(roles ...string) *tls.Config {
	return t.config(x509.ExtKeyUsageClientAuth, roles)
}

// Takes judges a connection as the handshakes of Server do.
func (t *Trust) Takes(cs tls.ConnectionState, roles ...string) error {
	_, err := t.check(cs, x509.ExtKeyUsageClientAuth, roles)
	return err
}

// Client is the TLS of the end that dials: it takes leaves of the site with one of these roles.
func (t *Trust) Client(roles ...string) *tls.Config {
	return t.config(x509.ExtKeyUsageServerAuth, roles)
}

// ClientOf is Client for one whose id is known: no other of its role is taken for it. An empty id takes any.
func (t *Trust) ClientOf(role, id string) *tls.Config {
	c := t.Client(role)
	if id == "" || invariant.Planted("control/pairing/any-id") {
		return c
	}
	verify := c.VerifyConnection
	c.VerifyConnection = func(cs tls.ConnectionState) error {
		if err := verify(cs); err != nil {
			return err
		}
		if name, err := t.Peer(cs); err != nil || name.ID != id {
			return &Refused{OtherID, name, fmt.Errorf("it is not %s/%s/%s: see that the address is the right one", t.site, role, id)}
		}
		return nil
	}
	return c
}

func (t *Trust) config(usage x509.ExtKeyUsage, roles []string) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{t.leaf},
		ClientAuth:             tls.RequestClientCert, // its absence is VerifyConnection's to refuse
		InsecureSkipVerify:     true,                  // our names are URIs, which crypto/tls does not match: VerifyConnection does
		VerifyConnection:       func(cs tls.ConnectionState) error { _, err := t.check(cs, usage, roles); return err },
		Time:                   t.now,
		SessionTicketsDisabled: true, // each connection shows its certificate
	}
}

// Peer is who is at the other end of a connection that Server or Client took.
func (t *Trust) Peer(cs tls.ConnectionState) (Name, error) {
	if len(cs.PeerCertificates) == 0 {
		return Name{}, &Refused{Reason: NoCertificate, Err: errors.New("there is none")}
	}
	return NameOf(cs.PeerCertificates[0])
}

// check is the whole judgement about the other end.
func (t *Trust) check(cs tls.ConnectionState, usage x509.ExtKeyUsage, roles []string) (Name, error) {
	if cs.Version != tls.VersionTLS13 {
		return Name{}, &Refused{Reason: OldTLS, Err: errors.New("not TLS 1.3")}
	}
	if len(cs.PeerCertificates) == 0 {
		return Name{}, &Refused{Reason: NoCertificate, Err: errors.New("there is none")}
	}
	leaf := cs.PeerCertificates[0]
	name, err := NameOf(leaf)
	if err != nil {
		return name, &Refused{Reason: NoName, Err: err}
	}
	if name.Site != t.site {
		return name, &Refused{OtherSite, name, fmt.Errorf("it is of the site %s, and this is %s", name.Site, t.site)}
	}
	roots, now := x509.NewCertPool(), t.now()
	roots.AddCert(t.ca)
	_, err = leaf.Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{usage}, CurrentTime: now})
	if err != nil {
		if r := chainFault(leaf, now, err); r.Reason != Expired || !invariant.Planted("control/pairing/expired") {
			r.Name = name
			return name, r
		}
	}
	if !slices.Contains(roles, name.Role) && !invariant.Planted("control/pairing/any-role") {
		return name, &Refused{WrongRole, name, fmt.Errorf("the role %s has nothing to ask for here", name.Role)}
	}
	return name, nil
}

// chainFault says in our words why a certificate does not verify.
func chainFault(leaf *x509.Certificate, now time.Time, err error) *Refused {
	invalid, ok := errors.AsType[x509.CertificateInvalidError](err)
	switch {
	case !ok || invalid.Reason != x509.Expired:
		return &Refused{Reason: WrongCA, Err: err}
	case now.Before(leaf.NotBefore):
		return &Refused{Reason: NotYet, Err: fmt.Errorf("it is good from %s on", leaf.NotBefore.UTC().Format(time.RFC3339))}
	}
	return &Refused{Reason: Expired, Err: fmt.Errorf("it, or its CA, was good until %s", leaf.NotAfter.UTC().Format(time.RFC3339))}
}
