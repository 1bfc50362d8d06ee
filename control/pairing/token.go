package pairing

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/base32"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Token lets one site join another, once and soon. Whoever has it can pair with the
// site that made it: it is handed over as a password is. Its text is
//
//	hfj1- and in base32: expires u32 (s since 1970), secret [16], fingerprint [32], site
type Token struct {
	Site        string // that made it
	Expires     time.Time
	fingerprint [sha256.Size]byte // of that site's CA
	secret      [secretBytes]byte
}

const (
	tokenPrefix = "hfj1-"
	secretBytes = 16
	tokenBytes  = 4 + secretBytes + sha256.Size // and the site
)

// Lives of tokens.
const (
	DefaultTokenLife = 15 * time.Minute
	MaxTokenLife     = time.Hour
)

var tokenText = base32.StdEncoding.WithPadding(base32.NoPadding)

func newToken(ca *CA, expires time.Time) Token {
	t := Token{Site: ca.site, Expires: time.Unix(expires.Unix(), 0), fingerprint: fingerprintOf(ca.cert)}
	rand.Read(t.secret[:])
	return t
}

func fingerprintOf(cert *x509.Certificate) [sha256.Size]byte { return sha256.Sum256(cert.Raw) }

// Text is the token as users carry it; it is a secret.
func (t Token) Text() string {
	p := binary.BigEndian.AppendUint32(nil, uint32(t.Expires.Unix()))
	p = append(p, t.secret[:]...)
	p = append(p, t.fingerprint[:]...)
	return tokenPrefix + strings.ToLower(tokenText.EncodeToString(append(p, t.Site...)))
}

// String keeps the secret out of logs and whatever else is printed.
func (t Token) String() string { return "pairing token of " + t.Site }

// GoString does the same.
func (t Token) GoString() string { return t.String() }

// ErrToken is a text that is no token.
var ErrToken = errors.New("no pairing token: it begins with " + tokenPrefix + ", and was copied whole")

// ParseToken reads what Text wrote.
func ParseToken(text string) (Token, error) {
	text, ok := strings.CutPrefix(strings.TrimSpace(text), tokenPrefix)
	if !ok || len(text) > 256 {
		return Token{}, ErrToken
	}
	p, err := tokenText.DecodeString(strings.ToUpper(text))
	if err != nil || len(p) < tokenBytes {
		return Token{}, ErrToken
	}
	t := Token{Expires: time.Unix(int64(binary.BigEndian.Uint32(p)), 0), Site: string(p[tokenBytes:])}
	copy(t.secret[:], p[4:])
	copy(t.fingerprint[:], p[4+secretBytes:])
	if !validName(t.Site) || t.Text() != tokenPrefix+text {
		return Token{}, ErrToken
	}
	return t, nil
}

// id names a token without giving it away.
func (t Token) id() (id [8]byte) {
	sum := sha256.Sum256(append([]byte("holdfast token id"), t.secret[:]...))
	copy(id[:], sum[:])
	return id
}

// proof shows to whoever has the token that the sender has it too. channel is of this
// very TLS connection, so a proof is worth nothing on another.
func (t Token) proof(who string, channel []byte) [sha256.Size]byte {
	m := hmac.New(sha256.New, t.secret[:])
	m.Write([]byte("holdfast join, " + who + "\x00"))
	m.Write(channel)
	return [sha256.Size]byte(m.Sum(nil))
}

func sameProof(a, b [sha256.Size]byte) bool { return subtle.ConstantTimeCompare(a[:], b[:]) == 1 }

var errOurs = errors.New("a site does not join itself")

func errExpired(at time.Time) error {
	return fmt.Errorf("the token expired at %s: make a new one", at.UTC().Format(time.RFC3339))
}
