// Package testtrust makes two sites that trust each other, for the tests of what
// speaks over the wire: keys in memory, valid for a day, made once a process.
package testtrust

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net/url"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/wire"
)

// Sites returns the credentials of a source and of a target.
func Sites() (source, target wire.Credentials) { return made().source, made().target }

// Second returns those of another VRA of the source's site.
func Second() wire.Credentials { return made().second }

// Source is what one of several source VRAs has: towards the target, and towards the others of its site.
type Source struct{ Target, Site wire.Credentials }

// Sources are several VRAs of the source's site: v1, which is that of Sites, and v2, which is Second.
func Sources() (all []Source) {
	for _, c := range []wire.Credentials{made().source, made().second} {
		all = append(all, Source{c, wire.Credentials{Certificate: c.Certificate, Pins: made().target.Pins}})
	}
	return all
}

var made = sync.OnceValue(func() (m struct{ source, second, target wire.Credentials }) {
	west, westKey := authority("west")
	east, eastKey := authority("east")
	m.source = wire.Credentials{Certificate: leaf("west", "v1", west, westKey), Pins: []wire.Pin{{Site: "east", CA: east}}}
	m.second = wire.Credentials{Certificate: leaf("west", "v2", west, westKey), Pins: m.source.Pins}
	m.target = wire.Credentials{Certificate: leaf("east", "v1", east, eastKey), Pins: []wire.Pin{{Site: "west", CA: west}}}
	return m
})

func authority(site string) (*x509.Certificate, *ecdsa.PrivateKey) {
	t := template("/ca", site)
	t.IsCA, t.BasicConstraintsValid, t.KeyUsage = true, true, x509.KeyUsageCertSign
	cert, key := sign(t, t, nil)
	return cert, key
}

func leaf(site, id string, ca *x509.Certificate, caKey *ecdsa.PrivateKey) tls.Certificate {
	t := template("/vra/"+id, site)
	t.KeyUsage = x509.KeyUsageDigitalSignature
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
	cert, key := sign(t, ca, caKey)
	return tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key, Leaf: cert}
}

func template(path, site string) *x509.Certificate {
	// Good from 1999 to 2099, since a synctest bubble lives in 2000.
	from, to := time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(2099, 1, 1, 0, 0, 0, 0, time.UTC)
	return &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), NotBefore: from, NotAfter: to,
		URIs: []*url.URL{{Scheme: "holdfast", Host: site, Path: path}},
	}
}

func sign(t, parent *x509.Certificate, by *ecdsa.PrivateKey) (*x509.Certificate, *ecdsa.PrivateKey) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		panic(err)
	}
	if by == nil {
		by = key
	}
	der, err := x509.CreateCertificate(rand.Reader, t, parent, key.Public(), by)
	if err != nil {
		panic(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		panic(err)
	}
	return cert, key
}
