package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func needsProtoc(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("protoc"); err != nil {
		t.Skip("protoc is not installed: ", err)
	}
}

// TestPage: everything that the files say stands on the page, and a page that does not follow is refused.
func TestPage(t *testing.T) {
	needsProtoc(t)
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("testdata")); err != nil {
		t.Fatal(err)
	}
	if err := run(dir, true); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no page: %v", err)
	}
	if err := run(dir, false); err != nil {
		t.Fatal(err)
	}
	if err := run(dir, true); err != nil {
		t.Errorf("what it wrote: %v", err)
	}
	page, err := os.ReadFile(filepath.Join(dir, "API.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"| [Lamps](#lamps) | Light, Watch |\n",
		"\n## Lamps\n\nLamps are lit.\n",
		"\n### Lamps.Light\n\n`/small.v1.Lamps/Light`\n\nLight lights one.\n\nErrors: not_found.\n",
		"| `name` | string | A \\| B. |\n| `watts` | int32, *optional* | Watts. |\n| `at` | Timestamp | When. |\n\nAnswered: nothing.\n",
		"\n`/small.v1.Lamps/Watch`, a stream of answers\n\nWatch tells of\neach.\n\nAsked: [Lamp](#lamp).\n",
		"\n### Lamp\n\nLamp is a lamp.\n", "| `colours` | list of Colour | Its colours. |\n", "| `near` | map of string to [Lamp](#lamp) | By room. |\n",
		"\n### Colour\n", "| `COLOUR_UNSPECIFIED` | Not known. |\n",
	} {
		if !strings.Contains(string(page), want) {
			t.Errorf("the page has no %q", want)
		}
	}
	if strings.Contains(string(page), "### LightRequest") {
		t.Error("a request stands twice")
	}
	change(t, dir, "// A | B.", "// B.")
	if err := run(dir, true); err == nil || !strings.Contains(err.Error(), "does not follow") {
		t.Errorf("a comment was changed: %v", err)
	}
}

// TestEachHasAComment: what has none is named, whatever it is.
func TestEachHasAComment(t *testing.T) {
	needsProtoc(t)
	for comment, name := range map[string]string{
		"// Lamps are lit.": "small.v1.Lamps", "// Light lights one.\n  // Errors: not_found.": "small.v1.Lamps.Light",
		"// LightRequest is what Light is asked.": "small.v1.LightRequest", "// LightResponse is what Light answers.": "small.v1.LightResponse",
		"// A | B.": "small.v1.LightRequest.name", "// Watts.": "small.v1.LightRequest.watts", "// Lamp is a lamp.": "small.v1.Lamp",
		"// By room.": "small.v1.Lamp.near", "// Colour is a colour.": "small.v1.Colour", "// Not known.": "small.v1.COLOUR_UNSPECIFIED",
	} {
		dir := t.TempDir()
		if err := os.CopyFS(dir, os.DirFS("testdata")); err != nil {
			t.Fatal(err)
		}
		change(t, dir, comment, "")
		if err := run(dir, false); !errors.Is(err, errNoComment) || err.Error() != name+": has no comment" {
			t.Errorf("without %q: %v, want %s", comment, err, name)
		}
	}
}

func TestWhatCannotBeRead(t *testing.T) {
	needsProtoc(t)
	dir := t.TempDir()
	if err := run(dir, false); err == nil || !strings.Contains(err.Error(), "no .proto file") {
		t.Errorf("an empty folder: %v", err)
	}
	if err := os.CopyFS(dir, os.DirFS("testdata")); err != nil {
		t.Fatal(err)
	}
	change(t, dir, "message Lamp {", "message Lamp")
	if err := run(dir, false); err == nil || !strings.Contains(err.Error(), "small/v1/small.proto:") {
		t.Errorf("a file that is none: %v", err)
	}
}

// change replaces what stands once in the file of the test.
func change(t *testing.T, dir, old, with string) {
	t.Helper()
	name := filepath.Join(dir, "small/v1/small.proto")
	text, err := os.ReadFile(name)
	if err != nil || strings.Count(string(text), old) != 1 {
		t.Fatalf("%q stands %d times: %v", old, strings.Count(string(text), old), err)
	}
	if err := os.WriteFile(name, []byte(strings.Replace(string(text), old, with, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
}
