package api

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
)

// opener opens views of which each has another id.
func opener() *vra {
	return &vra{open: func(_ context.Context, nth int) (*holdfastv1.ViewsServiceOpenResponse, error) {
		return &holdfastv1.ViewsServiceOpenResponse{View: &holdfastv1.View{Id: fmt.Sprint("v", nth), Volumes: []*holdfastv1.ViewVolume{{Name: "d", Bytes: 7}}}}, nil
	}}
}

// TestKeysOutliveTheServer: what was answered to a key is answered again by the next process, whatever happened to the file in between
// but for what is damaged.
func TestKeysOutliveTheServer(t *testing.T) {
	dir := t.TempDir()
	file, v := filepath.Join(dir, "keys.jsonl"), opener()
	var said bytes.Buffer
	serve := func(test func(open func(key, want string))) {
		t.Helper()
		path := filepath.Join(t.TempDir(), "s")
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() {
			done <- ServeKeeping(ctx, l, Handlers{Views: v}, []int{os.Getuid()}, file, slog.New(slog.NewTextHandler(&said, nil)))
		}()
		c := DialUnix(path)
		test(func(key, want string) {
			t.Helper()
			res, err := c.Views.Open(t.Context(), &holdfastv1.ViewsServiceOpenRequest{IdempotencyKey: key})
			if err != nil || res.View.Id != want || len(res.View.Volumes) != 1 || res.View.Volumes[0].Bytes != 7 {
				t.Errorf("%s: %v, %v, want %s", key, res, err, want)
			}
		})
		c.Close() // first: else the server gives it a second
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	serve(func(open func(key, want string)) {
		open("a", "v1")
		open("b", "v2")
		open("a", "v1")
		open("", "v3") // without one, each is a call
	})
	serve(func(open func(key, want string)) {
		open("b", "v2")
		open("a", "v1")
		open("c", "v4")
	})
	if said.Len() > 0 {
		t.Errorf("it complains: %s", &said)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	lines := bytes.SplitAfter(text, []byte("\n"))
	lines[1][bytes.Index(lines[1], []byte(`"answer":"`))+12] ^= 1
	torn := append(bytes.Join(lines, nil), lines[2][:20]...)
	if err := os.WriteFile(file, torn, 0o600); err != nil {
		t.Fatal(err)
	}
	serve(func(open func(key, want string)) {
		open("c", "v4")
		open("a", "v1")
		open("b", "v5") // damaged
	})
	if !strings.Contains(said.String(), "damaged_lines=2") {
		t.Errorf("it says %s", &said)
	}
	serve(func(open func(key, want string)) {
		open("b", "v5")
		open("c", "v4")
	})
}

// TestKeysFileFails: calls are answered all the same, what this costs is logged, and it is tried again.
func TestKeysFileFails(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	var said bytes.Buffer
	o := newOnce()
	if err := o.keep(filepath.Join(dir, "keys.jsonl"), slog.New(slog.NewTextHandler(&said, nil))); err != nil {
		t.Fatal(err)
	}
	answer := func(id string) func() (connect.AnyResponse, error) {
		return func() (connect.AnyResponse, error) {
			return connect.NewResponse(&holdfastv1.ViewsServiceOpenResponse{View: &holdfastv1.View{Id: id}}), nil
		}
	}
	call := func(key string, complains bool) {
		t.Helper()
		said.Reset()
		res, err := o.do(t.Context(), "/holdfast.v1.ViewsService/Open", key, nil, answer(key))
		if err != nil || res.Any().(*holdfastv1.ViewsServiceOpenResponse).View.Id != key {
			t.Errorf("%s: %v, %v", key, res, err)
		}
		if complains != (said.Len() > 0) {
			t.Errorf("%s: it says %q", key, said.String())
		}
	}
	known := func(want ...string) {
		t.Helper()
		var got []string
		if err := o.file.read(func(one keyed, _ connect.AnyResponse) { got = append(got, one.Key) }); err != nil || strings.Join(got, " ") != strings.Join(want, " ") {
			t.Errorf("the file knows %q, %v, want %q", got, err, want)
		}
	}
	call("a", false)
	o.file.file.Close() // a write fails
	call("b", false)
	known("a", "b")
	r, w, err := os.Pipe() // a sync fails
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	o.file.close()
	o.file.file = w
	call("c", false)
	known("a", "b", "c")
	o.file.close()
	if err := os.Rename(dir, dir+"-away"); err != nil { // no file can be made
		t.Fatal(err)
	}
	call("d", true)
	if err := os.Rename(dir+"-away", dir); err != nil {
		t.Fatal(err)
	}
	call("e", false)
	known("a", "b", "c", "d", "e")
	o.file.close()
	if err := os.Remove(o.file.path); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(o.file.path, "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	call("f", true)
	if err := newOnce().keep(o.file.path, slog.New(slog.DiscardHandler)); err == nil {
		t.Error("a folder is read as the file")
	}
	call(strings.Repeat("k", keyLine), true) // too long to be kept
	if err := o.close(); err != nil {
		t.Error(err)
	}
}

// TestKeysFileIsBounded: it holds no more than what is remembered, and a little.
func TestKeysFileIsBounded(t *testing.T) {
	o := newOnce()
	if err := o.keep(filepath.Join(t.TempDir(), "keys.jsonl"), slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	defer o.close()
	volume := &holdfastv1.ViewVolume{Name: strings.Repeat("x", 45<<10)}
	for i := range 140 {
		o.do(t.Context(), "/holdfast.v1.ViewsService/Open", fmt.Sprint(i%50), nil, func() (connect.AnyResponse, error) {
			return connect.NewResponse(&holdfastv1.ViewsServiceOpenResponse{View: &holdfastv1.View{Volumes: []*holdfastv1.ViewVolume{volume}}}), nil
		})
		old := "/holdfast.v1.ViewsService/Open" + keySeparator + fmt.Sprint(i%50-1)
		o.forget(old, o.mu.answers[old])
	}
	if fi, err := os.Stat(o.file.path); err != nil || fi.Size() > keysMost+keyLine || fi.Size() != o.file.size {
		t.Errorf("%v, %v", fi, err)
	}
}

func FuzzKeysFile(f *testing.F) {
	f.Add([]byte(`{"procedure":"/holdfast.v1.ViewsService/Close","key":"k","answer":"","sum":1}` + "\n"))
	f.Add([]byte("{}\n\n\xff"))
	path := filepath.Join(f.TempDir(), "keys")
	f.Fuzz(func(t *testing.T, p []byte) {
		if err := os.WriteFile(path, p, 0o600); err != nil {
			t.Fatal(err)
		}
		k := keys{path: path, log: slog.New(slog.DiscardHandler)}
		k.read(func(one keyed, res connect.AnyResponse) {
			if one.Sum != one.sum() || len(one.Key) > maxKey || res == nil {
				t.Errorf("%+v", one)
			}
		})
	})
}

// TestKeyOfAnotherRequest: who uses a key again for something else is told so, and not that it is done; after a restart too.
func TestKeyOfAnotherRequest(t *testing.T) {
	v := opener()
	c := DialUnix(start(t, v, os.Getuid()))
	defer c.Close()
	open := func(group string) error {
		_, err := c.Views.Open(t.Context(), &holdfastv1.ViewsServiceOpenRequest{Group: group, IdempotencyKey: "k"})
		return err
	}
	if err := errors.Join(open("shop"), open("shop")); err != nil {
		t.Fatal(err)
	}
	if f := AsFailure(open("till")); f == nil || f.Code != InvalidArgument || !strings.Contains(f.Error(), "another request before; draw a new key") || v.opened != 1 {
		t.Errorf("%+v after %d calls", f, v.opened)
	}

	file := filepath.Join(t.TempDir(), "keys.jsonl")
	// As the release before requests were known wrote it, and as the first one did that knew them.
	old := `{"procedure":"/holdfast.v1.ViewsService/Open","key":"old","answer":"CgQKAnY3","sum":834899057}` + "\n" +
		`{"procedure":"/holdfast.v1.ViewsService/Open","key":"golden","request":"7baHUqDzI380xxL+GdxYoQ==","answer":"CgQKAnY3","sum":1831581870}` + "\n"
	if err := os.WriteFile(file, []byte(old), 0o600); err != nil {
		t.Fatal(err)
	}
	for nth := range 3 {
		o, calls := newOnce(), 0
		if err := o.keep(file, slog.New(slog.DiscardHandler)); err != nil {
			t.Fatal(err)
		}
		do := func(key, group, checkpoint string, want Code) {
			t.Helper()
			res, err := o.do(t.Context(), "/holdfast.v1.ViewsService/Open", key, requestSum(&holdfastv1.ViewsServiceOpenRequest{Group: group, Checkpoint: checkpoint}), func() (connect.AnyResponse, error) {
				calls++
				return connect.NewResponse(&holdfastv1.ViewsServiceOpenResponse{}), nil
			})
			if f := AsFailure(err); want == "" && (err != nil || res == nil) || want != "" && (f == nil || f.Code != want) {
				t.Errorf("start %d: %s of %s: %v, %v, want %q", nth, key, group, res, err, want)
			}
		}
		do("old", "shop", "", "")
		do("old", "till", "", "")
		do("golden", "shop", "latest", "")
		do("golden", "shop", "", InvalidArgument)
		do("golden", "till", "latest", InvalidArgument)
		do("new", "shop", "", "")
		do("new", "till", "", InvalidArgument)
		if calls > 1 || nth > 0 && calls > 0 {
			t.Errorf("start %d: %d calls", nth, calls)
		}
		if nth == 1 { // a new file has in it what the old one had
			if err := o.file.rewrite(o.lines()); err != nil {
				t.Fatal(err)
			}
		}
		if err := o.close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestACallUnderWayKeepsItsKey however many come after it: a repetition waits for it.
func TestACallUnderWayKeepsItsKey(t *testing.T) {
	o, fails := newOnce(), errors.New("not this time")
	res := connect.NewResponse(&holdfastv1.ViewsServiceOpenResponse{})
	for _, want := range []error{nil, fails} {
		began, end, done := make(chan struct{}), make(chan struct{}), make(chan error)
		go func() {
			_, err := o.do(t.Context(), "p", "long", nil, func() (connect.AnyResponse, error) {
				close(began)
				<-end
				return res, want
			})
			done <- err
		}()
		<-began
		for i := range 2 * onceKeys {
			o.do(t.Context(), "p", fmt.Sprint(i), nil, func() (connect.AnyResponse, error) { return res, nil })
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if _, err := o.do(ctx, "p", "long", nil, func() (connect.AnyResponse, error) { panic("it runs twice") }); AsFailure(err).Code != Canceled {
			t.Error(err)
		}
		close(end)
		if err := <-done; !errors.Is(err, want) {
			t.Errorf("%v, want %v", err, want)
		}
		if len(o.mu.answers) != len(o.mu.order) || len(o.mu.order) > onceKeys {
			t.Errorf("%d answers, %d keys", len(o.mu.answers), len(o.mu.order))
		}
		o.forget("p"+keySeparator+"long", o.mu.answers["p"+keySeparator+"long"])
	}
	kept := o.mu.order[0]
	if o.forget(kept, &answer{}); o.mu.order[0] != kept {
		t.Error("an answer is forgotten for another")
	}
}
