// Package drive runs a lab through the user's command, as a person would: it knows
// the arguments and the JSON of `holdfast`, and nothing behind them. The end-to-end
// tests and the capacity runs stand on it.
package drive

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/bench/load"
	"github.com/holdfast-dr/holdfast/datapath/front/nbd"
)

// Build compiles the commands of the module at root into dir, under the build tags.
func Build(ctx context.Context, root, dir, tags string) error {
	cmd := exec.CommandContext(ctx, "go", "build", "-tags", tags, "-o", dir, "./cmd/...")
	cmd.Dir = root
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build: %w\n%s", err, out)
	}
	return nil
}

// Lab is one running lab.
type Lab struct {
	Dir     string
	Context string
	Group   string
	Volumes []Volume

	bin string // of holdfast
	env []string
}

// Volume is a disk as `lab up` and `view open` tell of it; Size is in bytes and not told for views.
type Volume struct {
	Name string `json:"name"`
	Size int64  `json:"size"`
	NBD  string `json:"nbd"`
	// VhostUser is the socket of its vhost-user-blk device; of views those have one that take writes.
	VhostUser string `json:"vhost_user"`
}

// Up starts a lab in dir with the binaries in bin; env is added to its environment.
// The caller ends it with Down, also after an error.
func Up(ctx context.Context, bin, dir string, env []string, args ...string) (*Lab, error) {
	l := &Lab{Dir: dir, bin: filepath.Join(bin, "holdfast"), env: env}
	var made struct {
		Context string   `json:"context"`
		Group   string   `json:"group"`
		Volumes []Volume `json:"volumes"`
	}
	err := l.JSON(ctx, &made, append([]string{"lab", "up", "--dir", dir}, args...)...)
	l.Context, l.Group, l.Volumes = made.Context, made.Group, made.Volumes
	return l, err
}

// Down stops the lab and deletes what it made.
func (l *Lab) Down() error {
	_, err := l.Run(context.Background(), "lab", "down", "--dir", l.Dir, "--purge")
	return err
}

// Run runs one command of holdfast and returns its standard output.
func (l *Lab) Run(ctx context.Context, args ...string) ([]byte, error) {
	ctx, stop := context.WithTimeout(ctx, 3*time.Minute)
	defer stop()
	cmd := exec.CommandContext(ctx, l.bin, args...)
	cmd.Env = append(append(os.Environ(), l.env...), "HOLDFAST_CONTEXT="+l.Context)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("holdfast %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return out.Bytes(), nil
}

// JSON runs one command with -o json and decodes what it printed into v, unless v is nil.
func (l *Lab) JSON(ctx context.Context, v any, args ...string) error {
	out, err := l.Run(ctx, append(args, "-o", "json")...)
	if err != nil || v == nil {
		return err
	}
	if err := json.Unmarshal(out, v); err != nil {
		return fmt.Errorf("holdfast %s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

// Status is what `holdfast status` tells of the lab's group.
type Status struct {
	State       string   `json:"state"`
	Reason      string   `json:"reason"`
	LagSeconds  *float64 `json:"lag_seconds"`
	BytesBehind *int64   `json:"bytes_behind"`
	Checkpoints *int     `json:"checkpoints"`
}

// Status asks for the state of the group.
func (l *Lab) Status(ctx context.Context) (Status, error) {
	var s struct{ Groups []Status }
	if err := l.JSON(ctx, &s, "status"); err != nil {
		return Status{}, err
	}
	if len(s.Groups) != 1 {
		return Status{}, fmt.Errorf("status tells of %d groups", len(s.Groups))
	}
	return s.Groups[0], nil
}

// Await asks for the status until ok, for at most the time given.
func (l *Lab) Await(ctx context.Context, limit time.Duration, what string, ok func(Status) bool) error {
	ctx, stop := context.WithTimeout(ctx, limit)
	defer stop()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		s, err := l.Status(ctx)
		if err == nil && ok(s) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not %s within %v: status %+v, %v", what, limit, s, err)
		case <-tick.C:
		}
	}
}

// Protected waits until the group is protected.
func (l *Lab) Protected(ctx context.Context) error {
	return l.Await(ctx, time.Minute, "protected", func(s Status) bool { return s.State == "protected" })
}

// Checkpoint is one line of `checkpoint list`.
type Checkpoint struct {
	ID    string  `json:"id"`
	Time  string  `json:"time"`
	Tag   *string `json:"tag"`
	State string  `json:"state"`
}

// Checkpoints lists them, oldest first.
func (l *Lab) Checkpoints(ctx context.Context) (all []Checkpoint, err error) {
	return all, l.JSON(ctx, &all, "checkpoint", "list")
}

// Checkpoint makes one with the tag and returns once it is listed.
func (l *Lab) Checkpoint(ctx context.Context, tag string) (c Checkpoint, err error) {
	return c, l.JSON(ctx, &c, "checkpoint", "create", "--tag", tag)
}

// View is an open view.
type View struct {
	ID         string   `json:"id"`
	Checkpoint string   `json:"checkpoint"`
	Volumes    []Volume `json:"volumes"`
}

// Open opens the checkpoint; Close ends the view.
func (l *Lab) Open(ctx context.Context, checkpoint string) (v View, err error) {
	return v, l.JSON(ctx, &v, "view", "open", "--checkpoint", checkpoint)
}

// Close closes the view.
func (l *Lab) Close(ctx context.Context, v View) error {
	return l.JSON(ctx, nil, "view", "close", v.ID)
}

// Link is the lab's link: a rate, none, down or up.
func (l *Lab) Link(ctx context.Context, to string) error {
	return l.JSON(ctx, nil, "lab", "link", to, "--dir", l.Dir)
}

// Machinery is what `lab status` tells of processes and link.
type Machinery struct {
	Processes []struct {
		Name string `json:"name"`
		PID  int    `json:"pid"`
	} `json:"processes"`
	Link struct {
		Sent int64 `json:"source_to_target_bytes"`
	} `json:"link"`
	// Supervisor is the process that keeps the others up, and is the link.
	Supervisor int `json:"supervisor"`
}

// Machinery asks for it.
func (l *Lab) Machinery(ctx context.Context) (m Machinery, err error) {
	return m, l.JSON(ctx, &m, "lab", "status", "--dir", l.Dir)
}

// PID returns the process of that name: vra-filter, vra-source or vra-target.
func (l *Lab) PID(ctx context.Context, name string) (int, error) {
	m, err := l.Machinery(ctx)
	if err != nil {
		return 0, err
	}
	for _, p := range m.Processes {
		if p.Name == name && p.PID > 0 {
			return p.PID, nil
		}
	}
	return 0, fmt.Errorf("lab status tells of no process %s: %+v", name, m)
}

// Kill ends a process of the lab with SIGKILL.
func (l *Lab) Kill(ctx context.Context, name string) error {
	pid, err := l.PID(ctx, name)
	if err != nil {
		return err
	}
	p, err := os.FindProcess(pid)
	if err != nil {
		return err
	}
	return p.Kill()
}

// Stamper returns a workload over the first n volumes.
func (l *Lab) Stamper(n int, p load.Profile, workers int, corpus []byte, h *load.History) *load.Stamper {
	s := &load.Stamper{Profile: p, Workers: workers, Seed: 42, Corpus: corpus, History: h}
	for _, v := range l.Volumes[:n] {
		s.Volumes = append(s.Volumes, load.Volume{Size: v.Size, Dial: func(ctx context.Context) (load.Disk, error) {
			c, err := nbd.Dial(ctx, v.NBD)
			if err != nil {
				return nil, err
			}
			return c, nil
		}})
	}
	return s
}

// Compare opens the checkpoint and holds its first n volumes against the history
// (see load.Check).
func (l *Lab) Compare(ctx context.Context, checkpoint string, n int, h *load.History, corpus []byte, whole bool) (load.Verdict, error) {
	v, err := l.Open(ctx, checkpoint)
	if err != nil {
		return load.Verdict{}, err
	}
	defer l.Close(ctx, v)
	var images []load.Image
	for i := range n {
		c, err := nbd.Dial(ctx, v.Volumes[i].NBD)
		if err != nil {
			return load.Verdict{}, err
		}
		defer c.Close()
		if c.Size() != l.Volumes[i].Size {
			return load.Verdict{}, fmt.Errorf("%s at checkpoint %s has %d bytes, its disk has %d", l.Volumes[i].Name, checkpoint, c.Size(), l.Volumes[i].Size)
		}
		images = append(images, load.Image{Reader: c, Size: c.Size()})
	}
	return load.Check(h, corpus, images, whole)
}
