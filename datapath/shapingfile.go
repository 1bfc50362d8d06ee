package datapath

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/holdfast-dr/holdfast/wire/shape"
)

// shapingFile is a gate.Keeper: it keeps the policy that a user set; until one is set, the configuration's holds.
type shapingFile struct {
	name       string
	configured atomic.Pointer[shape.Policy]
}

// newShapingFile keeps in the file of that name what is set.
func newShapingFile(name string, configured shape.Policy) *shapingFile {
	f := &shapingFile{name: name}
	f.Configure(configured)
	return f
}

// Configure implements gate.Keeper.
func (f *shapingFile) Configure(p shape.Policy) { f.configured.Store(&p) }

// Get says too whether the policy was set.
func (f *shapingFile) Get() (p shape.Policy, own bool, err error) {
	b, err := os.ReadFile(f.name)
	if errors.Is(err, os.ErrNotExist) {
		return f.Configured(), false, nil
	}
	if err != nil {
		return p, false, err
	}
	if p, err = shape.ParsePolicy(b); err != nil {
		return p, false, fmt.Errorf("%s: %w; without the file, what the configuration says holds", f.name, err)
	}
	return p, true, nil
}

// Put makes p durable.
func (f *shapingFile) Put(p shape.Policy) error { return writeDurably(f.name, p.AppendTo(nil)) }

// Clear goes back to the configuration's, durably.
func (f *shapingFile) Clear() error {
	if err := os.Remove(f.name); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return syncFolderOf(f.name)
}

// Configured implements gate.Keeper.
func (f *shapingFile) Configured() shape.Policy { return *f.configured.Load() }

// LoadZone finds a time zone; the empty name is the machine's.
func LoadZone(name string) (*time.Location, error) {
	if name == "" {
		return time.Local, nil
	}
	loc, err := time.LoadLocation(name)
	if err != nil {
		return nil, fmt.Errorf("time zone %q: not known on this machine: %w", name, shape.ErrPolicy)
	}
	return loc, nil
}
