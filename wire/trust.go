package wire

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Pin is a peer site's CA, trusted for that site alone. While a site changes its
// CA it has two pins.
type Pin struct {
	Site string
	CA   *x509.Certificate
}

// Credentials are who we are and whom we talk to.
type Credentials struct {
	Certificate tls.Certificate
	Pins        []Pin
	// Now is the clock certificates are judged by; nil is time.Now.
	Now func() time.Time
}

// LoadCredentials reads our certificate with its key, and the CA of each peer
// site: a PEM file with one certificate whose URI, holdfast://site/ca, names the site.
func LoadCredentials(certFile, keyFile string, peerCAs ...string) (Credentials, error) {
	cert, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return Credentials{}, fmt.Errorf("own certificate %s: %w", certFile, err)
	}
	c := Credentials{Certificate: cert}
	if _, err := peerOf(cert.Leaf); err != nil {
		return Credentials{}, fmt.Errorf("own certificate %s: %w", certFile, err)
	}
	for _, name := range peerCAs {
		pemBytes, err := os.ReadFile(name)
		if err != nil {
			return Credentials{}, fmt.Errorf("CA of a peer site: %w", err)
		}
		pin, err := parsePin(pemBytes)
		if err != nil {
			return Credentials{}, fmt.Errorf("CA of a peer site %s: %w", name, err)
		}
		c.Pins = append(c.Pins, pin)
	}
	return c, nil
}

// Self is whom our own certificate names.
func (c *Credentials) Self() (Peer, error) { return peerOf(c.Certificate.Leaf) }

func parsePin(pemBytes []byte) (Pin, error) {
	block, rest := pem.Decode(pemBytes)
	if block == nil || block.Type != "CERTIFICATE" {
		return Pin{}, errors.New("no PEM certificate")
	}
	if next, _ := pem.Decode(rest); next != nil {
		return Pin{}, errors.New("more than one PEM block: one file pins one CA")
	}
	ca, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return Pin{}, err
	}
	if !ca.IsCA || len(ca.URIs) != 1 {
		return Pin{}, errors.New("not the CA of a site")
	}
	site, ok := strings.CutSuffix(strings.TrimPrefix(ca.URIs[0].String(), "holdfast://"), "/ca")
	if !ok || !validName(site) || ca.URIs[0].String() != "holdfast://"+site+"/ca" {
		return Pin{}, fmt.Errorf("%q does not name a site's CA", ca.URIs[0])
	}
	return Pin{site, ca}, nil
}

// peerOf reads who a certificate is for: its one URI name.
func peerOf(cert *x509.Certificate) (Peer, error) {
	if cert == nil || len(cert.URIs) != 1 {
		return Peer{}, errors.New("certificate without exactly one URI name")
	}
	return parsePeer(cert.URIs[0])
}

func parsePeer(u *url.URL) (Peer, error) {
	role, id, _ := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	p := Peer{Site: u.Host, Role: Role(role), ID: id}
	// The comparison leaves no other way to write the same name.
	if !validName(p.Site) || !validName(role) || !validName(id) || u.String() != p.URI() {
		return Peer{}, fmt.Errorf("certificate name %.100q is none of ours", u.String())
	}
	return p, nil
}

// refusal is why a connection was not taken.
type refusal struct {
	reason Reason
	err    error
}

func (r *refusal) Error() string { return r.err.Error() }
func (r *refusal) Unwrap() error { return r.err }

// untrusted is a refusal for what is in, or not in, the peer's certificate.
func untrusted(reason Reason, format string, args ...any) error {
	return &refusal{reason, fmt.Errorf("%w: %w", ErrUntrusted, fmt.Errorf(format, args...))}
}

// config is the TLS of one end. The check of the peer is ours alone, in
// VerifyConnection: our names are URIs, which crypto/tls does not match, and its
// pool of roots would be common to all sites. usage is what the peer's
// certificate must be good for; want, where set, is the only peer to accept.
func (c *Credentials) config(usage x509.ExtKeyUsage, want Peer) *tls.Config {
	return &tls.Config{
		MinVersion:                  tls.VersionTLS13,
		Certificates:                []tls.Certificate{c.Certificate},
		ClientAuth:                  tls.RequestClientCert, // its absence is VerifyConnection's to refuse
		InsecureSkipVerify:          true,                  // see above
		VerifyConnection:            func(cs tls.ConnectionState) error { return c.verify(cs, usage, want) },
		Time:                        c.Now,
		SessionTicketsDisabled:      true, // each connection shows its whole chain
		DynamicRecordSizingDisabled: true, // records of 16 KiB from the first byte
	}
}

func (c *Credentials) verify(cs tls.ConnectionState, usage x509.ExtKeyUsage, want Peer) error {
	if cs.Version != tls.VersionTLS13 {
		return &refusal{ReasonTLS, errors.New("not TLS 1.3")}
	}
	if len(cs.PeerCertificates) == 0 {
		return untrusted(ReasonNoCert, "no certificate")
	}
	leaf := cs.PeerCertificates[0]
	peer, err := peerOf(leaf)
	if err != nil {
		return untrusted(ReasonName, "%w", err)
	}
	if err := c.verifyChain(peer, cs.PeerCertificates, usage); err != nil {
		return err
	}
	if peer.Role != RoleVRA && !invariant.Planted("wire/any-role") {
		return untrusted(ReasonRole, "%v is not a %s", peer, RoleVRA)
	}
	if want != (Peer{}) && peer != want {
		return untrusted(ReasonName, "%v is not %v", peer, want)
	}
	return nil
}

// verifyChain holds the peer to the CA pinned for the site it says it is from.
func (c *Credentials) verifyChain(peer Peer, certs []*x509.Certificate, usage x509.ExtKeyUsage) error {
	options := x509.VerifyOptions{
		Roots:         x509.NewCertPool(),
		Intermediates: x509.NewCertPool(),
		KeyUsages:     []x509.ExtKeyUsage{usage},
		CurrentTime:   time.Now(),
	}
	if c.Now != nil {
		options.CurrentTime = c.Now()
	}
	pinned := false
	for _, pin := range c.Pins {
		if pin.Site == peer.Site || invariant.Planted("wire/common-pool") {
			options.Roots.AddCert(pin.CA)
			pinned = true
		}
	}
	if !pinned {
		return untrusted(ReasonSite, "no CA is pinned for site %s", peer.Site)
	}
	for _, cert := range certs[1:] {
		options.Intermediates.AddCert(cert)
	}
	if _, err := certs[0].Verify(options); err != nil {
		var invalid x509.CertificateInvalidError
		if errors.As(err, &invalid) && invalid.Reason == x509.Expired {
			return untrusted(ReasonExpired, "%v: %w", peer, err)
		}
		return untrusted(ReasonCA, "%v: %w", peer, err)
	}
	return nil
}

// validate says what makes the credentials useless.
func (c *Credentials) validate() error {
	if len(c.Certificate.Certificate) == 0 {
		return errors.New("no certificate of our own")
	}
	if len(c.Pins) == 0 {
		return errors.New("no peer site's CA")
	}
	for _, pin := range c.Pins {
		if pin.CA == nil || !validName(pin.Site) {
			return fmt.Errorf("pin of site %q", pin.Site)
		}
	}
	return nil
}
