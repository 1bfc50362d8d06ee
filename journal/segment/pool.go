package segment

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strings"
	"sync"

	"github.com/holdfast-dr/holdfast/ioengine"
)

// Pool keeps files of dropped segments for use again, for all logs of a store: a
// recycled file has its space already, so that commits to it change no metadata. What
// it holds it may lose: a file is in it whole or not, and none is needed.
//
// A file is given out only once its new name in the pool is durable, so that no crash
// brings back the old name beside what is written under the next one. All methods may
// be called concurrently.
type Pool struct {
	fs    ioengine.FS
	dir   string
	limit int

	mu struct {
		sync.Mutex
		next uint64  // for the name of the next file
		free []spare // oldest first
		came []spare // their names are not known to be durable
	}
}

// spare is a file of the pool.
type spare struct {
	name string
	size int64
}

const spareSuffix = ".spare"

// OpenPool opens the pool of at most limit files in dir, which it makes when absent;
// dir is on the file system of the logs, so that a file can be renamed into them.
func OpenPool(fsys ioengine.FS, dir string, limit int) (*Pool, error) {
	p := &Pool{fs: fsys, dir: dir, limit: limit}
	if err := p.load(); err != nil {
		return nil, fmt.Errorf("spare segments: %w", err)
	}
	return p, nil
}

func (p *Pool) load() error {
	if err := p.fs.Mkdir(p.dir); err != nil {
		return err
	}
	names, err := p.fs.List(p.dir)
	if err != nil {
		return err
	}
	for _, name := range names {
		if !strings.HasSuffix(name, spareSuffix) {
			continue
		}
		name = path.Join(p.dir, name)
		size, err := p.sizeOf(name)
		if err == nil && len(p.mu.came) < p.limit {
			p.mu.came = append(p.mu.came, spare{name, size})
			continue
		}
		if err := p.fs.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	if len(names) > 0 {
		// Names of this life are not those of an earlier one.
		if _, err := fmt.Sscanf(path.Base(names[len(names)-1]), "%d", &p.mu.next); err == nil {
			p.mu.next++
		}
	}
	return p.settle()
}

func (p *Pool) sizeOf(name string) (int64, error) {
	file, err := p.fs.Open(name, ioengine.ReadOnly)
	if err != nil {
		return 0, err
	}
	size, err := file.Size()
	return size, errors.Join(err, file.Close())
}

// keeper is a file system that has files which can only be read: those that lie in stripes.
type keeper interface{ Reusable(name string) bool }

// receive takes a file of at least least bytes into the pool, if there is room. It is
// given out after the next settle. The caller makes sure that nobody has it open.
func (p *Pool) receive(name string, least int64) (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.mu.free)+len(p.mu.came) >= p.limit {
		return false, nil
	}
	if k, ok := p.fs.(keeper); ok && !k.Reusable(name) {
		return false, nil
	}
	size, err := p.sizeOf(name)
	if err != nil || size < least {
		return false, err
	}
	to := path.Join(p.dir, fmt.Sprintf("%016d%s", p.mu.next, spareSuffix))
	p.mu.next++
	if err := p.fs.Rename(name, to); err != nil {
		return false, err
	}
	p.mu.came = append(p.mu.came, spare{to, size})
	return true, nil
}

// settle makes the names of the files that came durable.
func (p *Pool) settle() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.mu.came) == 0 {
		return nil
	}
	if err := p.fs.SyncDir(p.dir); err != nil {
		return err
	}
	p.mu.free, p.mu.came = append(p.mu.free, p.mu.came...), nil
	return nil
}

// take renames a file of at least least bytes to name; false when there is none.
func (p *Pool) take(name string, least int64) (bool, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, s := range p.mu.free {
		if s.size < least {
			continue
		}
		err := p.fs.Rename(s.name, name)
		if err == nil || errors.Is(err, fs.ErrNotExist) {
			p.mu.free = append(p.mu.free[:i], p.mu.free[i+1:]...)
		}
		return err == nil, err
	}
	return false, nil
}

// Shrink removes files until at most n are left and returns how many bytes that gave back.
func (p *Pool) Shrink(n int) (freed int64, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.mu.free)+len(p.mu.came) > max(n, 0) {
		from := &p.mu.free
		if len(*from) == 0 {
			from = &p.mu.came
		}
		s := (*from)[0]
		if err := p.fs.Remove(s.name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return freed, fmt.Errorf("spare segments: %w", err)
		}
		*from = (*from)[1:]
		freed += s.size
	}
	return freed, nil
}

// Spare returns how many files the pool holds, and their bytes.
func (p *Pool) Spare() (files int, bytes int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, list := range [][]spare{p.mu.free, p.mu.came} {
		files += len(list)
		for _, s := range list {
			bytes += s.size
		}
	}
	return files, bytes
}
