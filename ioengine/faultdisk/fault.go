package faultdisk

import "io/fs"

// Op is a set of operations.
type Op uint16

// The operations. OpCreate is an Open that makes a file, OpOpen one that does not;
// OpRead is also List, Size, NextData and Free.
const (
	OpCreate Op = 1 << iota
	OpWrite
	OpSync
	OpAllocate
	OpZero
	OpTruncate
	OpRename
	OpRemove
	OpMkdir
	OpSyncDir
	OpRead
	OpOpen

	OpMutating = OpCreate | OpWrite | OpSync | OpAllocate | OpZero | OpTruncate | OpRename | OpRemove | OpMkdir | OpSyncDir
	OpAny      = OpMutating | OpRead | OpOpen
)

// Fault makes operations fail, or lie.
type Fault struct {
	Ops  Op                     // which operations count; 0: OpMutating
	Only func(name string) bool // which files and folders count, by the name they were opened with; nil: all
	Once *OncePerSite           // until it acts, only calls from places that were not found yet count; nil: from all
	At   int                    // the At-th that counts from now on, from 1; 0 is 1
	Ever bool                   // and all after it

	// Err is returned, wrapped in an *fs.PathError; the operation has no effect. A
	// Sync that fails loses what was unsynced (see the package). With a nil Err the
	// operation does what the fields below say and succeeds.
	Err   error
	Short bool            // a write that fails leaves its first half, a read returns it
	Lose  bool            // a write leaves nothing, a Sync or SyncDir makes nothing durable
	Shift int64           // a write lands so many bytes from its place
	Stall <-chan struct{} // the operation waits until this is closed
}

type armed struct {
	Fault
	seen int
}

// Inject arms a fault. When several match, the one armed first acts.
func (d *Disk) Inject(f Fault) {
	if f.Ops == 0 {
		f.Ops = OpMutating
	}
	f.At = max(f.At, 1)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.faults = append(d.mu.faults, &armed{Fault: f})
}

// Heal disarms all faults. What they did stays.
func (d *Disk) Heal() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mu.faults = nil
}

// Ops returns how many mutating operations there were, failed ones too.
func (d *Disk) Ops() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.mu.ops
}

// OnOp has hook called at every mutating operation from now on, nil at none: when
// the operation's effect is there and not yet returned from, but before a Sync or
// SyncDir has had any. The hook may call everything, except that its own
// mutating operations call no hook; nor do those that others begin while it runs. OnOp
// waits for a hook that is running, so that it has ended for good: it is not for hooks.
func (d *Disk) OnOp(hook func(op Op, name string)) {
	for {
		d.mu.Lock()
		running := d.mu.hooking
		if running == nil {
			d.mu.hook = hook
		}
		d.mu.Unlock()
		if running == nil {
			return
		}
		<-running
	}
}

// begin counts an operation, waits if it is to stall, and returns what is to go wrong.
func (d *Disk) begin(op Op, name string) Fault {
	hit := d.count(op, name)
	if hit.Stall != nil {
		<-hit.Stall
	}
	return hit
}

// count is begin without the wait.
func (d *Disk) count(op Op, name string) Fault {
	d.mu.Lock()
	if op&OpMutating != 0 {
		d.mu.ops++
	}
	var hit Fault
	for _, a := range d.mu.faults {
		if a.Ops&op == 0 || a.Only != nil && !a.Only(name) || a.Once != nil && a.seen < a.At && !a.Once.first() {
			continue
		}
		a.seen++
		if hit.Ops == 0 && (a.seen == a.At || a.Ever && a.seen > a.At) {
			hit = a.Fault
		}
	}
	d.mu.Unlock()
	if s := recording.Load(); s != nil {
		s.record(hit.Err != nil)
	}
	return hit
}

func (d *Disk) callHook(op Op, name string) {
	if op&OpMutating == 0 {
		return
	}
	d.mu.Lock()
	hook := d.mu.hook
	if hook == nil {
		d.mu.Unlock()
		return
	}
	ended := make(chan struct{})
	d.mu.hook, d.mu.hooking = nil, ended
	d.mu.Unlock()
	defer func() { // also when the hook ends the test
		d.mu.Lock()
		d.mu.hook, d.mu.hooking = hook, nil
		d.mu.Unlock()
		close(ended)
	}()
	hook(op, name)
}

// call does one operation: counted, failing when it must, hooked.
func call[T any](d *Disk, op Op, verb, name string, effect func() (T, error)) (T, error) {
	var none T
	fault := d.begin(op, name)
	isSync := op&(OpSync|OpSyncDir) != 0
	if isSync {
		d.callHook(op, name)
	}
	result, err := none, fault.Err
	if err == nil && !(isSync && fault.Lose) {
		d.mu.Lock()
		result, err = effect()
		d.mu.Unlock()
	}
	if !isSync {
		d.callHook(op, name)
	}
	if err != nil {
		return none, &fs.PathError{Op: verb, Path: name, Err: err}
	}
	return result, nil
}

func (d *Disk) do(op Op, verb, name string, effect func() error) error {
	_, err := call(d, op, verb, name, func() (struct{}, error) { return struct{}{}, effect() })
	return err
}
