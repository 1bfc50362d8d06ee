package faultdisk

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// Sites are the places in the code from which operations of disks were called, and those
// of them where a fault made the call return an error. A test that fails each operation by
// its number proves nothing of a place it never came to: AfterTests names those, and the
// places that were never made to fail.
type Sites struct {
	mu   sync.Mutex
	by   map[stack]*site // who called, resolved once a stack
	seen map[siteKey]*site
}

// stack is deep enough for all of this package; unwinding is what recording costs.
type stack [8]uintptr

// wrapped is how deep a caller may be under a test's own wrappers.
const wrapped = 32

// siteKey is where a call stands, as both a stack and the source tell it.
type siteKey struct {
	folder, file string // base names
	line         int
	op           string // the method of ioengine.FS or ioengine.File
}

type site struct {
	function        string
	reached, failed int
}

var recording atomic.Pointer[Sites]

// RecordSites returns the sites of all operations of all disks of this process from now
// on, or none of them when AfterTests will not ask: unwinding stacks takes a good part of the
// time of such tests. It is for the TestMain of a package.
func RecordSites() *Sites {
	s := newSites()
	if !flag.Parsed() {
		flag.Parse()
	}
	if asked() {
		recording.Store(s)
	}
	return s
}

func newSites() *Sites { return &Sites{by: map[stack]*site{}, seen: map[siteKey]*site{}} }

// asked says whether all tests are run, in their long form.
func asked() bool {
	for _, some := range []string{"test.run", "test.skip", "test.fuzz", "test.bench", "test.list"} {
		if f := flag.Lookup(some); f != nil && f.Value.String() != "" {
			return false
		}
	}
	f := flag.Lookup("test.short")
	return f == nil || f.Value.String() != "true"
}

// record notes who called the disk, and whether a fault fails it.
func (s *Sites) record(failed bool) {
	var pcs stack
	runtime.Callers(2, pcs[:])
	s.mu.Lock()
	defer s.mu.Unlock()
	at, known := s.by[pcs]
	if !known {
		key, function, found := callerOf(pcs[:])
		if !found {
			var all [wrapped]uintptr
			key, function, found = callerOf(all[:runtime.Callers(2, all[:])])
		} else {
			defer func() { s.by[pcs] = at }()
		}
		if found {
			if at = s.seen[key]; at == nil {
				at = &site{function: function}
				s.seen[key] = at
			}
		}
	}
	if at == nil {
		return // a test's own call
	}
	at.reached++
	if failed {
		at.failed++
	}
}

// callerOf finds the first caller that is neither this package nor a test, and the method
// by which it came to the disk.
func callerOf(pcs []uintptr) (at siteKey, function string, found bool) {
	frames := runtime.CallersFrames(pcs)
	for {
		f, more := frames.Next()
		switch {
		case f.PC == 0:
			return at, "", false
		case strings.Contains(f.Function, "/ioengine/faultdisk.") && !strings.HasSuffix(f.File, "_test.go"):
			at.op = f.Function[strings.LastIndexByte(f.Function, '.')+1:]
		case strings.HasSuffix(f.File, "_test.go"):
			if op := f.Function[strings.LastIndexByte(f.Function, '.')+1:]; !slices.Contains(operations, op) {
				return at, "", false // a test's own call, and no wrapper's
			}
		default:
			at.folder, at.file, at.line = filepath.Base(filepath.Dir(f.File)), filepath.Base(f.File), f.Line
			return at, f.Function[strings.LastIndexByte(f.Function, '/')+1:], true
		}
		if !more {
			return at, "", false
		}
	}
}

// operations are the methods of ioengine.FS and ioengine.File that count as such.
var operations = []string{"Open", "Rename", "Remove", "Mkdir", "List", "SyncDir", "SyncFiles", "Lock", "Free",
	"ReadAt", "WriteAt", "WriteStart", "WriteParts", "Sync", "Allocate", "Zero", "NextData", "Truncate", "Size"}

// excusesFile names the calls that the package's tests need not come to or fail, a line
// each: the function, the call, and why.
const excusesFile = "testdata/sites.txt"

// AfterTests returns the exit status of a TestMain whose tests ended with code. When all
// of them were asked for and passed, every call site of the disk interface in the package
// must have been reached and have failed, but those that testdata/sites.txt excuses; and
// what is excused must need it.
func (s *Sites) AfterTests(code int) int {
	if code != 0 || !asked() {
		return code
	}
	if err := s.gate("."); err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

// gate is AfterTests for the package in dir.
func (s *Sites) gate(dir string) error {
	calls, err := callsIn(dir)
	if err != nil {
		return err
	}
	excused, err := excuses(filepath.Join(dir, excusesFile))
	if err != nil {
		return err
	}
	found := s.judge(calls, excused)
	for what := range excused {
		found.idle = append(found.idle, what)
	}
	slices.Sort(found.idle)
	err = errors.Join(
		list("no test came to %d of %d call sites of the disk interface", found.missed, found.all),
		list("no test made %d of %d call sites of the disk interface fail", found.unfailed, found.all),
		list("%d lines of "+excusesFile+" excuse what needs none, of %d call sites", found.idle, found.all))
	if err == nil && os.Getenv("HOLDFAST_SITES") != "" {
		fmt.Printf("%d call sites of the disk interface, each reached and failed, but %d\n", found.all, found.excused)
	}
	return err
}

func list(format string, what []string, all int) error {
	if len(what) == 0 {
		return nil
	}
	return fmt.Errorf(format+":\n\t%s", len(what), all, strings.Join(what, "\n\t"))
}

// verdict is what a gate found, as "file.go:12 Function w.file.Sync".
type verdict struct {
	all, excused           int
	missed, unfailed, idle []string
}

// judge holds the calls of the source against what was seen. What the run found and the
// source did not show, as a call through a narrower interface, is held to the same. It
// takes from excused what was needed.
func (s *Sites) judge(calls []callSite, excused map[string]bool) (v verdict) {
	s.mu.Lock()
	defer s.mu.Unlock()
	inSource, used := map[siteKey]bool{}, map[string]bool{}
	for _, c := range calls {
		inSource[c.siteKey] = true
	}
	for key, at := range s.seen {
		if len(calls) > 0 && key.folder == calls[0].folder && !inSource[key] {
			calls = append(calls, callSite{key, at.function[strings.LastIndexByte(at.function, '.')+1:], key.op})
		}
	}
	for _, c := range calls {
		v.all++
		at := s.seen[c.siteKey]
		if at != nil && at.failed > 0 {
			continue
		}
		name := c.function + " " + c.text
		switch {
		case excused[name]:
			used[name] = true
			v.excused++
		case at == nil:
			v.missed = append(v.missed, c.String())
		default:
			v.unfailed = append(v.unfailed, c.String())
		}
	}
	for name := range used {
		delete(excused, name)
	}
	slices.Sort(v.missed)
	slices.Sort(v.unfailed)
	return v
}

// excuses reads a list of "function call why".
func excuses(name string) (map[string]bool, error) {
	text, err := os.ReadFile(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	m := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		if w := strings.Fields(line); len(w) > 2 {
			m[w[0]+" "+w[1]] = true
		}
	}
	return m, nil
}
