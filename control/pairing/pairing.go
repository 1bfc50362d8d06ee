// Package pairing makes the keys by which sites come to trust each other: a CA
// born at each site, and leaf certificates that say who in that site holds them.
//
// A leaf names its holder by one URI, holdfast://site/role/id, and is good for
// either end of a connection; a CA names its site by holdfast://site/ca and signs
// leaves only. A site pins the CA of each other site for that site alone, so a CA
// can vouch for nobody elsewhere. Site, role and id are [a-z0-9][a-z0-9._-]{0,62}.
// Two sites come to pin each other by a join: a token that one of them made, good once
// and for minutes, carries the fingerprint of its CA to the other (see join.go).
// Keys are ECDSA P-256, files are PEM, and a key's file is readable by its owner
// only. Nothing here is safe for concurrent use on one file.
package pairing

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Lifetimes. A leaf is to be renewed at two thirds of its life.
const (
	CALife   = 10 * 365 * 24 * time.Hour
	LeafLife = 30 * 24 * time.Hour
)

// skew is how far apart the clocks of two sites may be when a certificate is new.
const skew = time.Hour

// CA signs for one site.
type CA struct {
	site string
	cert *x509.Certificate
	key  crypto.Signer
}

// NewCA makes the CA of a site, valid for CALife from an hour before now.
func NewCA(site string, now time.Time) (*CA, error) {
	if !validName(site) {
		return nil, fmt.Errorf("site %q is no name", site)
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: "Holdfast CA of " + site},
		URIs:                  []*url.URL{{Scheme: "holdfast", Host: site, Path: "/ca"}},
		NotBefore:             now.Add(-skew),
		NotAfter:              now.Add(CALife),
		KeyUsage:              x509.KeyUsageCertSign,
		BasicConstraintsValid: true,
		IsCA:                  true,
		MaxPathLenZero:        true, // of leaves only
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	cert, err := sign(template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	return &CA{site, cert, key}, nil
}

// Site is whom the CA signs for.
func (ca *CA) Site() string { return ca.site }

// Certificate is what peers pin; it must not be changed.
func (ca *CA) Certificate() *x509.Certificate { return ca.cert }

// CertPEM is the same as a file holds it.
func (ca *CA) CertPEM() []byte { return certPEM(ca.cert.Raw) }

// Identity is whom a leaf is for, within the CA's site.
type Identity struct{ Role, ID string }

// Hosts are the names and addresses at which the holder of a leaf is found, for clients that look at
// these alone, as curl does. Ours look at the URI.
type Hosts []string

// Leaf is a certificate with its key.
type Leaf struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// Issue makes a leaf that is valid for life from an hour before now.
func (ca *CA) Issue(who Identity, now time.Time, life time.Duration) (*Leaf, error) {
	return ca.IssueAt(who, nil, now, life)
}

// IssueAt makes one whose holder is found at some hosts.
func (ca *CA) IssueAt(who Identity, at Hosts, now time.Time, life time.Duration) (*Leaf, error) {
	if (!validName(who.Role) || !validName(who.ID)) && !invariant.Planted("control/pairing/any-name") {
		return nil, fmt.Errorf("role %q and id %q are no names", who.Role, who.ID)
	}
	end := now.Add(life)
	if life <= 0 || end.After(ca.cert.NotAfter) {
		return nil, fmt.Errorf("a life of %v, until %v, is beyond that of the CA", life, end.UTC().Format(time.DateOnly))
	}
	if invariant.Planted("control/pairing/eternal") {
		end = ca.cert.NotAfter
	}
	serial, err := newSerial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{CommonName: who.ID},
		URIs:                  []*url.URL{{Scheme: "holdfast", Host: ca.site, Path: "/" + who.Role + "/" + who.ID}},
		NotBefore:             now.Add(-skew),
		NotAfter:              end,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true,
	}
	for _, host := range at {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	cert, err := sign(template, ca.cert, key.Public(), ca.key)
	if err != nil {
		return nil, err
	}
	return &Leaf{cert, key}, nil
}

// Certificate is the leaf without its key; it must not be changed.
func (l *Leaf) Certificate() *x509.Certificate { return l.cert }

// TLS is the leaf as crypto/tls wants it.
func (l *Leaf) TLS() tls.Certificate {
	return tls.Certificate{Certificate: [][]byte{l.cert.Raw}, PrivateKey: l.key, Leaf: l.cert}
}

func sign(template, parent *x509.Certificate, public crypto.PublicKey, key crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, key)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// newSerial is 127 random bits: no counter to keep, none to guess.
func newSerial() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
}

// siteOf reads which site a CA's certificate is for.
func siteOf(cert *x509.Certificate) (string, error) {
	if !cert.IsCA || len(cert.URIs) != 1 {
		return "", errors.New("not the CA of a site")
	}
	site, ok := strings.CutSuffix(strings.TrimPrefix(cert.URIs[0].String(), "holdfast://"), "/ca")
	if !ok || !validName(site) {
		return "", fmt.Errorf("%q does not name a site's CA", cert.URIs[0])
	}
	return site, nil
}

// validName says whether s may name a site, a role or an id.
func validName(s string) bool {
	if s == "" || len(s) > 63 {
		return false
	}
	for i, c := range []byte(s) {
		letter := 'a' <= c && c <= 'z' || '0' <= c && c <= '9'
		if !letter && (i == 0 || c != '.' && c != '_' && c != '-') {
			return false
		}
	}
	return true
}
