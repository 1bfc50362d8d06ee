package daemon

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// contents are the lines of a log over its files, the oldest first.
func contents(t *testing.T, path string) (lines []string) {
	t.Helper()
	for n := logFileKeep; n >= 0; n-- {
		name := path
		if n > 0 {
			name = fmt.Sprintf("%s.%d", path, n)
		}
		if text, err := os.ReadFile(name); err == nil {
			lines = append(lines, strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")...)
		} else if !os.IsNotExist(err) {
			t.Fatal(err)
		}
	}
	return lines
}

// TestLogFileIsTurned: files are bounded in size and number, nothing is lost in between, and a restart goes on with them.
func TestLogFileIsTurned(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vra.log")
	said := 0
	var all []string
	for range 2 {
		l := openLogFile(path, 100, func(string) { said++ })
		for range 20 {
			line := fmt.Sprintf("line %04d", len(all)) // 10 bytes with its end
			all = append(all, line)
			l.Write([]byte(line + "\n"))
		}
		l.close()
		l.Write([]byte("too late\n"))
		l.close()
	}
	got := contents(t, path)
	if said != 0 || len(got) < 10*logFileKeep || len(got) > 10*(logFileKeep+1) || strings.Join(got, " ") != strings.Join(all[len(all)-len(got):], " ") {
		t.Errorf("complaints %d, %d lines: %q", said, len(got), got)
	}
	if files, err := filepath.Glob(path + "*"); err != nil || len(files) > logFileKeep+1 {
		t.Errorf("%q, %v", files, err)
	}
	for _, name := range []string{path, path + ".1"} {
		if fi, err := os.Stat(name); err != nil || fi.Size() > 100 || fi.Mode()&0o007 != 0 {
			t.Errorf("%v, %v", fi, err)
		}
	}
}

// TestLogFileFails: that it cannot be written is said once; it is tried again after a while, and what is missing is counted.
func TestLogFileFails(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "log")
	path := filepath.Join(dir, "vra.log")
	synctest.Test(t, func(t *testing.T) {
		var said []string
		l := openLogFile(path, 1000, func(s string) { said = append(said, s) })
		write := func(line string) { l.Write([]byte(line + "\n")); synctest.Wait() }
		write("a")
		time.Sleep(logFileRetry)
		write("b") // fails again
		if err := os.Mkdir(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		write("c") // not tried yet
		time.Sleep(logFileRetry)
		write("d")
		write("e")
		l.file.Close() // a write fails
		write("f")
		time.Sleep(logFileRetry)
		write("g")
		if err := os.MkdirAll(filepath.Join(path+".4", "in the way"), 0o700); err != nil { // a rename fails
			t.Fatal(err)
		}
		if err := os.WriteFile(path+".3", nil, 0o600); err != nil {
			t.Fatal(err)
		}
		write(strings.Repeat("x", 999))
		time.Sleep(logFileRetry)
		write("h")
		l.close()
		if len(said) != 3 || !strings.Contains(said[0], "no such file") || !strings.Contains(said[1], "file already closed") || !strings.Contains(said[2], "rename") {
			t.Errorf("said %q", said)
		}
	})
	older, err := os.ReadFile(path + ".1")
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	text = append(older, text...)
	var got []string
	for line := range strings.Lines(string(text)) {
		if _, lost, ok := strings.Cut(line, "lines="); ok {
			line = "lost " + lost
		}
		got = append(got, strings.TrimSpace(line))
	}
	if want := "lost 3, d, e, lost 1, g, lost 1, h"; strings.Join(got, ", ") != want {
		t.Errorf("%q, want %s", got, want)
	}
}

// TestNobodyWaitsForALogFile: with a disk that hangs, who logs goes on, and so does the end of the process. Each line is written later or
// counted.
func TestNobodyWaitsForALogFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "fifo")
	if err := syscall.Mkfifo(path, 0o600); err != nil { // nobody reads: to open it for writing hangs
		t.Fatal(err)
	}
	l := openLogFile(path, logFileBytes, func(s string) { t.Error(s) })
	const lines = 2*logFileQueue + 10
	for range lines {
		l.Write([]byte("x\n"))
	}
	l.close()
	select {
	case <-l.ended:
		t.Error("it did not hang")
	default:
	}
	text, err := os.ReadFile(path) // it goes on
	if err != nil {
		t.Fatal(err)
	}
	<-l.ended
	lost := l.lost.Load()
	for line := range strings.Lines(string(text)) {
		if _, n, ok := strings.Cut(strings.TrimSpace(line), "lines="); ok {
			n, err := strconv.ParseInt(n, 10, 64)
			if err != nil {
				t.Errorf("%q: %v", line, err)
			}
			lost += n
		}
	}
	if written := int64(strings.Count(string(text), "x\n")); written+lost != lines || lost < logFileQueue {
		t.Errorf("%d lines are written and %d counted, of %d", written, lost, lines)
	}
}

func TestLogGoesToBoth(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vra.log")
	var stderr, out bytes.Buffer
	flags := NewFlags("vra")
	if _, err := flags.Take([]string{"--config", "x", "--log-file", path}, &out, &out); err != nil {
		t.Fatal(err)
	}
	log, level, end := flags.Log(&stderr, slog.LevelWarn)
	log.Info("one")
	level.Set(slog.LevelInfo)
	log.Info("two")
	end()
	if text, err := os.ReadFile(path); err != nil || string(text) != stderr.String() || strings.Contains(stderr.String(), "one") || !strings.Contains(stderr.String(), "level=INFO msg=two") {
		t.Errorf("the file says %q, %v, and stderr %q", text, err, stderr.String())
	}
	flags = NewFlags("vra")
	if _, err := flags.Take([]string{"--config", "x", "--log-file", filepath.Join(path, "none")}, &out, &out); err != nil {
		t.Fatal(err)
	}
	stderr.Reset()
	log, _, end = flags.Log(&stderr, slog.LevelInfo)
	log.Info("three")
	end()
	if got := stderr.String(); !strings.Contains(got, "msg=three") || !strings.Contains(got, "the log file is not written") {
		t.Errorf("stderr %q", got)
	}
}
