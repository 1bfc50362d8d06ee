package main

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/holdfast-dr/holdfast/control/daemon"
)

// A tape is made only when it is asked for, for its owner alone, never over another
// file, and the log says so.
func TestDebugTape(t *testing.T) {
	dir := t.TempDir()
	var text bytes.Buffer
	log := slog.New(slog.NewTextHandler(&text, nil))
	none := debugTape{limit: defaultTapeLimit}
	if to, end, err := none.open(log); to != nil || err != nil || end() != nil || text.Len() > 0 {
		t.Errorf("unasked: %v, %v, %q", to, err, text.String())
	}
	asked := debugTape{file: filepath.Join(dir, "tape"), limit: defaultTapeLimit}
	to, end, err := asked.open(log)
	if err != nil || to.Payload() || end() != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(asked.file); err != nil || st.Mode().Perm() != 0o600 || st.Size() == 0 {
		t.Errorf("%v: %v", st, err)
	}
	if !strings.Contains(text.String(), "level=WARN msg=\"DEBUGGING") || !strings.Contains(text.String(), asked.file) {
		t.Errorf("logged %q", text.String())
	}
	if _, _, err := asked.open(log); err == nil || !strings.Contains(err.Error(), "name another") {
		t.Errorf("over another file: %v", err)
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v", entries, err)
	}
	f := func(want string, args ...string) {
		t.Helper()
		var out bytes.Buffer
		if err := run(context.Background(), append([]string{"--config", "x.yaml"}, args...), &out, &out); !errors.Is(err, daemon.ErrUsage) || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", args, err, want)
		}
	}
	f("need --debug-tape", "--debug-tape-payload")
	f("at least 1MiB", "--debug-tape", "t", "--debug-tape-limit", "3KiB")
	f("debug-tape-limit", "--debug-tape", "t", "--debug-tape-limit", "much")
}
