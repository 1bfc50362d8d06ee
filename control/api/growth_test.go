package api

import (
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
)

var update = flag.Bool("update", false, "write down in testdata/words.txt what is new, as of the present minor version")

// words are the calls, each with the fields that its request can have.
func words() (all []string) {
	protoregistry.GlobalFiles.RangeFilesByPackage("holdfast.v1", func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			for j := range f.Services().Get(i).Methods().Len() {
				m := f.Services().Get(i).Methods().Get(j)
				call := fmt.Sprintf("%s.%s", f.Services().Get(i).Name(), m.Name())
				all = append(all, call)
				all = append(all, fields(call+" ", m.Input())...)
			}
		}
		return true
	})
	slices.Sort(all)
	return all
}

// fields are those of a message and of the ones of ours inside of it, none of which holds itself.
func fields(before string, m protoreflect.MessageDescriptor) (all []string) {
	for i := range m.Fields().Len() {
		f := m.Fields().Get(i)
		name := fmt.Sprintf("%s%s", before, f.Name())
		if all = append(all, name); f.Message() != nil && f.Message().ParentFile().Package() == "holdfast.v1" {
			all = append(all, fields(name+".", f.Message())...)
		}
	}
	return all
}

// TestGrowthIsTold: callers learn by the minor version what a server knows. So each call, and each field of a request, stands in
// testdata/words.txt with the minor version that it came with, and none goes. Whoever adds one raises Minor, unless no
// release had the present one, and runs this test with -update.
func TestGrowthIsTold(t *testing.T) {
	const file = "testdata/words.txt"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	since, newest := map[string]string{}, 0
	for line := range strings.Lines(string(text)) {
		version, word, _ := strings.Cut(strings.TrimSpace(line), " ")
		minor := 0
		if _, err := fmt.Sscanf(version, fmt.Sprint(Major, ".%d"), &minor); err != nil || since[word] != "" {
			t.Errorf("%q: %v", line, err)
		}
		since[word], newest = version, max(newest, minor)
	}
	present := words()
	if len(present) < 100 {
		t.Errorf("only %d words", len(present))
	}
	var lines strings.Builder
	for _, word := range present {
		version, ok := since[word]
		if delete(since, word); !ok {
			if version = fmt.Sprintf("%d.%d", Major, Minor); !*update {
				t.Errorf("%s is new: raise Minor above what a release had, and run this test with -update", word)
			}
			newest = Minor
		}
		fmt.Fprintf(&lines, "%s %s\n", version, word)
	}
	for word := range since {
		t.Errorf("%s is gone: callers of this major version may use it", word)
	}
	if newest != Minor {
		t.Errorf("the newest word is of %d.%d, and this is %d.%d", Major, newest, Major, Minor)
	}
	if *update {
		if err := os.WriteFile(file, []byte(lines.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
