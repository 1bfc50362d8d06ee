package bars

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestMedianDecides(t *testing.T) {
	row := Row{Key: "a", Measure: "a ratio", Unit: "x", Limit: 0.8, Least: true}
	f := func(want bool, vs ...float64) {
		t.Helper()
		r := Result{Row: row}
		for _, v := range vs {
			r.Samples = append(r.Samples, Sample{Row: "a", Value: v})
		}
		if r.Passes() != want {
			t.Errorf("%v: passes %v, median %v", vs, r.Passes(), r.Median())
		}
	}
	f(false)
	f(true, 0.8)
	f(true, 0.1, 0.8, 0.9)
	f(false, 0.1, 0.7, 0.9)
	f(true, 0.7, 0.9)
	row.Least = false
	f(true, 0.1, 0.8, 0.9)
	f(false, 0.1, 0.81, 0.9)
	f(false, math.NaN())
}

func TestTableSaysMissAndNotMeasured(t *testing.T) {
	rows := []Row{{"a", "first", "x", 0.8, true}, {"b", "second", "ms", 50, false}, {"c", "third", "MiB", 256, false},
		{"s", "scale", "x", math.NaN(), false}}
	results, err := Collect(rows, []Sample{{Row: "a", Value: 0.5, Ours: 1200, Peer: 2400, OursUnit: "MB/s", Commit: "abc1234"}, {Row: "a", Value: 0.7}, {Row: "b", Value: 12.345}, {Row: "a", Value: 0.6}, {Row: "s", Value: 4}})
	if err != nil {
		t.Fatal(err)
	}
	table := Table(results)
	for _, want := range []string{
		"| first | >= 0.8x | 0.6x | 0.5 to 0.7 |", "| 3 | abc1234 | **miss** |",
		"| second | <= 50 ms | 12.3 ms | 12.3 to 12.3 |  |  | 1 |  | pass |",
		"| scale | none: a scale | 4x | 4 to 4 |  |  | 1 |  |  |",
		"| third | <= 256 MiB | | | | | 0 | | not measured |",
	} {
		if !strings.Contains(table, want) {
			t.Errorf("no %q in\n%s", want, table)
		}
	}
	if _, err := Collect(rows, []Sample{{Row: "d"}}); err == nil {
		t.Error("a sample of no row was taken")
	}
}

func TestSamplesComeBack(t *testing.T) {
	want := []Sample{{Row: "a", Value: 1.5, Ours: 3, Peer: 2, OursUnit: "s", Foreign: 0.1, Note: "n"}, {Row: "b"}}
	var b bytes.Buffer
	b.WriteString("# title: T: with colon\n")
	if err := Write(&b, want...); err != nil {
		t.Fatal(err)
	}
	head, got, err := Read(b.String())
	if err != nil || !reflect.DeepEqual(got, want) || head[0] != [2]string{"title", "T: with colon"} {
		t.Errorf("%v %v %v", head, got, err)
	}
	if _, _, err := Read(`{"row":"a","else":1}`); err == nil {
		t.Error("an unknown field was taken")
	}
}

func TestKeysAreUnique(t *testing.T) {
	for area, rows := range Areas {
		seen := map[string]bool{}
		for _, r := range rows {
			if seen[r.Key] || r.Key == "" || r.Measure == "" || strings.Contains(r.Measure, "|") {
				t.Errorf("%s: row %q twice, without a name, or with a bar that would end its cell", area, r.Key)
			}
			seen[r.Key] = true
		}
	}
}

// Rows that were measured again are new, the others stay; each says what was measured.
func TestSaveKeepsOtherRows(t *testing.T) {
	name := filepath.Join(t.TempDir(), "bars.jsonl")
	for _, samples := range [][]Sample{{{Row: "a", Value: 1}, {Row: "b", Value: 2}}, {{Row: "a", Value: 3}, {Row: "a", Value: 4}}} {
		if err := Save(t.Context(), name, Head{Title: "T", Command: "c", Note: "n"}, samples); err != nil {
			t.Fatal(err)
		}
	}
	src, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	_, got, err := Read(string(src))
	values := ""
	for _, s := range got {
		values += fmt.Sprint(s.Row, s.Value, s.Commit != "", " ")
	}
	if want := "b2 true a3 true a4 true "; err != nil || values != want {
		t.Errorf("kept %q, want %q (%v)", values, want, err)
	}
	if err := os.WriteFile(name, []byte("nonsense"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := Save(t.Context(), name, Head{}, []Sample{{Row: "a"}}); err == nil {
		t.Error("what could not be read was thrown away")
	}
}

// TestCPUOfProcess: of this one it says what the system says to itself.
func TestCPUOfProcess(t *testing.T) {
	for sum := 0; OwnCPU() < 0.1; sum++ { // something to be counted
	}
	got, err := CPUOfProcess(os.Getpid())
	if own := OwnCPU(); err != nil || got < 0.05 || got > own+0.05 {
		t.Errorf("%v s, %v; this process used %v s", got, err, own)
	}
	if _, err := CPUOfProcess(-1); err == nil {
		t.Error("a process that is none")
	}
}
