package lint

import (
	"bufio"
	"bytes"
	"fmt"
	"go/ast"
	"go/token"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func tree(t *testing.T) (string, *token.FileSet, []file) {
	t.Helper()
	dir, err := root()
	if err != nil {
		t.Fatal(err)
	}
	fset, files, err := load(dir)
	if err != nil {
		t.Fatal(err)
	}
	return dir, fset, files
}

func TestTopLevel(t *testing.T) {
	dir, _, _ := tree(t)
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), ".") && !slices.Contains(topLevel, e.Name()) {
			t.Errorf("%s stands at the top level: it belongs into one of the folders there", e.Name())
		}
	}
}

func TestImports(t *testing.T) {
	_, _, files := tree(t)
	for _, f := range files {
		for _, i := range f.imports {
			if why := importFault(f.pkg, f.test, i); why != "" {
				t.Errorf("%s imports %s: %s", f.path, i, why)
			}
		}
	}
}

// importFault says why the import is not allowed, or nothing.
func importFault(pkg string, test bool, imported string) string {
	if ours, ok := strings.CutPrefix(imported, module+"/"); ok {
		return ourFault(pkg, test, ours)
	}
	if imported == "C" {
		return "product code is pure Go"
	}
	for _, lib := range testOnly {
		if strings.HasPrefix(imported, lib) && !test {
			return "only tests may use it"
		}
	}
	for lib, folders := range doors {
		if strings.HasPrefix(imported, lib) && !under(pkg, folders...) && !(test && lib == "golang.org/x/sys") {
			return fmt.Sprintf("its door is %s", strings.Join(folders, ", "))
		}
	}
	return ""
}

func ourFault(pkg string, test bool, ours string) string {
	if under(ours, "cmd", "tools") && !under(pkg, path.Dir(ours)) {
		return "commands and tools are imported by none"
	}
	if under(ours, forTests...) && !test && !under(pkg, usesForTests...) && !under(pkg, forTests...) {
		return "it is for tests"
	}
	if test && under(ours, forTests...) {
		return ""
	}
	folder := ""
	for f := range mayImport {
		if under(pkg, f) && len(f) > len(folder) {
			folder = f
		}
	}
	if folder == "" || under(ours, folder) || under(ours, mayImport[folder]...) {
		return ""
	}
	return fmt.Sprintf("%s may use only itself and [%s]", folder, strings.Join(mayImport[folder], " "))
}

func TestImportRules(t *testing.T) {
	f := func(pkg string, test bool, imported, want string) {
		t.Helper()
		if got := importFault(pkg, test, imported); (got == "") != (want == "") || !strings.Contains(got, want) {
			t.Errorf("%s imports %s: %q, want %q", pkg, imported, got, want)
		}
	}
	f("datapath", false, module+"/journal", "")
	f("journal", false, module+"/wire/record", "")
	f("journal", false, module+"/wire", "journal may use")
	f("journal/view", false, module+"/datapath/front", "journal may use")
	f("control/site", false, module+"/datapath", "control may use")
	f("control/api", false, module+"/control/config", "control/api may use")
	f("control/sidecar", false, module+"/datapath", "control/sidecar may use")
	f("control/sidecar", true, module+"/datapath", "control/sidecar may use")
	f("control/sidecar", false, module+"/control/hypervisor/kvm", "control/sidecar may use")
	f("cmd/vra-sidecar", false, module+"/datapath", "cmd/vra-sidecar may use")
	f("bench/load", false, module+"/cmd/vra", "imported by none")
	f("datapath", false, module+"/wire/faultlink", "for tests")
	f("datapath", true, module+"/wire/faultlink", "")
	f("journal", false, "github.com/dgraph-io/badger/v4", "its door")
	f("journal/index", false, "github.com/dgraph-io/badger/v4", "")
	f("wire", false, "pgregory.net/rapid", "only tests")
	f("wire", false, "C", "pure Go")
}

func TestPurity(t *testing.T) {
	_, fset, files := tree(t)
	for _, f := range files {
		if f.test || !under(f.pkg, pure...) {
			continue
		}
		for _, i := range f.imports {
			for _, bad := range impureImports {
				if i == bad || strings.HasPrefix(i, bad+"/") {
					t.Errorf("%s imports %s: what decides does not act", f.path, i)
				}
			}
		}
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if x, ok := sel.X.(*ast.Ident); ok && slices.Contains(impureCalls[x.Name], sel.Sel.Name) {
				t.Errorf("%s: %s.%s: time and chance are passed in", fset.Position(n.Pos()), x.Name, sel.Sel.Name)
			}
			return true
		})
	}
}

func TestPackageComments(t *testing.T) {
	_, _, files := tree(t)
	has := map[string]bool{}
	for _, f := range files {
		if !f.test {
			has[f.pkg] = has[f.pkg] || f.syntax.Doc != nil
		}
	}
	for pkg, ok := range has {
		if !ok {
			t.Errorf("package %s has no comment that says what it is for", pkg)
		}
	}
}

func TestFilesTellOneIdea(t *testing.T) {
	_, _, files := tree(t)
	for _, f := range files {
		if f.lines > maxLines && !strings.HasSuffix(f.path, ".pb.go") {
			t.Errorf("%s has %d lines", f.path, f.lines)
		}
		if base := path.Base(f.path); slices.Contains([]string{"util.go", "utils.go", "common.go", "helpers.go", "misc.go"}, base) {
			t.Errorf("%s: a file is named for its idea", f.path)
		}
	}
}

func TestTestsDoNotSleep(t *testing.T) {
	_, fset, files := tree(t)
	for _, f := range files {
		if !f.test {
			continue
		}
		ast.Inspect(f.syntax, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok {
				if x, ok := sel.X.(*ast.Ident); ok && x.Name == "time" && sel.Sel.Name == "Sleep" && !inSynctest(f) {
					t.Errorf("%s: wait for an event, or use testing/synctest", fset.Position(n.Pos()))
				}
			}
			return true
		})
	}
}

// inSynctest says whether the file's time is a synctest bubble's, where sleeping costs nothing.
func inSynctest(f file) bool { return slices.Contains(f.imports, "testing/synctest") }

// TestPlantedBugsAreListed holds code and lists to each other: a planted bug that
// no list names is never run, and a listed one that no code holds proves nothing.
func TestPlantedBugsAreListed(t *testing.T) {
	dir, _, files := tree(t)
	call := regexp.MustCompile(`invariant\.Planted\("([^"]+)"\)`)
	planted, listed := map[string]string{}, map[string]bool{}
	for _, f := range files {
		if f.test || under(f.pkg, "tools", "ioengine/invariant") {
			continue
		}
		src, err := os.ReadFile(filepath.Join(dir, f.path))
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range call.FindAllSubmatch(src, -1) {
			planted[string(m[1])] = f.path
		}
	}
	lists, err := exec.Command("find", dir, "-name", "planted.txt", "-path", "*/testdata/*").Output()
	if err != nil {
		t.Fatal(err)
	}
	for name := range strings.FieldsSeq(string(lists)) {
		src, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		for s := bufio.NewScanner(bytes.NewReader(src)); s.Scan(); {
			w := strings.Fields(s.Text())
			if len(w) == 0 || strings.HasPrefix(w[0], "#") {
				continue
			}
			if listed[w[0]] = true; len(w) != 2 {
				t.Errorf("%s: %q is not NAME TEST", name, s.Text())
			}
			if planted[w[0]] == "" {
				t.Errorf("%s lists %s, which no code holds", name, w[0])
			}
		}
	}
	for bug, where := range planted {
		if !listed[bug] {
			t.Errorf("%s plants %s, which no testdata/planted.txt lists", where, bug)
		}
	}
}

func TestDependenciesHaveReasons(t *testing.T) {
	dir, _, _ := tree(t)
	src, err := os.ReadFile(filepath.Join(dir, "go.mod"))
	if err != nil {
		t.Fatal(err)
	}
	block, before := false, ""
	for line := range strings.Lines(string(src)) {
		line = strings.TrimSpace(line)
		switch {
		case line == "require (":
			block = true
		case line == ")":
			block = false
		case block && line != "" && !strings.HasPrefix(line, "//") && !strings.HasSuffix(line, "// indirect"):
			if !strings.HasPrefix(before, "//") {
				t.Errorf("go.mod: no reason stands above %s", line)
			}
		}
		before = line
	}
}
