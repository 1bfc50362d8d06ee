package faultdisk

import (
	"fmt"
	"go/ast"
	"go/build"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// callSite is a call of the disk interface in the source.
type callSite struct {
	siteKey
	function string // that it stands in
	text     string // as "w.file.Sync"
}

func (c callSite) String() string {
	return fmt.Sprintf("%s:%d %s %s", c.file, c.line, c.function, c.text)
}

// callsIn returns the calls of ioengine.FS and ioengine.File in the package in dir, its
// tests aside. It needs the go command, which knows what the package imports.
func callsIn(dir string) ([]callSite, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, err
	}
	set := token.NewFileSet()
	files, err := parse(set, dir)
	if err != nil {
		return nil, err
	}
	exports, err := exportsFor(dir)
	if err != nil {
		return nil, err
	}
	info := &types.Info{Types: map[ast.Expr]types.TypeAndValue{}, Selections: map[*ast.SelectorExpr]*types.Selection{}}
	cfg := types.Config{Importer: importer.ForCompiler(set, "gc", exports)}
	if _, err := cfg.Check(dir, set, files, info); err != nil {
		return nil, err
	}
	var calls []callSite
	for _, file := range files {
		for _, d := range file.Decls {
			name := "package"
			if f, isFunc := d.(*ast.FuncDecl); isFunc {
				name = f.Name.Name
			}
			ast.Inspect(d, func(n ast.Node) bool {
				if c, isCall := n.(*ast.CallExpr); isCall {
					if sel, isSel := c.Fun.(*ast.SelectorExpr); isSel && ofDisk(info, sel) {
						at := set.Position(sel.Sel.Pos())
						calls = append(calls, callSite{siteKey{filepath.Base(dir), filepath.Base(at.Filename), at.Line, sel.Sel.Name},
							name, strings.ReplaceAll(types.ExprString(sel), " ", "")})
					}
				}
				return true
			})
		}
	}
	if len(calls) == 0 {
		return nil, fmt.Errorf("%s: no call of the disk interface: %w", dir, fs.ErrNotExist)
	}
	return calls, nil
}

func parse(set *token.FileSet, dir string) (files []*ast.File, err error) {
	names, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		built, err := build.Default.MatchFile(dir, filepath.Base(name))
		if err != nil {
			return nil, err
		}
		if !built || strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(set, name, nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		files = append(files, file)
	}
	return files, nil
}

// exportsFor opens what the compiler wrote of the packages that the one in dir imports.
func exportsFor(dir string) (func(path string) (io.ReadCloser, error), error) {
	cmd := exec.Command("go", "list", "-export", "-deps", "-f", "{{.ImportPath}} {{.Export}}", ".")
	cmd.Dir = dir
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go list in %s: %w", dir, err)
	}
	files := map[string]string{}
	for line := range strings.Lines(string(out)) {
		if w := strings.Fields(line); len(w) == 2 {
			files[w[0]] = w[1]
		}
	}
	return func(path string) (io.ReadCloser, error) { return os.Open(files[path]) }, nil
}

// ofDisk says whether a selection is an operation of ioengine.FS or ioengine.File.
func ofDisk(info *types.Info, sel *ast.SelectorExpr) bool {
	chosen := info.Selections[sel]
	if chosen == nil || !slices.Contains(operations, sel.Sel.Name) {
		return false
	}
	if of := chosen.Obj().Pkg(); of != nil && strings.HasSuffix(of.Path(), "/ioengine") && types.IsInterface(chosen.Obj().(*types.Func).Signature().Recv().Type()) {
		return true
	}
	named, isNamed := chosen.Recv().(*types.Named) // ReadAt and WriteAt are declared in package io
	return isNamed && named.Obj().Pkg() != nil && strings.HasSuffix(named.Obj().Pkg().Path(), "/ioengine") && types.IsInterface(named)
}
