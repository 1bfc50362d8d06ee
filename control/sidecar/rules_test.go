package sidecar

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/pairing"
)

// others are the calls that are not of our services.
var others = []string{
	"/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch", "/metrics",
	"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
}

// TestEveryCallHasARule holds the table to the services as they are described: none is missing, none is left
// over, and what is said to change something is what does.
func TestEveryCallHasARule(t *testing.T) {
	known := slices.Clone(others)
	for _, p := range api.Procedures() {
		known = append(known, p.Path)
		r, ok := rules[p.Path]
		if !ok {
			t.Errorf("%s stands in no rule", p.Path)
		}
		if r.changes != p.Changes {
			t.Errorf("%s changes something: %v, and the services say %v", p.Path, r.changes, p.Changes)
		}
		if p.Streams && r.changes {
			t.Errorf("%s changes something and is not written down: it is a stream", p.Path)
		}
		if p.Bytes && r.ports != Logs {
			t.Errorf("%s can carry bytes, and is no log", p.Path)
		}
	}
	if len(known) < 35 {
		t.Errorf("only %d calls", len(known))
	}
	for path, r := range rules {
		if !slices.Contains(known, path) {
			t.Errorf("%s is no call", path)
		}
		if r.ports == 0 || len(r.roles) == 0 || slices.Contains(r.roles, api.RoleVRA) || slices.Contains(r.roles, api.RoleSidecar) {
			t.Errorf("%s: %+v", path, r)
		}
		if r.changes && slices.Contains(r.roles, api.RoleMonitor) {
			t.Errorf("who only looks may call %s", path)
		}
	}
}

// TestEveryCallAndRole asks for everything, as everybody, everywhere, and compares what comes with the table.
func TestEveryCallAndRole(t *testing.T) {
	w := open(t, nil)
	paths := slices.Clone(others)
	for _, p := range api.Procedures() {
		paths = append(paths, p.Path)
	}
	ports := map[Port]string{Commands: w.addresses().Commands, Checkpoints: w.addresses().Checkpoints, Logs: w.addresses().Logs}
	roles := []string{api.RoleManager, api.RoleAdmin, api.RoleOperator, api.RoleMonitor, api.RoleVRA, api.RoleSidecar, "stranger"}
	tried := 0
	for _, role := range roles {
		c := w.plain(w.trust(role, "ann").Client(api.RoleSidecar))
		for at, address := range ports {
			for _, path := range paths {
				tried++
				code := ask(t, c, "https://"+address, path)
				r := rules[path]
				want := "ok"
				switch {
				case !slices.Contains(rolesAt(at), role):
					want = "refused"
				case r.ports&at == 0:
					want = "unimplemented"
				case !slices.Contains(r.roles, role):
					want = "permission_denied"
				}
				if code != want {
					t.Errorf("%s at %s as %s: %s, want %s", path, at, role, code, want)
				}
			}
		}
	}
	if tried < 7*3*35 {
		t.Errorf("only %d were tried", tried)
	}
}

// ask makes a call with an empty request and tells what came: ok stands for whatever was let through.
func ask(t *testing.T, c *http.Client, base, path string) string {
	t.Helper()
	method, kind, body := http.MethodPost, "application/json", "{}"
	switch {
	case path == "/metrics":
		method, body = http.MethodGet, ""
	case strings.HasPrefix(path, "/grpc."):
		kind, body = "application/grpc", "\x00\x00\x00\x00\x00"
	case streams[path]:
		kind, body = "application/connect+json", "\x00\x00\x00\x00\x02{}"
	}
	req, err := http.NewRequestWithContext(t.Context(), method, base+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", kind)
	res, err := c.Do(req)
	if err != nil {
		return "refused" // in the handshake; how that shows depends on who was quicker
	}
	defer res.Body.Close()
	text := make([]byte, 500)
	n, _ := io.ReadAtLeast(res.Body, text, 1) // a watch goes on for ever
	said := string(text[:n])
	switch {
	case strings.Contains(said, "is not offered at the port"), strings.Contains(res.Header.Get("Grpc-Message")+res.Trailer.Get("Grpc-Message"), "is not offered"):
		return "unimplemented"
	case strings.Contains(said, "may not call"), strings.Contains(res.Header.Get("Grpc-Message")+res.Trailer.Get("Grpc-Message"), "may not call"):
		return "permission_denied"
	}
	return "ok"
}

// TestLean holds the program to what it may be made of.
func TestLean(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "../../cmd/vra-sidecar").CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	const module = "github.com/holdfast-dr/holdfast/"
	for pkg := range strings.FieldsSeq(string(out)) {
		for _, bad := range []string{module + "datapath", module + "journal", module + "wire", module + "control/hypervisor", module + "bench", "database/sql", "modernc.org",
			"github.com/jackc", "github.com/vmware", "github.com/digitalocean", "github.com/dgraph-io", "os/exec", "plugin"} {
			if pkg == bad || strings.HasPrefix(pkg, bad+"/") {
				t.Errorf("vra-sidecar is made of %s", pkg)
			}
		}
		if strings.HasPrefix(pkg, module+"ioengine") && pkg != module+"ioengine/invariant" {
			t.Errorf("vra-sidecar is made of %s", pkg)
		}
	}
}

// TestBadCertificates are refused, and the log says which and why.
func TestBadCertificates(t *testing.T) {
	w := open(t, nil)
	for _, role := range []string{api.RoleVRA, "stranger"} {
		if got := ask(t, w.plain(w.trust(role, "eve").Client(api.RoleSidecar)), "https://"+w.addresses().Commands, "/metrics"); got != "refused" {
			t.Errorf("a %s is let in", role)
		}
		if want := "certificate=west/" + role + "/eve"; !strings.Contains(w.said.String(), want) || !strings.Contains(w.said.String(), "reason=wrong-role") {
			t.Errorf("the log does not say %s:\n%s", want, w.said)
		}
	}
	if got := ask(t, w.plain(&tls.Config{InsecureSkipVerify: true}), "https://"+w.addresses().Commands, "/metrics"); got != "refused" {
		t.Error("who has no certificate is let in")
	}
	if !strings.Contains(w.said.String(), "reason=no-certificate") {
		t.Errorf("the log does not say that there was none:\n%s", w.said)
	}
}

// TestTrustThatChangesDuringAHandshake: a connection that is not among those that Reload looks at is judged by the new certificates itself.
func TestTrustThatChangesDuringAHandshake(t *testing.T) {
	w := open(t, nil)
	old, shown := w.car.trust.Load(), w.trust(api.RoleMonitor, "ann").Client().Certificates[0].Leaf
	other, err := pairing.NewCA("west", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := other.Issue(pairing.Identity{Role: api.RoleSidecar, ID: "vra-1"}, time.Now(), time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	next, err := pairing.NewTrust(other.Certificate(), leaf.TLS(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, now := range []*pairing.Trust{old, next} {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		limit := newLimited(nil, w.car.count)
		conn := &counted{Conn: ours, of: limit}
		h := &handshakes{roles: rolesAt(Commands), at: Commands, count: w.car.count, log: w.car.log}
		h.trust = func() *pairing.Trust {
			if len(limit.mu.known) == 0 {
				return old
			}
			return now // Reload ran, and did not see the connection
		}
		c, err := h.config().GetConfigForClient(&tls.ClientHelloInfo{Conn: conn})
		if err != nil {
			t.Fatal(err)
		}
		err = c.VerifyConnection(tls.ConnectionState{Version: tls.VersionTLS13, PeerCertificates: []*x509.Certificate{shown}})
		refused, _ := errors.AsType[*pairing.Refused](err)
		if now == old && err != nil || now == next && (refused == nil || refused.Reason != pairing.WrongCA || !strings.Contains(w.said.String(), "reason=wrong-ca certificate=west/monitor/ann")) {
			t.Errorf("judged by another: %v, %v", now == next, err)
		}
		if conn.Close(); len(limit.mu.known) > 0 {
			t.Error("a connection that is closed is judged")
		}
	}
}
