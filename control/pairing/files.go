package pairing

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Save writes the certificate (0644) and the key (0600). Neither may exist: a CA
// is not overwritten.
func (ca *CA) Save(certFile, keyFile string) error {
	for _, name := range []string{certFile, keyFile} {
		if _, err := os.Lstat(name); !errors.Is(err, fs.ErrNotExist) {
			if err == nil {
				err = &fs.PathError{Op: "save CA", Path: name, Err: fs.ErrExist}
			}
			return err
		}
	}
	return savePair(certFile, ca.cert, keyFile, ca.key)
}

// Save writes the certificate (0644) and the key (0600), each replacing an older
// file as a whole: the key first, so that a crash between leaves a pair that does
// not load, never a certificate with a key that is somebody else's.
func (l *Leaf) Save(certFile, keyFile string) error {
	return savePair(certFile, l.cert, keyFile, l.key)
}

// LoadCA reads a CA that Save wrote.
func LoadCA(certFile, keyFile string) (*CA, error) {
	cert, err := loadCert(certFile)
	if err != nil {
		return nil, err
	}
	site, err := siteOf(cert)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", certFile, err)
	}
	key, err := loadKey(keyFile)
	if err != nil {
		return nil, err
	}
	if public, ok := cert.PublicKey.(*ecdsa.PublicKey); !ok || !public.Equal(key.Public()) {
		return nil, fmt.Errorf("%s is not the key of %s", keyFile, certFile)
	}
	return &CA{site, cert, key}, nil
}

// SavePEM writes a certificate as it is given to peers (0644), replacing an older file.
func SavePEM(name string, certPEM []byte) error { return replace(name, certPEM, 0o644) }

func savePair(certFile string, cert *x509.Certificate, keyFile string, key crypto.Signer) error {
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	mode := fs.FileMode(0o600)
	if invariant.Planted("control/pairing/open-key") {
		mode = 0o644
	}
	// Both are whole on disk before either gets its name: a full disk changes nothing.
	newKey, err := write(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), mode)
	if err != nil {
		return err
	}
	newCert, err := write(certFile, certPEM(cert.Raw), 0o644)
	if err != nil {
		os.Remove(newKey)
		return err
	}
	if err := rename(newKey, keyFile); err != nil {
		os.Remove(newCert)
		return err
	}
	return rename(newCert, certFile)
}

func certPEM(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func loadCert(name string) (*x509.Certificate, error) {
	der, err := loadPEM(name, "CERTIFICATE")
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return cert, nil
}

// loadKey refuses a key that others may read: then it is no secret any more.
func loadKey(name string) (crypto.Signer, error) {
	info, err := os.Stat(name)
	if err != nil {
		return nil, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s: mode %v lets others read the key: make it 0600", name, info.Mode().Perm())
	}
	der, err := loadPEM(name, "PRIVATE KEY")
	if err != nil {
		return nil, err
	}
	key, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	signer, ok := key.(*ecdsa.PrivateKey)
	if !ok {
		return nil, fmt.Errorf("%s: not an ECDSA key", name)
	}
	return signer, nil
}

func loadPEM(name, kind string) ([]byte, error) {
	p, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	block, rest := pem.Decode(p)
	if block == nil || block.Type != kind || len(rest) > 0 {
		return nil, fmt.Errorf("%s: not one PEM block of type %s", name, kind)
	}
	return block.Bytes, nil
}

// replace makes the file whole or not at all.
func replace(name string, p []byte, mode fs.FileMode) error {
	temp, err := write(name, p, mode)
	if err != nil {
		return err
	}
	return rename(temp, name)
}

// write puts p, synced, into a new file beside name.
func write(name string, p []byte, mode fs.FileMode) (temp string, err error) {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*") // 0600 from birth
	if err != nil {
		return "", err
	}
	_, err = f.Write(p)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err != nil {
		os.Remove(f.Name())
		return "", err
	}
	return f.Name(), nil
}

// rename gives temp its name, durably; after an error it is gone.
func rename(temp, name string) error {
	if err := os.Rename(temp, name); err != nil {
		os.Remove(temp)
		return err
	}
	dir, err := os.Open(filepath.Dir(name))
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}
