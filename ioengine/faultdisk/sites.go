package faultdisk

import (
	"errors"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
)

// Sites are the places in the code from which operations of disks were called. A test
// that fails each operation by its number proves nothing of a place it never came to:
// Missed names those. With failedOnly a site counts when a fault made it return an error.
type Sites struct {
	failedOnly bool

	mu  sync.Mutex
	hit map[string]int // by folder, file and line
}

// failedEnv, when set, has RecordSites count failures alone: what a package's tests have
// still to make fail.
const failedEnv = "HOLDFAST_FAILED_SITES"

var recording atomic.Pointer[Sites]

// RecordSites returns the sites of all operations of all disks of this process from now
// on. It is for the TestMain of a package.
func RecordSites() *Sites {
	s := &Sites{hit: map[string]int{}, failedOnly: os.Getenv(failedEnv) != ""}
	recording.Store(s)
	return s
}

// record notes who called the disk: the first that is neither this package nor a test.
func (s *Sites) record() {
	var pcs [24]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(2, pcs[:])])
	for {
		f, more := frames.Next()
		inTest := strings.HasSuffix(f.File, "_test.go")
		if !inTest && !strings.Contains(f.Function, "/ioengine/faultdisk.") {
			s.mu.Lock()
			s.hit[siteOf(f.File, f.Line)]++
			s.mu.Unlock()
			return
		}
		if !more {
			return
		}
	}
}

func siteOf(file string, line int) string {
	return fmt.Sprintf("%s/%s:%d", filepath.Base(filepath.Dir(file)), filepath.Base(file), line)
}

// operations are the methods of ioengine.FS and ioengine.File that count as such.
var operations = []string{"Open", "Rename", "Remove", "Mkdir", "List", "SyncDir", "SyncFiles", "Lock", "Free",
	"ReadAt", "WriteAt", "WriteStart", "Sync", "Allocate", "Zero", "NextData", "Truncate", "Size"}

// AfterTests returns the exit status of a TestMain whose tests ended with code: when all
// of them were asked for and passed, every call site of the package must have been hit
// but those of the functions that testdata/sites.txt names, a line each: the function, the
// call it is about, and why.
func (s *Sites) AfterTests(code int, receiver *regexp.Regexp) int {
	for _, some := range []string{"test.run", "test.skip", "test.fuzz", "test.bench", "test.list"} {
		if f := flag.Lookup(some); f != nil && f.Value.String() != "" {
			return code
		}
	}
	if f := flag.Lookup("test.short"); code != 0 || f != nil && f.Value.String() == "true" {
		return code
	}
	if err := s.unknown(".", receiver); err != nil {
		fmt.Println(err)
		return 1
	}
	return 0
}

func (s *Sites) unknown(dir string, receiver *regexp.Regexp) error {
	missed, all, err := s.Missed(dir, receiver)
	if err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(dir, "testdata", "sites.txt"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	known := map[string]bool{}
	for line := range strings.Lines(string(text)) {
		if w := strings.Fields(line); len(w) > 2 {
			known[w[0]+" "+w[1]] = true
		}
	}
	missed = slices.DeleteFunc(missed, func(s string) bool { // by function: lines move
		_, what, _ := strings.Cut(s, " ")
		return known[what]
	})
	if len(missed) > 0 {
		return fmt.Errorf("no test came to %d of %d call sites of the disk interface:\n\t%s", len(missed), all, strings.Join(missed, "\n\t"))
	}
	return nil
}

// Missed returns the call sites of the disk interface in the package in dir that were
// never hit, as "file.go:12 Function w.file.Sync". A call is one of the interface when
// what stands before its name matches receiver: the package says by which names it
// calls its files and file systems.
func (s *Sites) Missed(dir string, receiver *regexp.Regexp) (missed []string, all int, err error) {
	if dir, err = filepath.Abs(dir); err != nil {
		return nil, 0, err
	}
	set := token.NewFileSet()
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(set, name, nil, 0)
		if err != nil {
			return nil, 0, err
		}
		for _, d := range file.Decls {
			f, isFunc := d.(*ast.FuncDecl)
			if !isFunc {
				continue
			}
			ast.Inspect(f, func(n ast.Node) bool {
				call, isCall := n.(*ast.CallExpr)
				if !isCall {
					return true
				}
				sel, isSel := call.Fun.(*ast.SelectorExpr)
				if !isSel || !slices.Contains(operations, sel.Sel.Name) || !receiver.MatchString(types.ExprString(sel.X)) {
					return true
				}
				all++
				at := set.Position(sel.Sel.Pos())
				if s.hit[siteOf(at.Filename, at.Line)] == 0 {
					missed = append(missed, fmt.Sprintf("%s:%d %s %s", filepath.Base(at.Filename), at.Line, f.Name.Name, types.ExprString(call.Fun)))
				}
				return true
			})
		}
	}
	if all == 0 {
		return nil, 0, fmt.Errorf("%s: no call of the disk interface: %w", dir, fs.ErrNotExist)
	}
	return missed, all, nil
}
