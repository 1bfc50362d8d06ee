package failover

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/hypervisor"
	"github.com/holdfast-dr/holdfast/control/recovery"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Names in a job's folder.
const (
	eventsName   = "events"
	cancelName   = "cancel"
	machinesName = "machines"
)

// ErrBusy says that another process carries the job out.
var ErrBusy = errors.New("another process carries it out")

// Job is a job that this process carries out. It is for one goroutine.
type Job struct {
	Dir     string
	Plan    *recovery.Plan
	State   recovery.State
	entries []recovery.Entry
	events  *os.File // locked
}

// maxJobs is how many ids are tried for a new job.
const maxJobs = 1 << 20

// Create makes a job of a plan, whose ID it gives out.
func Create(folder string, p *recovery.Plan, first recovery.Entry) (*Job, error) {
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, err
	}
	names, err := jobs(folder)
	if err != nil {
		return nil, err
	}
	next := 1
	for _, n := range names {
		next = max(next, n+1)
	}
	for ; next < maxJobs; next++ {
		p.ID = "r" + strconv.Itoa(next)
		dir := filepath.Join(folder, p.ID)
		err := os.Mkdir(dir, 0o700)
		if errors.Is(err, fs.ErrExist) {
			continue // another command was quicker
		}
		if err != nil {
			return nil, err
		}
		j := &Job{Dir: dir, Plan: p, State: recovery.Fresh()}
		if j.events, err = lock(filepath.Join(dir, eventsName), os.O_CREATE); err != nil {
			return nil, err
		}
		first.Plan = p
		if err := errors.Join(j.write(first), syncDir(dir), syncDir(folder)); err != nil {
			return nil, errors.Join(err, j.Close())
		}
		return j, nil
	}
	return nil, fmt.Errorf("%s is full of jobs: move some away", folder)
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// jobs are the numbers of those in the folder, oldest first. A job without a first entry never was.
func jobs(folder string) (list []int, err error) {
	all, err := os.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	for _, e := range all {
		digits, ok := strings.CutPrefix(e.Name(), "r")
		if n, err := strconv.Atoi(digits); ok && err == nil && n > 0 && "r"+strconv.Itoa(n) == e.Name() {
			list = append(list, n)
		}
	}
	slices.Sort(list)
	return list, err
}

// IDs are the jobs of a folder, oldest first.
func IDs(folder string) ([]string, error) {
	numbers, err := jobs(folder)
	var ids []string
	for _, n := range numbers {
		id := "r" + strconv.Itoa(n)
		if info, err := os.Stat(filepath.Join(folder, id, eventsName)); err == nil && info.Size() > 0 {
			ids = append(ids, id)
		}
	}
	return ids, err
}

// lock opens a job's events for this process alone.
func lock(path string, more int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDWR|more, 0o600)
	if err != nil {
		return nil, err
	}
	err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
	if err != nil && !invariant.Planted("failover/two-runners") {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, ErrBusy
		}
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

// unlock gives back what lock gave. A child of this process that has not come as far as its own program yet has the file too: closed
// alone it would stay locked until then.
func unlock(f *os.File) error {
	return errors.Join(syscall.Flock(int(f.Fd()), syscall.LOCK_UN), f.Close())
}

// folderOf is a job's folder; ids come from users.
func folderOf(folder, id string) (string, error) {
	ids, err := IDs(folder)
	if err != nil {
		return "", err
	}
	if !slices.Contains(ids, id) {
		return "", fmt.Errorf("no job %q: see holdfast failover list", id)
	}
	return filepath.Join(folder, id), nil
}

// Open opens a job to carry it on.
func Open(folder, id string) (*Job, error) {
	dir, err := folderOf(folder, id)
	if err != nil {
		return nil, err
	}
	j := &Job{Dir: dir}
	if j.events, err = lock(filepath.Join(dir, eventsName), 0); err != nil {
		return nil, fmt.Errorf("job %s: %w", id, err)
	}
	if err = j.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("job %s: %w", id, err), j.Close())
	}
	return j, nil
}

// load reads the entries, and cuts a line off that was not written whole.
func (j *Job) load() error {
	text, err := io.ReadAll(j.events)
	if err != nil {
		return err
	}
	whole := bytes.LastIndexByte(text, '\n') + 1
	if j.entries, err = parse(text[:whole]); err != nil {
		return err
	}
	if j.Plan, j.State, err = recovery.Replay(j.entries); err != nil {
		return err
	}
	if whole < len(text) {
		err = errors.Join(j.events.Truncate(int64(whole)), j.events.Sync())
	}
	_, serr := j.events.Seek(int64(whole), io.SeekStart)
	return errors.Join(err, serr)
}

func parse(text []byte) (entries []recovery.Entry, err error) {
	for line := range bytes.Lines(text) {
		var e recovery.Entry
		if err := json.Unmarshal(line, &e); err != nil {
			return nil, fmt.Errorf("line %d of its events: %w", len(entries)+1, err)
		}
		entries = append(entries, e)
	}
	return entries, nil
}

// Read reads the entries of a job, whoever carries it out, and says whether somebody does.
func Read(folder, id string) (entries []recovery.Entry, busy bool, err error) {
	dir, err := folderOf(folder, id)
	if err != nil {
		return nil, false, err
	}
	path := filepath.Join(dir, eventsName)
	if f, err := lock(path, 0); err == nil {
		unlock(f)
	} else if busy = errors.Is(err, ErrBusy); !busy {
		return nil, false, err
	}
	text, err := os.ReadFile(path)
	if err == nil {
		entries, err = parse(text[:bytes.LastIndexByte(text, '\n')+1])
	}
	if err != nil {
		err = fmt.Errorf("job %s: %w", id, err)
	}
	return entries, busy, err
}

// write adds an entry and makes it durable.
func (j *Job) write(e recovery.Entry) error {
	line, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if _, err := j.events.Write(append(line, '\n')); err != nil {
		return err
	}
	if err := j.events.Sync(); err != nil {
		return err
	}
	j.entries = append(j.entries, e)
	return nil
}

// happened writes an event down; then it counts.
func (j *Job) happened(e recovery.Entry) error {
	next, err := j.Plan.Step(j.State, e.Event)
	if err != nil {
		return err
	}
	if err := j.write(e); err != nil {
		return err
	}
	j.State = next
	return nil
}

// Untouched says that no step of the job was begun.
func (j *Job) Untouched() bool {
	return !slices.ContainsFunc(j.entries, func(e recovery.Entry) bool { return e.Began != nil })
}

// Close lets go of the job.
func (j *Job) Close() error { return unlock(j.events) }

func (j *Job) asked() bool {
	_, err := os.Stat(filepath.Join(j.Dir, cancelName))
	return err == nil
}

// Remove removes a job that is over, with all that lies beside it. A half removed one is no job any more.
func Remove(folder, id string) error {
	j, err := Open(folder, id)
	if err != nil {
		return err
	}
	defer j.Close()
	if j.State.Phase != recovery.Over && !invariant.Planted("failover/removes-any") {
		return fmt.Errorf("job %s is not over: it is %s", id, j.State.Phase)
	}
	gone := filepath.Join(folder, removedPrefix+id)
	if err := errors.Join(os.RemoveAll(gone), os.Rename(j.Dir, gone), syncDir(folder)); err != nil {
		return err
	}
	return os.RemoveAll(gone)
}

// removedPrefix begins the name of what is left of a job whose removal was cut short.
const removedPrefix = ".removed-"

// EndMachines ends the machines of all jobs of a folder, as a power cut would; with forget, they are known no more either. One that does not end
// keeps no other from it; the error tells of all of those.
func EndMachines(ctx context.Context, folder string, open func(config.Hypervisor, string) (hypervisor.Hypervisor, error), forget bool) error {
	dirs, err := filepath.Glob(filepath.Join(folder, "r*", machinesName, "*"))
	errs := []error{err}
	for _, dir := range dirs {
		if err := endMachine(ctx, folder, dir, open, forget); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", dir, err))
		}
	}
	return errors.Join(errs...)
}

// endMachine ends the machine of one of the folders of a hypervisor.
func endMachine(ctx context.Context, folder, dir string, open func(config.Hypervisor, string) (hypervisor.Hypervisor, error), forget bool) error {
	machines, name := filepath.Dir(dir), filepath.Base(dir)
	entries, _, err := Read(folder, filepath.Base(filepath.Dir(machines)))
	if err != nil {
		return err
	}
	plan, _, err := recovery.Replay(entries)
	if err != nil {
		return err
	}
	h, err := open(plan.Hypervisor, machines)
	if err == nil {
		err = h.Stop(ctx, name, hypervisor.ByForce)
	}
	if err == nil && forget {
		err = h.Undefine(ctx, name)
	}
	return err
}
