package sidecar

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/pairing"
)

func stamped(minute int, text string) string {
	return fmt.Sprintf("time=2026-03-01T12:%02d:00.000Z level=INFO msg=%s", minute, text)
}

func writeLines(t *testing.T, path string, lines ...string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	for _, line := range lines {
		if _, err := io.WriteString(f, line+"\n"); err != nil {
			t.Fatal(err)
		}
	}
}

// TestReadLog: lines of a time, of a number and of a size, over three files.
func TestReadLog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vra.log")
	writeLines(t, path+".2", stamped(1, "a"), stamped(2, "b"))
	writeLines(t, path+".1", stamped(3, "c"), "goroutine 1 [running]:")
	writeLines(t, path, stamped(4, "d"), strings.Repeat("x", 2*maxLine), "\xff")
	f := func(q logQuery, above bool, want ...string) {
		t.Helper()
		if q.bytes == 0 {
			q.bytes = readDefault
		}
		got, end, err := readLog(t.Context(), path, q)
		end.close()
		var words []string
		for _, line := range got.kept {
			if _, msg, ok := strings.Cut(line, "msg="); ok {
				line = msg
			}
			words = append(words, line[:min(len(line), 10)])
		}
		if err != nil || !slices.Equal(words, want) || got.above != above {
			t.Errorf("%+v: %q, more %v, %v; want %q, %v", q, words, got.above, err, want, above)
		}
	}
	at := func(minute int) time.Time { return time.Date(2026, 3, 1, 12, minute, 0, 0, time.UTC) }
	f(logQuery{}, false, "a", "b", "c", "goroutine ", "d", "xxxxxxxxxx", "?")
	f(logQuery{from: at(2), to: at(4)}, false, "b", "c", "goroutine ")
	f(logQuery{from: at(3), to: at(4), lines: 1}, true, "goroutine ")
	f(logQuery{lines: 2}, true, "xxxxxxxxxx", "?")
	f(logQuery{bytes: 10}, true, "?")
	f(logQuery{from: at(9)}, false)
	long, end, err := readLog(t.Context(), path, logQuery{bytes: readDefault, lines: 2})
	end.close()
	if err != nil || len(long.kept[0]) != maxLine+3 || !strings.HasSuffix(long.kept[0], "...") {
		t.Errorf("a long line has %d bytes", len(long.kept[0]))
	}
	if got, end, err := readLog(t.Context(), filepath.Join(t.TempDir(), "none"), logQuery{}); err != nil || len(got.kept) != 0 || end.file != nil {
		t.Errorf("a log that is not there: %v, %v", got, err)
	}
	if _, _, err := readLog(t.Context(), t.TempDir(), logQuery{}); err == nil {
		t.Error("a folder is read as a log")
	}
}

// TestFollow: what comes is told, over both ways in which a file is turned over, and a line only once it is whole.
func TestFollow(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vra.log")
	writeLines(t, path, "first")
	w := open(t, func(c *config.Sidecar) { c.Logs = []config.SidecarLog{{Name: "vra", Path: path}} })
	c := w.client(api.RoleOperator)
	ctx, cancel := context.WithCancel(t.Context())
	heard, done := make(chan string, 100), make(chan error, 1)
	go func() {
		done <- c.Logs.Read(ctx, &holdfastv1.LogsServiceReadRequest{Follow: true}, func(m *holdfastv1.LogsServiceReadResponse) error {
			for _, line := range m.Lines {
				heard <- line
			}
			return nil
		})
	}()
	next := func(want string) {
		t.Helper()
		select {
		case got := <-heard:
			if got != want {
				t.Errorf("heard %q, want %q", got, want)
			}
		case err := <-done:
			t.Fatalf("it ended: %v", err)
		case <-time.After(20 * time.Second):
			t.Fatalf("%q is never told", want)
		}
	}
	next("first")
	writeLines(t, path, "second", "password=hunter2 was tried")
	next("second")
	next("password=[removed]")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	writeLines(t, path+".1", "late, into the old file")
	writeLines(t, path, "into the new file, which is longer than what comes next")
	next("late, into the old file")
	next("into the new file, which is longer than what comes next")
	if err := os.Truncate(path, 0); err != nil {
		t.Fatal(err)
	}
	writeLines(t, path, "after emptying")
	next("after emptying")
	cancel()
	if err := <-done; api.AsFailure(err).Code != api.Canceled {
		t.Error(err)
	}
}

// TestNothingIsLostOfTheOldFile: what is written to it after it was read to its end, and before there is a new one, is told.
func TestNothingIsLostOfTheOldFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vra.log")
	writeLines(t, path, "first")
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	end := logEnd{file: f}
	defer func() { end.close() }()
	var heard []string
	if err := end.more(path, func(lines []string) error {
		if heard = append(heard, lines...); len(heard) == 1 { // it was read to its end
			if err := os.Rename(path, path+".1"); err != nil {
				t.Fatal(err)
			}
			writeLines(t, path+".1", "late")
			writeLines(t, path, "new")
		}
		return nil
	}); err != nil || !slices.Equal(heard, []string{"first", "late", "new"}) {
		t.Errorf("heard %q, %v", heard, err)
	}
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	writeLines(t, path, "another")
	broken := errors.New("broken")
	if err := end.more(path, func([]string) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("nobody listens: %v", err)
	}
}

func TestLogsRefuse(t *testing.T) {
	dir := t.TempDir()
	a, b := filepath.Join(dir, "a"), filepath.Join(dir, "b")
	writeLines(t, a, "x")
	w := open(t, func(c *config.Sidecar) {
		c.Logs = []config.SidecarLog{{Name: "a", Path: a}, {Name: "b", Path: b}, {Name: "c", Path: dir}}
	})
	c := w.client(api.RoleOperator)
	list, err := c.Logs.List(t.Context(), &holdfastv1.LogsServiceListRequest{})
	if err != nil || len(list.Logs) != 3 || list.Logs[0].Bytes != 2 || list.Logs[0].Problem != "" || list.Logs[1].Problem != "no such file or directory" {
		t.Errorf("%v, %v", list, err)
	}
	f := func(r *holdfastv1.LogsServiceReadRequest, code api.Code, words ...string) {
		t.Helper()
		failure(t, fmt.Sprint(r), c.Logs.Read(t.Context(), r, func(*holdfastv1.LogsServiceReadResponse) error { return nil }), code, words...)
	}
	f(&holdfastv1.LogsServiceReadRequest{}, api.InvalidArgument, "which log is not said")
	f(&holdfastv1.LogsServiceReadRequest{Log: "../../etc/passwd"}, api.NotFound)
	f(&holdfastv1.LogsServiceReadRequest{Log: "a", MaxBytes: readMost + 1}, api.InvalidArgument)
	f(&holdfastv1.LogsServiceReadRequest{Log: "a", LastLines: -1}, api.InvalidArgument)
	f(&holdfastv1.LogsServiceReadRequest{Log: "a", Follow: true, To: api.Timestamp(time.Now())}, api.InvalidArgument)
	f(&holdfastv1.LogsServiceReadRequest{Log: "c"}, api.Unavailable, "the log c")
	enough := errors.New("enough")
	if err := c.Logs.Read(t.Context(), &holdfastv1.LogsServiceReadRequest{Log: "a"}, func(*holdfastv1.LogsServiceReadResponse) error { return enough }); !errors.Is(err, enough) {
		t.Error(err)
	}
}

// TestLogsThatAreNoFiles: a pipe, into which nobody writes, keeps nobody waiting, nor does what stands where a log should; callers hear what it is, and not
// where.
func TestLogsThatAreNoFiles(t *testing.T) {
	dir := t.TempDir()
	pipe, log, none := filepath.Join(dir, "pipe"), filepath.Join(dir, "vra.log"), filepath.Join(dir, "none")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	writeLines(t, log, "first")
	w := open(t, func(c *config.Sidecar) {
		c.Logs = []config.SidecarLog{{Name: "pipe", Path: pipe}, {Name: "vra", Path: log}, {Name: "none", Path: none}, {Name: "null", Path: "/dev/null"}, {Name: "under", Path: filepath.Join(log, "x")}}
		c.Configs = []string{filepath.Join(dir, "vra.yaml")}
	})
	if err := syscall.Mkfifo(w.cfg.Configs[0], 0o600); err != nil {
		t.Fatal(err)
	}
	c := w.client(api.RoleAdmin)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	list, err := c.Logs.List(ctx, &holdfastv1.LogsServiceListRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var problems []string
	for _, l := range list.Logs {
		problems = append(problems, l.Problem)
	}
	const noFile, absent = "it is not a regular file", "no such file or directory"
	if want := []string{noFile, "", absent, noFile, "not a directory"}; !slices.Equal(problems, want) {
		t.Errorf("problems %q, want %q", problems, want)
	}
	first := make(chan string, 1)
	read := func(name string, follow bool) error {
		return c.Logs.Read(ctx, &holdfastv1.LogsServiceReadRequest{Log: name, Follow: follow}, func(m *holdfastv1.LogsServiceReadResponse) error {
			first <- m.Lines[0]
			return nil
		})
	}
	refused := func(name string, err error, says string) {
		t.Helper()
		failure(t, name, err, api.Unavailable, "the log "+name+": "+says)
		if strings.Contains(err.Error(), dir) {
			t.Errorf("%s: where it is stands in %q", name, err)
		}
	}
	for _, follow := range []bool{false, true} {
		refused("pipe", read("pipe", follow), noFile)
		refused("under", read("under", follow), "not a directory")
	}
	refused("none", read("none", false), absent)
	ends := make(chan error, 1)
	go func() { ends <- read("vra", true) }()
	<-first
	if err := os.Rename(pipe, log); err != nil {
		t.Fatal(err)
	}
	refused("vra", <-ends, noFile)
	var all bytes.Buffer
	if err := c.Logs.Bundle(ctx, &holdfastv1.LogsServiceBundleRequest{}, func(m *holdfastv1.LogsServiceBundleResponse) error {
		all.Write(m.Tar)
		return nil
	}); err != nil || strings.Count(all.String(), noFile) != 3 {
		t.Errorf("a bundle, %v: %s", err, &all)
	}
}

// TestGivenUpReading: nothing more is read for a caller that went away.
func TestGivenUpReading(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vra.log")
	writeLines(t, path, "first")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	got, end, err := readLog(ctx, path, logQuery{bytes: readDefault})
	end.close()
	if !errors.Is(err, context.Canceled) || len(got.kept) > 0 {
		t.Errorf("%q, %v", got.kept, err)
	}
	b := &bundler{}
	if err := b.addLog(ctx, &archive{}, "vra.log", rotated(path), logQuery{bytes: readDefault}); !errors.Is(err, context.Canceled) {
		t.Errorf("in a bundle: %v", err)
	}
}

// TestEndlessLineIsNotReadAgain: nothing of a line is told that is too long before it ends, nor is it read anew whenever it grows.
func TestEndlessLineIsNotReadAgain(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vra.log")
	add := func(text string) {
		t.Helper()
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
	}
	add("first\npassword=" + strings.Repeat("x", 2*maxLine))
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	end := logEnd{file: f}
	defer func() { end.close() }()
	var heard []string
	more := func(unread int64, want ...string) {
		t.Helper()
		heard = nil
		if err := end.more(path, func(lines []string) error { heard = append(heard, lines...); return nil }); err != nil {
			t.Fatal(err)
		}
		if at, err := f.Seek(0, io.SeekEnd); err != nil || at-end.at != unread || !slices.Equal(heard, want) {
			t.Errorf("heard %q, %d bytes unread, %v; want %q, %d", heard, at-end.at, err, want, unread)
		}
	}
	more(0, "first")
	more(0)
	add("of it")
	more(5)
	add(" the end\nnext\nand")
	more(3, "next")
	add(" more\n")
	more(0, "and more")
}

func TestPlaces(t *testing.T) {
	p := newPlaces(3, 2)
	take := func(who string, words ...string) (free func()) {
		t.Helper()
		free, err := p.take(who, "read logs")
		if len(words) > 0 {
			failure(t, who, err, api.Exhausted, words...)
		} else if err != nil {
			t.Error(err)
		}
		return free
	}
	free := take("ann")
	take("ann")
	take("ann", "ann has 2 calls that read logs already")
	last := take("bob")
	take("bob", "3 calls read logs already")
	free()
	free() // a second time is none
	take("eve")
	take("bob", "3 calls read logs already")
	last()
	take("bob")
}

// TestSlowReaderIsLetGo: who takes long to take in what was found does not keep others from reading.
func TestSlowReaderIsLetGo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vra.log")
	writeLines(t, path, slices.Repeat([]string{strings.Repeat("x", 1<<10)}, 1<<10)...)
	synctest.Test(t, func(t *testing.T) {
		l := newLogs([]config.SidecarLog{{Name: "vra", Path: path}}, nil)
		slow := func(each time.Duration) (func(*holdfastv1.LogsServiceReadResponse) error, *int) {
			told := 0
			return func(*holdfastv1.LogsServiceReadResponse) error { told++; time.Sleep(each); return nil }, &told
		}
		began := time.Now()
		tell, told := slow(9 * time.Second)
		err := l.Read(t.Context(), &holdfastv1.LogsServiceReadRequest{}, tell)
		failure(t, "a slow reader", err, api.Exhausted, "was not taken in within 1m0s", "ask for less")
		if took := time.Since(began); *told != 7 || took > tellWait+9*time.Second {
			t.Errorf("told %d pieces in %v", *told, took)
		}
		tell, told = slow(time.Second)
		if err := l.Read(t.Context(), &holdfastv1.LogsServiceReadRequest{}, tell); err != nil || *told < 30 {
			t.Errorf("one that takes half a minute: %d pieces, %v", *told, err)
		}
		// One that follows may be told for ever.
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
		defer cancel()
		if err := l.Read(ctx, &holdfastv1.LogsServiceReadRequest{Follow: true, LastLines: 1}, tell); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("one that follows: %v", err)
		}
		if l.scanning.mu.taken+l.following.mu.taken != 0 {
			t.Error("places are not left")
		}
	})
}

// secretsOf plants what must not be in a bundle, and the texts that carry it.
func secretsOf(t testing.TB) (secret []string, text string) {
	t.Helper()
	ca, err := pairing.NewCA("west", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	token, err := pairing.NewInviter(pairing.Site{CA: ca}).Invite(time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	key := string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: bytes.Repeat([]byte{7, 9, 200}, 60)}))
	body := strings.Split(key, "\n")[1]
	secret = []string{"hunter2", "s3cr3t", "Zm9vOmJhcg", "abc.def.ghi", "correct horse", body, token.Text(), "battery", "staple"}
	return secret, strings.Join([]string{
		"before", key, "joined with " + token.Text(), "password: hunter2", `{"password":"hunter2","x":1}`, "db_password=hunter2 user=x", "--password hunter2", `before: [/bin/freeze, "--password", "hunter2"]`,
		`PGPASSWORD='hunter2' psql`, "https://root:s3cr3t@esx1/sdk", "Authorization: Basic Zm9vOmJhcg==", "authorization: Bearer abc.def.ghi", `passphrase = "correct horse"`,
		`msg="{\"token\":\"s3cr3t\"}"`, "inline " + strings.ReplaceAll(key, "\n", `\n`), "secret: |", "  battery", "  staple", "after: 1", "api-key: s3cr3t # why", "access_key: [s3cr3t]", "credentials:", "- battery", "name: x",
	}, "\n")
}

// TestBundleHoldsNoSecret plants secrets wherever a bundle comes from, and looks through all of it.
func TestBundleHoldsNoSecret(t *testing.T) {
	secret, text := secretsOf(t)
	dir := t.TempDir()
	log, yaml := filepath.Join(dir, "vra.log"), filepath.Join(dir, "vra.yaml")
	writeLines(t, log+".1", "old", text)
	writeLines(t, log, text, stamped(1, "last"))
	writeLines(t, yaml, text)
	w := open(t, func(c *config.Sidecar) {
		c.Logs = []config.SidecarLog{{Name: "vra", Path: log}, {Name: "none", Path: filepath.Join(dir, "none.log")}}
		c.Configs = []string{yaml, c.TLS.Key, filepath.Join(dir, "absent.yaml")}
	})
	w.vra.set(func() { w.vra.groups = []*holdfastv1.Group{{Name: "shop", Reason: "password=hunter2"}} })
	own, err := os.ReadFile(w.cfg.TLS.Key)
	if err != nil {
		t.Fatal(err)
	}
	secret = append(secret, strings.Split(string(own), "\n")[1])
	if _, err := w.client(api.RoleOperator).Checkpoints.Create(t.Context(), &holdfastv1.CheckpointsServiceCreateRequest{Tag: "token=s3cr3t"}); err != nil {
		t.Fatal(err)
	}
	c := w.client(api.RoleAdmin)
	var all bytes.Buffer
	if err := c.Logs.Bundle(t.Context(), &holdfastv1.LogsServiceBundleRequest{}, func(m *holdfastv1.LogsServiceBundleResponse) error {
		all.Write(m.Tar)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	for _, s := range secret {
		if at := bytes.Index(all.Bytes(), []byte(s)); at >= 0 {
			t.Errorf("%q is in it: %q", s, all.Bytes()[max(0, at-60):min(all.Len(), at+60)])
		}
	}
	files := map[string]string{}
	for r := tar.NewReader(&all); ; {
		h, err := r.Next()
		if err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = string(text)
	}
	var m Manifest
	if err := json.Unmarshal([]byte(files["manifest.json"]), &m); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		"status.json": "shop", "metrics.txt": "holdfast_x 1", "configs/vra.yaml": "after: 1", "logs/vra.log": "msg=last", "audit.jsonl": "CheckpointsService/Create", "configs/key.pem": removed,
	} {
		if !strings.Contains(files[name], want) {
			t.Errorf("%s does not hold %q: %q", name, want, files[name])
		}
		if !slices.ContainsFunc(m.Files, func(f ManifestFile) bool {
			return f.Name == name && f.Bytes == int64(len(files[name])) && len(f.SHA256) == 64
		}) {
			t.Errorf("%s does not stand in the manifest: %+v", name, m.Files)
		}
	}
	if !slices.ContainsFunc(m.Files, func(f ManifestFile) bool { return f.Name == "logs/vra.log" && f.Removed > 20 }) {
		t.Errorf("what was removed is not counted: %+v", m.Files)
	}
	const absent = "no such file or directory"
	if want := []MissingFile{{"configs/absent.yaml", absent}, {"logs/none.log", absent}}; !slices.Equal(m.Missing, want) {
		t.Errorf("missing: %+v", m.Missing)
	}
	failure(t, "an operator's bundle", w.client(api.RoleOperator).Logs.Bundle(t.Context(), &holdfastv1.LogsServiceBundleRequest{}, nil), api.PermissionDenied)
	enough := errors.New("enough")
	if err := c.Logs.Bundle(t.Context(), &holdfastv1.LogsServiceBundleRequest{}, func(*holdfastv1.LogsServiceBundleResponse) error { return enough }); !errors.Is(err, enough) {
		t.Error(err)
	}
	w.vraEnd()
	all.Reset()
	if err := c.Logs.Bundle(t.Context(), &holdfastv1.LogsServiceBundleRequest{}, func(m *holdfastv1.LogsServiceBundleResponse) error { all.Write(m.Tar); return nil }); err != nil || !strings.Contains(all.String(), "the vra does not answer") {
		t.Errorf("without a vra: %v", err)
	}
}

// TestRedactLeaves what is no secret as it is.
func TestRedactLeaves(t *testing.T) {
	for line, want := range map[string]string{ // a value that certainly ends leaves what is behind it
		`{"password":"h\"u","x":1}`:              `{"password":[removed],"x":1}`,
		`msg="{\"token\":\"s\",\"keep\":1}" x=1`: `msg="{\"token\":[removed],\"keep\":1}" x=1`,
		`{"token":5,"x":1}`:                      `{"token":[removed],"x":1}`,
		"password: 'a' # why":                    "password: [removed] # why",
		"see https://a:b@c/d and e":              "see https://[removed]@c/d and e",
	} {
		var r redactor
		if got := r.line(line); got != want || r.count != 1 {
			t.Errorf("%s becomes %s, want %s", line, got, want)
		}
	}
	for _, line := range []string{
		"key: /etc/holdfast/key.pem", stamped(1, `"link resumed" from_seq=7`), "tls: {ca: /a, cert: /b, key: /c}", "-----BEGIN CERTIFICATE-----", "idempotency_key=abc", "nbd+unix:///vol1?socket=/run/x", "",
	} {
		var r redactor
		if got := r.line(line); got != line || r.count != 0 {
			t.Errorf("%q becomes %q", line, got)
		}
	}
}

// plants are the ways in which a secret stands in a text, and what it may not have in it there: %s is its place.
var plants = []struct{ text, without string }{
	{"password: %s", ""},
	{"password=%s", ""},
	{"db_password = %s # why", ""},
	{"Password for root: %s", ""},
	{`password: "%s"`, `"\`},
	{`password: "%s", user: root`, `"\`},
	{"password: '%s'", "'"},
	{`{"password":"%s","x":1}`, `"\`},
	{`{"a":"{\"pass\\u0077ord\":\"%s\",\"x\":1}"}`, `"\`},
	{`{"pass\u0077ord":"%s"}`, `"\`},
	{`msg="{\"token\":\"%s\"}" x=1`, `"\`},
	{`{"a":"{\"b\":\"{\\\"token\\\":\\\"%s\\\"}\"}"}`, `"\`},
	{"--password %s", ""},
	{`run: [/bin/x, "--password", "%s"]`, `"\`},
	{"--password=%s --user x", ""},
	{"- --password\n- %s", ""},
	{`- name: DB_PASSWORD` + "\n" + `  value: "%s"`, ""},
	{`{"name": "DB_PASSWORD", "value": "%s"}`, ""},
	{"https://root:%s@esx1/sdk?x=1", ` "`},
	{"https://%s@esx1/sdk", ` "`},
	{"postgres root:%s@tcp(db:5432)/x", ` "`},
	{"Authorization: Basic %s", ""},
	{"-H 'authorization: Bearer %s' https://x", "'"},
	{"secret: |\n  %s\n  %s\nafter: 1", ""},
	{"secret: >-\n\n  %s\nafter: 1", ""},
	{"  secret:\n    a: %s\n  after: 1", ""},
	{"credentials:\n- %s\n- %s", ""},
	{"password: one\n  %s\nafter: 1", ""},
	{"password: \"one\n  %s\"", `"`},
	{"PASSWORD='one\n%s'", "'"},
	{"-----BEGIN EC PRIVATE KEY-----\n%s\n-----END EC PRIVATE KEY-----", "-"},
	{"  -----BEGIN PRIVATE KEY-----\n  Proc-Type: x\n\n  %s\n  -----END PRIVATE KEY-----", "-"},
	{`key: "-----BEGIN PRIVATE KEY-----\n%s\n-----END PRIVATE KEY-----\n"`, "-"},
	{"access_key: [%s, x]", ""},
	{"cookie: {a: %s}", ""},
}

// FuzzRedact plants a secret into a text: nothing of it ever comes out, whatever it is made of and wherever it stands.
func FuzzRedact(f *testing.F) {
	_, text := secretsOf(f)
	for i := range plants {
		f.Add("before\n", "\nafter", "s3cr3t, horse; battery}x]", uint(i))
		f.Add(text+"\n", "", `it's 100% "so" \`, uint(i))
		f.Add(`msg="`, `" x=1`, "Zm9vOmJhcg+/AB==", uint(i))
		f.Add("", "", "a@b", uint(i))
	}
	f.Fuzz(func(t *testing.T, before, after, secret string, i uint) {
		one := plants[i%uint(len(plants))]
		const mark = "Qx7"
		// Each word of it bears a mark, by which it is found again.
		var words []string
		for _, word := range strings.Fields(strings.Map(func(c rune) rune {
			if c < ' ' || strings.ContainsRune(one.without, c) {
				return ' '
			}
			return c
		}, secret)) {
			words = append(words, mark+word+mark)
		}
		secret = strings.Join(words, " ")
		if strings.ContainsRune(one.without, ' ') {
			secret = strings.Join(words, "")
		}
		if secret == "" || strings.Contains(before+after, mark) {
			return
		}
		// What stands before it may be anything but a text that this one is a part of: the rest of a string, or of a key.
		before = strings.Map(func(c rune) rune {
			if strings.ContainsRune("'\"\\`", c) {
				return -1
			}
			return c
		}, before)
		if strings.Contains(one.text, "\n") { // its lines begin where they do
			before += "\n"
		}
		text := before + strings.ReplaceAll(one.text, "%s", secret) + after
		var r redactor
		out := r.text(text)
		if strings.Contains(out, mark) {
			t.Errorf("%q becomes %q", text, out)
		}
		if strings.Count(out, "\n") != strings.Count(text, "\n") {
			t.Errorf("%q becomes %q: another number of lines", text, out)
		}
	})
}

// TestRedactCut: where what is shown begins in the middle of a secret, the rest of it does not come out.
func TestRedactCut(t *testing.T) {
	path := filepath.Join(t.TempDir(), "vra.log")
	key := string(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: bytes.Repeat([]byte{7, 9, 200}, 49)}))
	body := strings.Split(strings.TrimSpace(key), "\n")
	writeLines(t, path+".1", "one", body[0])
	writeLines(t, path, body[1:]...)
	writeLines(t, path, "secret: |", "  hunter2", "  hunter3", "last")
	for n := 1; n <= len(body)+5; n++ {
		found, end, err := readLog(t.Context(), path, logQuery{lines: n, bytes: readDefault})
		end.close()
		if err != nil || len(found.kept) != n {
			t.Fatalf("%d lines: %q, %v", n, found.kept, err)
		}
		for _, line := range found.kept {
			line = found.clean.line(line)
			if strings.Contains(line, "hunter") || slices.ContainsFunc(body[1:len(body)-1], func(s string) bool { return strings.Contains(line, s) }) {
				t.Errorf("of the last %d lines %q comes out", n, line)
			}
		}
	}
	// Without what was before, too: what looks like a piece of a key is no loss to anybody.
	var r redactor
	if got := r.line("  " + body[1]); got != removed {
		t.Errorf("%q is left", got)
	}
	// A line that begins with its time is never the rest of another.
	for _, line := range []string{body[0], "secret: |", "PASSWORD='x", "- --password"} {
		r.line(line)
		if got := r.line(stamped(1, "x")); got != stamped(1, "x") {
			t.Errorf("after %q: %q", line, got)
		}
	}
}

func FuzzEachLine(f *testing.F) {
	f.Add([]byte("a\nb\nc"))
	f.Add(bytes.Repeat([]byte("x"), maxLine+1))
	f.Fuzz(func(t *testing.T, p []byte) {
		n := 0
		taken, err := eachLine(bytes.NewReader(p), func(line string) {
			n++
			if len(line) > 3*maxLine+3 || strings.Contains(line, "\n") {
				t.Errorf("a line of %d bytes", len(line))
			}
			lineTime(line)
		})
		if err != nil || n != bytes.Count(p, []byte("\n")) || taken != int64(bytes.LastIndexByte(p, '\n')+1) {
			t.Errorf("%d lines of %d bytes in %q, %v", n, taken, p, err)
		}
	})
}
