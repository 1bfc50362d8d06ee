package sidecar

import (
	"archive/tar"
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"path"
	"path/filepath"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/version"
)

// Bounds of a support bundle: bytes of one log, of a configuration file, and of the audit.
const (
	bundleLog    = 8 << 20
	bundleConfig = 1 << 20
	bundleAudit  = 1 << 20
)

// bundler makes support bundles.
type bundler struct {
	vra     *vra
	metrics *metrics
	logs    []config.SidecarLog
	configs []string
	audit   func() (files []string, err error) // the oldest first
	now     func() time.Time
}

// Manifest is the last file of a bundle: what is in it, and what is not and why.
type Manifest struct {
	Made    time.Time       `json:"made"`
	Sidecar version.Version `json:"sidecar"`
	Files   []ManifestFile  `json:"files"`
	Missing []MissingFile   `json:"missing"`
}

// ManifestFile is a file of a bundle.
type ManifestFile struct {
	Name    string `json:"name"`
	Bytes   int64  `json:"bytes"`
	SHA256  string `json:"sha256"`
	Removed int    `json:"removed"` // places at which something that looks like a secret was taken out
	Cut     bool   `json:"cut"`     // older lines were left out
}

// MissingFile is what should be in a bundle and could not be had.
type MissingFile struct {
	Name string `json:"name"`
	Why  string `json:"why"`
}

// archive is a bundle that is being written.
type archive struct {
	*tar.Writer
	Manifest
}

// write makes a bundle of what was logged from then on, and gives it in pieces. Each file is held in memory while
// it is written, so that its size can stand before it.
func (b *bundler) write(ctx context.Context, from time.Time, give func([]byte) error) error {
	out := bufio.NewWriterSize(giver(give), pieceBytes)
	a := &archive{Writer: tar.NewWriter(out)}
	a.Made, a.Sidecar, a.Files, a.Missing = b.now().UTC(), version.Read(), []ManifestFile{}, []MissingFile{}
	steps := []func() error{
		func() error { return b.addStatus(ctx, a) },
		func() error { return b.addMetrics(ctx, a) },
	}
	for _, f := range b.configs {
		steps = append(steps, func() error { return b.addConfig(a, f) })
	}
	for _, l := range b.logs {
		steps = append(steps, func() error {
			return b.addLog(ctx, a, path.Join("logs", l.Name+".log"), rotated(l.Path), logQuery{from: from, bytes: bundleLog})
		})
	}
	steps = append(steps, func() error {
		files, err := b.audit()
		if err != nil {
			return a.miss(auditName, err)
		}
		return b.addLog(ctx, a, auditName, files, logQuery{bytes: bundleAudit, scan: bundleAudit})
	}, func() error {
		text, err := json.MarshalIndent(a.Manifest, "", "  ")
		if err != nil {
			return err
		}
		return a.add("manifest.json", append(text, '\n'), 0, false)
	})
	for _, step := range steps {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := step(); err != nil {
			return err
		}
	}
	if err := a.Close(); err != nil {
		return err
	}
	return out.Flush()
}

// giver makes a function a writer. What it is given is lent until it returns.
type giver func([]byte) error

func (g giver) Write(p []byte) (int, error) {
	if err := g(bytes.Clone(p)); err != nil {
		return 0, err
	}
	return len(p), nil
}

// add writes a file that was cleaned already.
func (a *archive) add(name string, text []byte, removed int, cut bool) error {
	sum := sha256.Sum256(text)
	a.Files = append(a.Files, ManifestFile{Name: name, Bytes: int64(len(text)), SHA256: hex.EncodeToString(sum[:]), Removed: removed, Cut: cut})
	if err := a.WriteHeader(&tar.Header{Name: name, Mode: 0o600, Size: int64(len(text)), ModTime: a.Made, Format: tar.FormatPAX}); err != nil {
		return err
	}
	_, err := a.Write(text)
	return err
}

func (a *archive) miss(name string, err error) error {
	a.Missing = append(a.Missing, MissingFile{name, problem(err)})
	return nil
}

func (b *bundler) addStatus(ctx context.Context, a *archive) error {
	const name = "status.json"
	asking, cancel := context.WithTimeout(ctx, lookWait)
	defer cancel()
	res, err := api.All(asking, &holdfastv1.StatusServiceGetRequest{}, b.vra.Status.Get)
	if err != nil {
		return a.miss(name, b.vra.explain(ctx, err))
	}
	text, err := api.StatusJSON(res)
	if err != nil {
		return a.miss(name, err)
	}
	return a.clean(name, string(text))
}

func (b *bundler) addMetrics(ctx context.Context, a *archive) error {
	const name = "metrics.txt"
	var text bytes.Buffer
	up := 1
	if err := b.vra.copyMetrics(ctx, &text); err != nil {
		text.Reset()
		up = 0
	}
	b.metrics.append(&text, up)
	return a.clean(name, text.String())
}

// addConfig adds a file of a daemon. Two of one name in different folders are told apart by a number.
func (b *bundler) addConfig(a *archive, file string) error {
	name := path.Join("configs", filepath.Base(file))
	for n := 2; ; n++ {
		taken := false
		for _, f := range a.Files {
			taken = taken || f.Name == name
		}
		if !taken {
			break
		}
		name = path.Join("configs", fmt.Sprintf("%d-%s", n, filepath.Base(file)))
	}
	f, err := openFile(file)
	if err != nil {
		return a.miss(name, err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, bundleConfig))
	if err != nil {
		return a.miss(name, err)
	}
	return a.clean(name, string(text))
}

func (b *bundler) addLog(ctx context.Context, a *archive, name string, files []string, q logQuery) error {
	if len(files) == 0 {
		return a.miss(name, syscall.ENOENT)
	}
	found, _, err := readFiles(ctx, files, "", q)
	if ctx.Err() != nil {
		return ctx.Err()
	} else if err != nil {
		return a.miss(name, err)
	}
	clean := found.clean
	var text bytes.Buffer
	for _, line := range found.kept {
		text.WriteString(clean.line(line))
		text.WriteByte('\n')
	}
	return a.add(name, text.Bytes(), clean.count, found.above)
}

// clean adds a text without what looks like a secret.
func (a *archive) clean(name, text string) error {
	var r redactor
	text = r.text(text)
	return a.add(name, []byte(text), r.count, false)
}
