package sidecar

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/holdfast-dr/holdfast/control/pairing"
)

func TestCallsArePassedOn(t *testing.T) {
	w := open(t, nil)
	w.vra.set(func() { w.vra.groups = []*holdfastv1.Group{{Name: "shop", State: api.StateProtected}} })
	c := w.client(api.RoleMonitor)
	res, err := c.Status.Get(t.Context(), &holdfastv1.StatusServiceGetRequest{})
	if err != nil || res.Site != "west" || len(res.Groups) != 1 {
		t.Errorf("Get: %v, %v", res, err)
	}
	about, err := c.Status.About(t.Context(), &holdfastv1.StatusServiceAboutRequest{})
	if err != nil || about.Version != "v9.9" || about.Sidecar.GetId() != "vra-1" || about.Sidecar.GetStarted() == nil {
		t.Errorf("About: %v, %v", about, err)
	}
	list, err := c.Checkpoints.List(t.Context(), &holdfastv1.CheckpointsServiceListRequest{})
	if err != nil || list.NextPageToken != "7" {
		t.Errorf("List: %v, %v", list, err)
	}
	_, err = c.Checkpoints.Get(t.Context(), &holdfastv1.CheckpointsServiceGetRequest{})
	failure(t, "what the vra says", err, api.NotFound, "no such checkpoint", "see the list")
	_, err = c.Checkpoints.Create(t.Context(), &holdfastv1.CheckpointsServiceCreateRequest{})
	failure(t, "a monitor's cut", err, api.PermissionDenied, "west/monitor/ann may not call CheckpointsService/Create", "ask as manager, admin, operator")
	_, err = c.Status.Get(t.Context(), &holdfastv1.StatusServiceGetRequest{Group: strings.Repeat("x", maxBody+1)})
	failure(t, "too large", err, api.Exhausted)
	_, err = c.Views.List(t.Context(), &holdfastv1.ViewsServiceListRequest{})
	failure(t, "what this vra does not know", err, api.Unimplemented, fmt.Sprintf("the vra (v9.9, services %d.%d) does not know this call", api.Major, api.Minor), "update the vra")
}

// TestUnixSocket: users of the machine who own the sidecar may ask for everything, in one place.
func TestUnixSocket(t *testing.T) {
	w := open(t, nil)
	c := api.DialUnix(w.cfg.Socket)
	defer c.Close()
	if _, err := c.Status.Get(t.Context(), &holdfastv1.StatusServiceGetRequest{}); err != nil {
		t.Error(err)
	}
	if _, err := c.Checkpoints.Unpin(t.Context(), &holdfastv1.CheckpointsServiceUnpinRequest{Id: "7"}); err != nil {
		t.Error(err)
	}
	if _, err := c.Logs.List(t.Context(), &holdfastv1.LogsServiceListRequest{}); err != nil {
		t.Error(err)
	}
	if info, err := os.Stat(w.cfg.Socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
	if got := w.records(); len(got) != 2 || !strings.HasPrefix(got[0].Who, "uid ") || got[0].From != "" || got[0].Port != "local" {
		t.Errorf("%+v", got)
	}
	other := *w.cfg
	other.Listen = config.SidecarListen{Logs: "127.0.0.1:0", Commands: "127.0.0.1:0", Checkpoints: "127.0.0.1:0"}
	other.DataDir = t.TempDir()
	if _, err := Open(&other, w.car.log); err == nil || !strings.Contains(err.Error(), "another process answers on it") {
		t.Errorf("a second sidecar at the socket: %v", err)
	}
}

func TestHealthAndMetrics(t *testing.T) {
	w := open(t, nil)
	c := w.plain(w.trust(api.RoleMonitor, "mon").Client(api.RoleSidecar))
	get := func(method, path, body string) string {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "https://"+w.addresses().Commands+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/json")
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		text, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	health := func() string {
		return get("POST", "/grpc.health.v1.Health/Check", `{"service":"holdfast.v1.StatusService"}`)
	}
	if got := health(); !strings.Contains(got, `"SERVING_STATUS_SERVING"`) {
		t.Error(got)
	}
	if got := get("POST", "/grpc.health.v1.Health/Check", `{"service":"x"}`); !strings.Contains(got, `no service \"x\" here`) {
		t.Error(got)
	}
	got := get("GET", "/metrics", "")
	for _, want := range []string{"holdfast_x 1\n", "holdfast_sidecar_vra_up 1\n", `holdfast_sidecar_certificate_expiry_timestamp_seconds{certificate="own"}`, "holdfast_sidecar_calls_total 3"} {
		if !strings.Contains(got, want) {
			t.Errorf("metrics lack %s:\n%s", want, got)
		}
	}
	w.vraEnd()
	if got := health(); !strings.Contains(got, `"SERVING_STATUS_NOT_SERVING"`) {
		t.Error(got)
	}
	if got := get("GET", "/metrics", ""); !strings.Contains(got, "holdfast_sidecar_vra_up 0\n") || strings.Contains(got, "holdfast_x") {
		t.Error(got)
	}
}

// records are the audit records of the world's sidecar.
func (w *world) records() (all []Record) {
	w.t.Helper()
	text, err := os.ReadFile(filepath.Join(w.cfg.DataDir, auditName))
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := checkRecords(text, func(r Record) { all = append(all, r) }); err != nil {
		w.t.Error(err)
	}
	return all
}

// TestEachChangeIsWrittenDown makes every call that changes something, and every one that does not, and looks at
// what the audit says: who, what, with which key, and what became of it.
func TestEachChangeIsWrittenDown(t *testing.T) {
	w := open(t, nil)
	c := w.plain(w.trust(api.RoleAdmin, "ann").Client(api.RoleSidecar))
	for _, p := range api.Procedures() {
		address := w.addresses().Commands
		if rules[p.Path].ports == Checkpoints {
			address = w.addresses().Checkpoints
		}
		if p.Streams || rules[p.Path].ports == Logs {
			continue
		}
		before := len(w.records())
		body := `{}`
		if p.Keyed {
			body = `{"idempotencyKey":"k-` + short(p.Path) + `"}`
		}
		res, err := c.Post("https://"+address+p.Path, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		var said struct{ Code string }
		json.NewDecoder(res.Body).Decode(&said)
		res.Body.Close()
		result := said.Code
		if result == "" {
			result = "ok"
		}
		now := w.records()[before:]
		if !rules[p.Path].changes {
			if len(now) != 0 {
				t.Errorf("%s is written down: %+v", p.Path, now)
			}
			continue
		}
		if len(now) != 2 || now[0].Event != auditAsked || now[1].Event != auditAnswered || now[1].Asked != now[0].Number || now[1].Result != result {
			t.Errorf("%s: %+v, want it asked, and answered %s", p.Path, now, result)
			continue
		}
		for _, r := range now {
			if r.Who != "west/admin/ann" || r.What != short(p.Path) || p.Keyed && r.Key != "k-"+short(p.Path) || r.From == "" || r.Port == "" {
				t.Errorf("%s: %+v", p.Path, r)
			}
		}
	}
	before := len(w.records())
	_, err := w.client(api.RoleMonitor).Checkpoints.Unpin(t.Context(), &holdfastv1.CheckpointsServiceUnpinRequest{})
	failure(t, "a monitor", err, api.PermissionDenied)
	if now := w.records()[before:]; len(now) != 1 || now[0].Event != auditRefused || now[0].Who != "west/monitor/ann" {
		t.Errorf("who may not is written down as %+v", now)
	}
	w.stop()
	if n, first, err := CheckAudit(w.cfg.DataDir); err != nil || first != 1 || n < 20 {
		t.Errorf("%d, %d, %v", n, first, err)
	}
}

// TestNotWrittenDownNotDone: when the audit fails nothing is passed on.
func TestNotWrittenDownNotDone(t *testing.T) {
	w := open(t, nil)
	w.car.audit.mu.Lock()
	w.car.audit.mu.file.Close()
	w.car.audit.mu.Unlock()
	c := w.client(api.RoleOperator)
	_, err := c.Checkpoints.Create(t.Context(), &holdfastv1.CheckpointsServiceCreateRequest{Tag: "a"})
	failure(t, "a cut that cannot be written down", err, api.Unavailable, "written down first", "data_dir")
	if slices.Contains(w.vra.calls(), "Checkpoints.Create a") {
		t.Error("it was passed on")
	}
	if _, err := c.Checkpoints.Create(t.Context(), &holdfastv1.CheckpointsServiceCreateRequest{Tag: "b"}); err != nil {
		t.Errorf("the next time: %v", err)
	}
}

// TestKeysOutliveTheSidecar: it is the vra that remembers them.
func TestKeysOutliveTheSidecar(t *testing.T) {
	w := open(t, nil)
	key := api.NewKey()
	cut := func() string {
		t.Helper()
		c := w.client(api.RoleOperator)
		res, err := c.Checkpoints.Create(t.Context(), &holdfastv1.CheckpointsServiceCreateRequest{Tag: "a", IdempotencyKey: key})
		if err != nil {
			t.Fatal(err)
		}
		return res.Checkpoint.Id
	}
	first := cut()
	w.stop()
	w.start()
	if again := cut(); again != first {
		t.Errorf("the same key gave %s and %s", first, again)
	}
	local := api.DialUnix(w.cfg.Socket)
	defer local.Close()
	if res, err := local.Checkpoints.Create(t.Context(), &holdfastv1.CheckpointsServiceCreateRequest{Tag: "a", IdempotencyKey: key}); err != nil || res.Checkpoint.Id != first {
		t.Errorf("another way: %v, %v", res, err)
	}
	if n := len(slices.DeleteFunc(w.vra.calls(), func(s string) bool { return s != "Checkpoints.Create a" })); n != 1 {
		t.Errorf("%d cuts", n)
	}
}

// TestVersions: an older vra of the same major version is spoken to, and what it does not know is said, be it a call or what a
// caller newer than both asks for; one of another major version is refused with words, and taken once it was updated.
func TestVersions(t *testing.T) {
	w := open(t, nil)
	speaks := fmt.Sprintf("speaks version %d.%d", api.Major+1, api.Minor)
	c := w.client(api.RoleOperator)
	w.vraEnd()
	w.vra.set(func() { w.vra.older = true })
	w.vraEnd = w.vra.serve(t, w.cfg.VRASocket)
	if _, err := c.Status.Get(t.Context(), &holdfastv1.StatusServiceGetRequest{}); err != nil {
		t.Errorf("an older vra: %v", err)
	}
	about, err := c.Status.About(t.Context(), &holdfastv1.StatusServiceAboutRequest{})
	if err != nil || about.ApiMajor != 1 || about.ApiMinor != 0 || about.Sidecar == nil {
		t.Errorf("an older vra is %v, %v", about, err)
	}
	_, err = c.Checkpoints.List(t.Context(), &holdfastv1.CheckpointsServiceListRequest{})
	failure(t, "what an older vra does not know", err, api.Unimplemented, "services 1.0", "update the vra")

	newer := &holdfastv1.CheckpointsServiceCreateRequest{Tag: "by the newer"}
	newer.ProtoReflect().SetUnknown([]byte("\xf8\xf0\x04\x01")) // field 9999 is 1

	w.vraEnd()
	w.vra.set(func() { w.vra.older = false })
	w.vraEnd = w.vra.serve(t, w.cfg.VRASocket)
	_, err = c.Checkpoints.Create(t.Context(), newer)
	failure(t, "a field that an older vra does not know", err, api.Precondition, "the request has fields that this vra does not know", "update the vra")
	if slices.ContainsFunc(w.vra.calls(), func(s string) bool { return strings.Contains(s, newer.Tag) }) {
		t.Error("it is done without what nobody knows")
	}

	w.vraEnd()
	w.vra.set(func() { w.vra.older, w.vra.major = false, api.Major+1 })
	w.vraEnd = w.vra.serve(t, w.cfg.VRASocket)
	_, err = c.Status.Get(t.Context(), &holdfastv1.StatusServiceGetRequest{})
	failure(t, "another major version", err, api.Precondition, speaks, "update the sidecar")
	err = c.Watch.Watch(t.Context(), &holdfastv1.WatchServiceWatchRequest{}, func(m *holdfastv1.WatchServiceWatchResponse) error {
		if !strings.Contains(m.Unreachable, speaks) {
			t.Errorf("watchers are told %v", m)
		}
		return io.EOF
	})
	if !errors.Is(err, io.EOF) {
		t.Error(err)
	}
	w.vraEnd()
	w.vra.set(func() { w.vra.older, w.vra.major = false, api.Major })
	w.vraEnd = w.vra.serve(t, w.cfg.VRASocket)
	if _, err := c.Status.Get(t.Context(), &holdfastv1.StatusServiceGetRequest{}); err != nil {
		t.Errorf("once it was updated: %v", err)
	}
}

// TestVRAIsAway: what to do is said, and no more is needed than that it comes back.
func TestVRAIsAway(t *testing.T) {
	w := open(t, nil)
	c := w.client(api.RoleOperator)
	w.vraEnd()
	_, err := c.Status.Get(t.Context(), &holdfastv1.StatusServiceGetRequest{})
	failure(t, "a vra that is away", err, api.Unavailable, "the vra does not answer at "+w.cfg.VRASocket, "see that the vra runs")
	w.vraEnd = w.vra.serve(t, w.cfg.VRASocket)
	if _, err := c.Status.Get(t.Context(), &holdfastv1.StatusServiceGetRequest{}); err != nil {
		t.Errorf("once it is back: %v", err)
	}
}

// TestVRAHangs: one that is still opening takes connections and answers nothing, and one that hangs does not answer a question. Either
// way the caller hears what to do.
func TestVRAHangs(t *testing.T) {
	w := open(t, nil)
	const wait = 50 * time.Millisecond
	w.car.vra.knock = wait
	for _, p := range w.car.ports {
		p.gate.lookingWait = wait
	}
	c := w.client(api.RoleOperator)
	w.vra.set(func() { w.vra.hangs = true })
	_, err := c.Status.Get(t.Context(), &holdfastv1.StatusServiceGetRequest{})
	failure(t, "a vra that hangs", err, api.Unavailable, "did not answer in time", "still opening", "restart it")
	watched := &status{vra: w.car.vra, lookWait: wait}
	_, err = watched.groups(t.Context())
	failure(t, "what watchers of one that hangs are told", err, api.Unavailable, "the vra at "+w.cfg.VRASocket+" has not told how its groups stand within 50ms", "if it hangs, restart it")
	_, err = watched.groups(lastMoment{t.Context()})
	failure(t, "the watcher's own end", err, api.TimedOut)
	_, err = watched.Get(lastMoment{t.Context()}, &holdfastv1.StatusServiceGetRequest{})
	failure(t, "the caller's own time", err, api.TimedOut)
	w.vraEnd()
	os.Remove(w.cfg.VRASocket)
	l, err := net.Listen("unix", w.cfg.VRASocket) // nobody accepts
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, err = c.Status.Get(t.Context(), &holdfastv1.StatusServiceGetRequest{})
	failure(t, "a vra that is still opening", err, api.Unavailable, "did not answer in time", "still opening")
	_, err = watched.groups(t.Context())
	failure(t, "what watchers of one that is still opening are told", err, api.Unavailable, "has not told how its groups stand", "still opening")
}

// lastMoment is the context of a caller whose time is up as soon as somebody looks at the clock, and who has not noticed.
type lastMoment struct{ context.Context }

func (lastMoment) Deadline() (time.Time, bool) { return time.Now(), true }

// TestCertificatesAreReadAgain: who came with the old CA is refused from then on, on connections of before too.
func TestCertificatesAreReadAgain(t *testing.T) {
	w := open(t, nil)
	watch := func() (ended chan error) {
		c, heard := w.client(api.RoleMonitor), make(chan struct{}, 1)
		ended = make(chan error, 1)
		go func() {
			ended <- c.Watch.Watch(t.Context(), &holdfastv1.WatchServiceWatchRequest{}, func(*holdfastv1.WatchServiceWatchResponse) error {
				heard <- struct{}{}
				return nil
			})
		}()
		<-heard
		return ended
	}
	ask := func(c *api.Client) error {
		_, err := c.Status.Get(t.Context(), &holdfastv1.StatusServiceGetRequest{})
		return err
	}
	renew := func() {
		t.Helper()
		leaf, err := w.ca.IssueAt(pairing.Identity{Role: api.RoleSidecar, ID: "vra-1"}, pairing.Hosts{"127.0.0.1"}, time.Now(), time.Hour)
		if err := errors.Join(err, os.Remove(w.cfg.TLS.CA), os.Remove(w.cfg.TLS.Cert), os.Remove(w.cfg.TLS.Key)); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(w.ca.Save(w.cfg.TLS.CA, filepath.Join(t.TempDir(), "ca-key.pem")), leaf.Save(w.cfg.TLS.Cert, w.cfg.TLS.Key), w.car.Reload()); err != nil {
			t.Fatal(err)
		}
	}
	ended, of := watch(), w.client(api.RoleAdmin)
	if err := ask(of); err != nil {
		t.Fatal(err)
	}
	renew()
	select {
	case err := <-ended:
		t.Errorf("a new certificate of the same CA ends a stream: %v", err)
	default:
	}
	var err error
	if w.ca, err = pairing.NewCA("west", time.Now()); err != nil {
		t.Fatal(err)
	}
	renew()
	select {
	case err := <-ended:
		failure(t, "a stream of before", err, api.Unavailable)
	case <-time.After(20 * time.Second):
		t.Fatal("a stream of before goes on")
	}
	failure(t, "with a certificate of before", ask(of), api.Unavailable)
	if said := w.said.String(); strings.Count(said, "reason=wrong-ca certificate=west/monitor/ann") != 1 || !strings.Contains(said, "reason=wrong-ca certificate=west/admin/ann") {
		t.Errorf("the log does not name who was refused: %s", said)
	}
	if err := ask(w.client(api.RoleAdmin)); err != nil {
		t.Errorf("with one of the new CA: %v", err)
	}
	for _, p := range w.car.ports {
		if c := p.limited; c != nil {
			c.mu.Lock()
			if len(c.mu.known) > c.mu.open {
				t.Errorf("%d connections are judged, %d are open", len(c.mu.known), c.mu.open)
			}
			c.mu.Unlock()
		}
	}
	if err := os.WriteFile(w.cfg.TLS.Cert, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := w.car.Reload(); err == nil {
		t.Error("a file that holds nothing is read")
	}
	if _, err := w.client(api.RoleAdmin).Status.Get(t.Context(), &holdfastv1.StatusServiceGetRequest{}); err != nil {
		t.Errorf("the present ones do not stay: %v", err)
	}
	if _, err := Open(w.cfg, w.car.log); err == nil {
		t.Error("it starts without a certificate")
	}
}
