package sidecar

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/pairing"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// Bounds of a port: connections at once, of all, of one host (which need not have a certificate) and with certificates of one
// name; calls at once on one of them, a request, how long a caller may take to take in a piece of an answer, and how long a
// stream lasts.
const (
	maxConns    = 256
	maxPerHost  = 32
	maxPerName  = 16
	maxPerConn  = 64
	maxBody     = 64 << 10 // bytes
	writeWait   = 10 * time.Second
	maxLifetime = 24 * time.Hour
	lookingWait = 30 * time.Second // for the vra, with what changes nothing
	sendWait    = 30 * time.Second // for a request, from its header to its end
)

// caller is who makes a call.
type caller struct {
	who  string // site/role/id, or uid N
	role string
	from string // host:port; empty on the unix socket
	port Port
	ends time.Time     // of the certificate, and with it of all that it allows; zero on the unix socket
	wait time.Duration // for the vra; 0: as long as the caller waits
}

type callerKey struct{}

func callerOf(ctx context.Context) caller {
	c, _ := ctx.Value(callerKey{}).(caller)
	return c
}

// gate stands before the services of one port: it knows who calls, and lets pass what is theirs to ask.
type gate struct {
	port   Port
	next   http.Handler
	limits *limits
	denied *limits // of records of calls that are not the caller's to make: the audit is not his to fill
	count  *counters
	audit  *audit
	log    *slog.Logger
	// writeWait is how long a caller may take to take in a piece of an answer, and sendWait how long to send a request.
	writeWait   time.Duration
	sendWait    time.Duration
	lookingWait time.Duration
	// who tells who is at the other end of a request's connection: who, role and ends.
	who func(r *http.Request) (caller, error)
	now func() time.Time // what certificates end by
}

// ServeHTTP lets a request pass, or refuses it in the words of its protocol.
func (g *gate) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	w := &bounded{rw, http.NewResponseController(rw), g.writeWait}
	w.clear()       // what the request before it on a connection left
	defer w.begin() // for what is sent when we are done
	sent := w.expect(r, g.sendWait)
	c, err := g.who(r)
	if err != nil { // the handshake has seen to it that there is one
		api.Refuse(w, r, api.Errorf(api.PermissionDenied, "", "%v", err))
		return
	}
	if c.port = g.port; g.port != Local {
		c.from = r.RemoteAddr
	}
	left := c.left(g.now())
	if left <= 0 { // the handshake was when it was still good
		w.Header().Set("Connection", "close")
		g.refuse(w, r, c, string(pairing.Expired), api.Errorf(api.PermissionDenied, "get a new one, and connect again with it", "the certificate of %s ended at %s", c.who, c.ends.UTC().Format(time.RFC3339)))
		return
	}
	stream := streams[r.URL.Path]
	end, refused := g.limits.begin(c.who, stream)
	if refused != "" {
		g.refuse(w, r, c, string(refused), api.Errorf(api.Exhausted, "call again in a second", "%s is over its limit of %s at the port of %s", c.who, refused, g.port))
		return
	}
	defer end()
	rule, ok := offered(r.URL.Path, g.port)
	if !ok {
		g.refuse(w, r, c, "not-offered", api.Errorf(api.Unimplemented, elsewhere(r.URL.Path), "%.200s is not offered at the port of %s", r.URL.Path, g.port))
		return
	}
	if !rule.allows(c.role) {
		g.refuse(w, r, c, "role", api.Errorf(api.PermissionDenied, "ask as "+strings.Join(rule.roles, ", "), "%s may not call %s: its role is %s", c.who, short(r.URL.Path), c.role))
		if rule.changes {
			g.note(c, r.URL.Path)
		}
		return
	}
	if !rule.changes && !stream {
		c.wait = g.lookingWait
	}
	ctx := context.WithValue(r.Context(), callerKey{}, c)
	if slices.Contains(dialogues, r.URL.Path) {
		sent()
	}
	if stream {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, left)
		defer cancel()
	}
	g.count.calls.Add(1)
	passed := r.WithContext(ctx) // another than the server's, which looks at what became of its body
	passed.Body = &body{r.Body, sent}
	g.next.ServeHTTP(w, passed)
}

// left is how long a caller's stream may last: above 0, unless its certificate has ended.
func (c caller) left(now time.Time) time.Duration {
	if c.ends.IsZero() || invariant.Planted("control/sidecar/for-ever") {
		return maxLifetime
	}
	return min(maxLifetime, c.ends.Sub(now))
}

// refuse answers and counts, and logs what is not only a matter of pace.
func (g *gate) refuse(w http.ResponseWriter, r *http.Request, c caller, why string, err error) {
	g.count.refused(why)
	if why == "role" || why == "not-offered" {
		g.count.lines.warn(g.log, "call refused", "who", c.who, "from", c.from, "port", g.port, "path", fmt.Sprintf("%.200s", r.URL.Path), "why", why)
	}
	api.Refuse(w, r, err)
}

// note writes down that somebody asked for what is not theirs to change, unless they do so all the time. The call is
// refused either way.
func (g *gate) note(c caller, path string) {
	end, often := g.denied.begin(c.who, false)
	if often != "" && !invariant.Planted("control/sidecar/fill-audit") {
		return
	}
	if end != nil {
		defer end()
	}
	if _, err := g.audit.write(Record{Event: auditRefused, Who: c.who, From: c.from, Port: g.port.String(), What: short(path), Result: string(api.PermissionDenied)}); err != nil {
		g.log.Error("audit record not written", "err", err)
	}
}

// elsewhere says where something is offered; empty: nowhere.
func elsewhere(path string) string {
	for _, at := range []Port{Commands, Checkpoints, Logs} {
		if _, ok := rules[path]; ok && rules[path].ports&at != 0 {
			return "call it at the port of " + at.String()
		}
	}
	return ""
}

// short is a path as people read it: CheckpointsService/Create.
func short(path string) string {
	path = strings.TrimPrefix(path, "/holdfast.v1.")
	return strings.TrimPrefix(path, "/")[:min(100, len(strings.TrimPrefix(path, "/")))]
}

// cut is at most maxWord bytes of what a caller chose.
func cut(word string) string {
	if len(word) <= maxWord {
		return word
	}
	return strings.ToValidUTF8(word[:maxWord-len("...")], "") + "..."
}

// around writes down the calls that change something, before they are passed on and before they are answered.
func (g *gate) around(ctx context.Context, call api.Call, do func() error) error {
	if !rules[call.Procedure].changes {
		return do()
	}
	if invariant.Planted("control/sidecar/unaudited") {
		return do()
	}
	c := callerOf(ctx)
	r := Record{Event: auditAsked, Who: c.who, From: c.from, Port: g.port.String(), What: short(call.Procedure), Group: cut(call.Group), Key: cut(call.Key), Request: call.JSON(maxRequest)}
	n, err := g.audit.write(r)
	if err != nil {
		g.log.Error("audit record not written, call refused", "err", err)
		return api.Errorf(api.Unavailable, "make room in the sidecar's data_dir, or mend its disk", "what changes something is written down first, and that failed: %v", err)
	}
	err = do()
	r.Event, r.Asked, r.Request, r.Result = auditAnswered, n, "", "ok"
	if f := api.AsFailure(err); f != nil {
		r.Result, r.Error = string(f.Code), fmt.Sprintf("%.500s", f.Message)
	}
	if _, auditErr := g.audit.write(r); auditErr != nil {
		// It is done, or not: that is what the caller must hear. That it was asked for stands in the audit.
		g.log.Error("audit record of a result not written", "asked", n, "err", auditErr)
	}
	return err
}

// bounded has each write of an answer end within a time: a caller that takes nothing is let go. Between
// writes there is no bound: an answer may be long in coming.
type bounded struct {
	http.ResponseWriter
	control *http.ResponseController
	wait    time.Duration
}

// begin sets the time, and clear ends it. Where there is none to set, writes are not bounded.
func (b *bounded) begin() {
	if !invariant.Planted("control/sidecar/patient") {
		b.control.SetWriteDeadline(time.Now().Add(b.wait))
	}
}

func (b *bounded) clear() {
	if !invariant.Planted("control/sidecar/impatient") {
		b.control.SetWriteDeadline(time.Time{})
	}
}

// expect has the body of a request end within a time. The caller calls sent where it need not.
func (b *bounded) expect(r *http.Request, wait time.Duration) (sent func()) {
	if r.Body == nil || r.Body == http.NoBody || invariant.Planted("control/sidecar/slow-requests") {
		return func() {}
	}
	b.control.SetReadDeadline(time.Now().Add(wait))
	return func() { b.control.SetReadDeadline(time.Time{}) } // or the server would take the caller for gone
}

// body is that of a request. It calls sent at its end.
type body struct {
	io.ReadCloser
	sent func()
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if errors.Is(err, io.EOF) {
		b.sent()
	}
	return n, err
}

func (b *bounded) Write(p []byte) (int, error) {
	b.begin()
	defer b.clear()
	return b.ResponseWriter.Write(p)
}

// Flush implements http.Flusher.
func (b *bounded) Flush() {
	b.begin()
	defer b.clear()
	b.control.Flush()
}

// Unwrap is for http.ResponseController.
func (b *bounded) Unwrap() http.ResponseWriter { return b.ResponseWriter }

// certified is who of callers with certificates.
func certified(r *http.Request) (caller, error) {
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 {
		return caller{}, errors.New("no certificate")
	}
	leaf := r.TLS.PeerCertificates[0]
	name, err := pairing.NameOf(leaf)
	return caller{who: name.String(), role: name.Role, ends: leaf.NotAfter}, err
}

type uidKey struct{}

// local is who of callers on the unix socket: the kernel says which user it is. They may do everything,
// as they could at the vra's own socket.
func local(r *http.Request) (caller, error) {
	uid, ok := r.Context().Value(uidKey{}).(int)
	if !ok {
		return caller{}, errors.New("no user")
	}
	return caller{who: fmt.Sprintf("uid %d", uid), role: api.RoleAdmin}, nil
}

// withUID notes which user a connection is of.
func withUID(ctx context.Context, c net.Conn) context.Context {
	if u, ok := c.(*net.UnixConn); ok {
		if uid, err := api.PeerUID(u); err == nil {
			return context.WithValue(ctx, uidKey{}, uid)
		}
	}
	return ctx
}

// handshakes is the TLS of a port.
type handshakes struct {
	trust func() *pairing.Trust
	roles []string // that have anything to ask for there
	at    Port
	count *counters
	log   *slog.Logger
}

// config judges who connects by the trust of that moment.
func (h *handshakes) config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			began := h.trust()
			c := began.Server(h.roles...)
			c.NextProtos = []string{"h2", "http/1.1"}
			c.VerifyConnection = func(cs tls.ConnectionState) error {
				err := h.verify(began, hello.Conn.RemoteAddr(), cs)
				if conn, ok := hello.Conn.(*counted); ok && err == nil {
					err = conn.named(cs)
				}
				// It may have changed before the connection was among those that judge looks at.
				if now := h.trust(); now != began && err == nil && !invariant.Planted("control/sidecar/old-handshakes") {
					err = h.verify(now, hello.Conn.RemoteAddr(), cs)
				}
				return err
			}
			return c, nil
		},
	}
}

// verify judges the certificate that the other end showed. Whom it refuses it names in the log.
func (h *handshakes) verify(trust *pairing.Trust, from net.Addr, cs tls.ConnectionState) error {
	err := trust.Takes(cs, h.roles...)
	if refused, ok := errors.AsType[*pairing.Refused](err); ok {
		h.count.refused(string(refused.Reason))
		h.count.lines.warn(h.log, "connection refused", "from", from, "port", h.at, "reason", refused.Reason, "certificate", refused.Name, "err", refused.Err)
	}
	return err
}
