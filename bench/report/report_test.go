package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const raw = `# title: Capacity of one VRA pair
# command: go test -bench Capacity ./bench
goos: linux
BenchmarkCapacity/db/lan-2   	       1	9000000000 ns/op	       120.5 MB/s	         0.44 wire/guest
BenchmarkCapacity/db/lan-2   	       1	9000000000 ns/op	       100 MB/s	         0.46 wire/guest
BenchmarkCapacity/db/lan-2   	       1	9000000000 ns/op	       140 MB/s	         0.45 wire/guest
BenchmarkCapacity/random/lan-2   	       1	9000000000 ns/op	       9.5 MB/s
PASS
`

func TestTableHoldsMedianAndSpread(t *testing.T) {
	s, err := parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	var b strings.Builder
	s.table(&b)
	for _, want := range []string{
		"## Capacity of one VRA pair", "Command: `go test -bench Capacity ./bench`.",
		"| run | MB/s | wire/guest |",
		"| Capacity/db/lan | 120 (100-140) | 0.450 (0.440-0.460) |",
		"| Capacity/random/lan | 9.50 | - |",
	} {
		if !strings.Contains(b.String(), want) {
			t.Errorf("no line %q in\n%s", want, b.String())
		}
	}
}

func TestFailedRunIsNoResult(t *testing.T) {
	f := func(src, want string) {
		t.Helper()
		if _, err := parse(src); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("parse: %v, want %q", err, want)
		}
	}
	f(raw+"FAIL\tgithub.com/x/y 3s\n", "the run failed")
	f("PASS\n", "no benchmark")
	f("BenchmarkA-2 1 x MB/s\n", "x")
}

// TestPageFollowsFromResults fails when BENCHMARKS.md was edited, or results were
// added, and the page not written anew.
func TestPageFollowsFromResults(t *testing.T) {
	want, err := render(filepath.Join("..", "results"))
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(filepath.Join("..", "..", page))
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s does not follow from bench/results: run `go run ./bench/report`", page)
	}
}
