package datapath

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/datapath/front/nbd"
	"github.com/holdfast-dr/holdfast/journal"
	"github.com/holdfast-dr/holdfast/journal/view"
)

// maxViews bounds the views open at once: each may hold scratch and a socket.
const maxViews = 64

// views are the images that a target shows. Each has one unix socket of its own in
// the run directory, on which every volume is an export under its name.
type views struct {
	dir string
	log *slog.Logger

	mu struct {
		sync.Mutex
		open map[string]*openView
		last int // number of the last one opened
	}
}

type openView struct {
	number     int
	id         string
	group      string
	checkpoint uint64
	opened     time.Time
	volumes    []view.Volume
	socket     string

	view *view.View
	stop context.CancelFunc
	done chan struct{}
}

// errTooMany is the refusal of one view more.
var errTooMany = fmt.Errorf("%d views are open", maxViews)

func newViews(runDir string, log *slog.Logger) (*views, error) {
	v := &views{dir: filepath.Join(runDir, "views"), log: log}
	v.mu.open = make(map[string]*openView)
	if err := os.RemoveAll(v.dir); err != nil { // sockets of a process that is gone
		return nil, err
	}
	return v, os.MkdirAll(v.dir, 0o700)
}

// show opens a view and serves it.
func (vs *views) show(g *journal.Group, number uint64, readOnly bool) (*openView, error) {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	if len(vs.mu.open) >= maxViews {
		return nil, errTooMany
	}
	v, err := g.OpenView(number, journal.ViewOptions{Options: view.Options{Scratch: !readOnly}})
	if err != nil {
		return nil, err
	}
	vs.mu.last++
	o := &openView{
		number: vs.mu.last, id: "v" + strconv.Itoa(vs.mu.last), group: g.Info().Name, checkpoint: number, opened: time.Now(),
		volumes: v.Volumes(), view: v, done: make(chan struct{}),
	}
	o.socket = filepath.Join(vs.dir, o.id)
	if err := vs.serve(o); err != nil {
		return nil, errors.Join(err, v.Close())
	}
	vs.mu.open[o.id] = o
	vs.log.Info("view opened", "view", o.id, "group", o.group, "checkpoint", number)
	return o, nil
}

func (vs *views) serve(o *openView) error {
	server := &nbd.Server{Log: vs.log}
	for _, v := range o.volumes {
		d, ok := o.view.Device(v.ID)
		if !ok {
			return fmt.Errorf("volume %s is not in the view", v.Name)
		}
		about := fmt.Sprintf("%s of group %s at checkpoint %d", v.Name, o.group, o.checkpoint)
		if err := server.Add(nbd.Export{Name: v.Name, Device: viewDevice{d}, Description: about}); err != nil {
			return err
		}
	}
	l, err := net.Listen("unix", o.socket)
	if err != nil {
		return err
	}
	if err := os.Chmod(o.socket, 0o600); err != nil {
		return errors.Join(err, l.Close())
	}
	ctx, stop := context.WithCancel(context.Background())
	o.stop = stop
	go func() {
		defer close(o.done)
		if err := server.Serve(ctx, l); err != nil {
			vs.log.Error("view is not served any more", "view", o.id, "error", err)
		}
	}()
	return nil
}

// uri is where a volume of the view is found.
func (o *openView) uri(volume string) string {
	return nbd.URI{Network: "unix", Address: o.socket, Export: volume}.String()
}

// list returns the views of a group, of all for the empty name, oldest first.
func (vs *views) list(group string) (all []*openView) {
	vs.mu.Lock()
	defer vs.mu.Unlock()
	for _, o := range vs.mu.open {
		if group == "" || o.group == group {
			all = append(all, o)
		}
	}
	slices.SortFunc(all, func(a, b *openView) int { return a.number - b.number })
	return all
}

// close ends a view and drops its scratch; false when there is none of that id.
func (vs *views) close(id string) (bool, error) {
	vs.mu.Lock()
	o := vs.mu.open[id]
	delete(vs.mu.open, id)
	vs.mu.Unlock()
	if o == nil {
		return false, nil
	}
	o.stop()
	<-o.done
	err := errors.Join(o.view.Close(), remove(o.socket))
	vs.log.Info("view closed", "view", id)
	return true, err
}

// remove removes a file that may be gone already.
func remove(name string) error {
	if err := os.Remove(name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func (vs *views) closeAll() {
	for _, o := range vs.list("") {
		if _, err := vs.close(o.id); err != nil {
			vs.log.Warn("view closed badly", "view", o.id, "error", err)
		}
	}
}
