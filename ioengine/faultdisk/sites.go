package faultdisk

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"io/fs"
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
// Missed names those.
type Sites struct {
	mu  sync.Mutex
	hit map[string]int // by file and line
}

var recording atomic.Pointer[Sites]

// RecordSites returns the sites of all operations of all disks of this process from now
// on. It is for the TestMain of a package.
func RecordSites() *Sites {
	s := &Sites{hit: map[string]int{}}
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

func siteOf(file string, line int) string { return fmt.Sprintf("%s:%d", filepath.Base(file), line) }

// operations are the methods of ioengine.FS and ioengine.File that count as such.
var operations = []string{"Open", "Rename", "Remove", "Mkdir", "List", "SyncDir", "SyncFiles", "Lock", "Free",
	"ReadAt", "WriteAt", "WriteStart", "Sync", "Allocate", "Zero", "NextData", "Truncate", "Size"}

// Missed returns the call sites of the disk interface in the package in dir that were
// never hit, as "file.go:12 Function w.file.Sync". A call is one of the interface when
// what stands before its name matches receiver: the package says by which names it
// calls its files and file systems.
func (s *Sites) Missed(dir string, receiver *regexp.Regexp) (missed []string, all int, err error) {
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
					missed = append(missed, fmt.Sprintf("%s %s %s", siteOf(at.Filename, at.Line), f.Name.Name, types.ExprString(call.Fun)))
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
