// Package pairing makes the keys by which sites come to trust each other: a CA
// born at each site, and leaf certificates that say who in that site holds them.
//
// A leaf names its holder by one URI, holdfast://site/role/id; a CA names its site
// by holdfast://site/ca. A site pins the CA of each other site for that site
// alone, so a CA can vouch for nobody elsewhere. Keys are ECDSA P-256, files are
// PEM, and a key's file is readable by its owner only. Nothing here is safe for
// concurrent use on one folder.
package pairing

import (
	"crypto/tls"
	"errors"
	"time"
)

// Lifetimes. A leaf is to be renewed at two thirds of its life.
const (
	CALife   = 10 * 365 * 24 * time.Hour
	LeafLife = 30 * 24 * time.Hour
)

var errNotBuilt = errors.New("pairing: not built yet")

// CA signs for one site.
type CA struct{}

// NewCA makes the CA of a site, valid from just before now.
func NewCA(site string, now time.Time) (*CA, error) { return nil, errNotBuilt }

// LoadCA reads a CA that Save wrote.
func LoadCA(certFile, keyFile string) (*CA, error) { return nil, errNotBuilt }

// Save writes the certificate (0644) and the key (0600). Neither may exist.
func (ca *CA) Save(certFile, keyFile string) error { return errNotBuilt }

// Site is whom the CA signs for.
func (ca *CA) Site() string { return "" }

// CertPEM is the certificate to give to peers.
func (ca *CA) CertPEM() []byte { return nil }

// Identity is whom a leaf is for, within the CA's site.
type Identity struct{ Role, ID string }

// Leaf is a certificate with its key.
type Leaf struct{}

// Issue makes a leaf that lives for life from just before now.
func (ca *CA) Issue(who Identity, now time.Time, life time.Duration) (*Leaf, error) {
	return nil, errNotBuilt
}

// Save writes the certificate (0644) and the key (0600), replacing older ones atomically, the key first.
func (l *Leaf) Save(certFile, keyFile string) error { return errNotBuilt }

// TLS is the leaf as crypto/tls wants it.
func (l *Leaf) TLS() tls.Certificate { return tls.Certificate{} }
