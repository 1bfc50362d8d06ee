package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestAloneTestsAreThere: a test that was renamed is not left out of the race part
// unseen, and what took its name is not left out in its place.
func TestAloneTestsAreThere(t *testing.T) {
	var all strings.Builder
	err := filepath.WalkDir("../..", func(name string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(name, "_test.go") {
			return err
		}
		src, err := os.ReadFile(name)
		all.Write(src)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range aloneTests {
		if n := strings.Count(all.String(), "\nfunc "+name+"(t *testing.T)"); n == 0 {
			t.Errorf("no test is named %s", name)
		}
	}
	comment := regexp.MustCompile(`(?m)^\s*//.*$`)
	for _, pkg := range alonePackages {
		files, err := filepath.Glob("../../" + pkg + "/*.go")
		if err != nil || len(files) == 0 {
			t.Errorf("%s: no package: %v", pkg, err)
		}
		for _, name := range files {
			src, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			code := comment.ReplaceAllString(string(src), "")
			for _, sign := range []string{"\tgo ", ".Go(", "AfterFunc(", "synctest.", "t.Parallel()", `"unsafe"`} {
				if strings.Contains(code, sign) {
					t.Errorf("%s runs more than one goroutine: %q", name, sign)
				}
			}
		}
	}
}
