package sidecar

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/ioengine/invariant"
)

// How long the vra may take to take a connection and to say who it is.
const knockWait = 5 * time.Second

// vra is the way to the vra of this machine. Before a connection is used, the vra at its other end has said
// which version of the services it speaks.
type vra struct {
	socket string
	log    *slog.Logger
	knock  time.Duration // knockWait
	*api.Client
	metrics *http.Client

	mu struct {
		sync.Mutex
		known about // as of the last connection
	}
}

// about is what a vra says it is.
type about struct {
	version      string
	major, minor uint32
}

func newVRA(socket string, log *slog.Logger) *vra {
	v := &vra{socket: socket, log: log, knock: knockWait}
	v.Client = api.DialVia(v.dial)
	v.metrics = &http.Client{Transport: &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return v.dial(ctx) },
		DisableKeepAlives: true,
	}}
	return v
}

// dial connects, and has the vra say who it is. The question goes over another connection: were another vra
// started in between, the one that we return would be dead.
func (v *vra) dial(ctx context.Context) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, v.knock)
	defer cancel()
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", v.socket)
	if err != nil {
		return nil, err
	}
	asking := api.DialUnix(v.socket)
	defer asking.Close()
	res, err := asking.Status.About(ctx, &holdfastv1.StatusServiceAboutRequest{})
	if err := v.judge(res, err); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// judge says why we cannot speak to a vra that answers so.
func (v *vra) judge(res *holdfastv1.StatusServiceAboutResponse, err error) error {
	a := about{version: res.GetVersion(), major: res.GetApiMajor(), minor: res.GetApiMinor()}
	if f := api.AsFailure(err); f != nil {
		if f.Code != api.Unimplemented {
			return err
		}
		a = about{version: "of before it told its version", major: 1, minor: 0}
	}
	if a.major != api.Major && !invariant.Planted("control/sidecar/any-version") {
		next := "update the sidecar"
		if a.major < api.Major {
			next = "update the vra"
		}
		return api.Errorf(api.Precondition, next+": both must be of one major version",
			"the vra (%s) speaks version %d.%d of the services, and this sidecar %d.%d", a.version, a.major, a.minor, api.Major, api.Minor)
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	if a != v.mu.known {
		v.mu.known = a
		v.log.Info("vra answers", "version", a.version, "api", fmt.Sprintf("%d.%d", a.major, a.minor))
	}
	return nil
}

// explain turns an error of a call to the vra into what the caller of the sidecar is told. What the vra
// itself said is passed on as it is, but for a call that it does not know, and that time is up when it is not for the
// caller, whose ctx is: then the vra is still opening, is ending, or hangs.
func (v *vra) explain(ctx context.Context, err error) error {
	f := api.AsFailure(err)
	if f == nil {
		return nil
	}
	if ours, ok := errors.AsType[*api.Failure](err); ok { // the dialling's judgement
		return ours
	}
	said := api.Said(err)
	switch {
	case f.Code == api.Unimplemented: // by a server that knows the service, or by one that does not
		v.mu.Lock()
		known := v.mu.known
		v.mu.Unlock()
		return api.Errorf(api.Unimplemented, "update the vra, or do without", "the vra (%s, services %d.%d) does not know this call", known.version, known.major, known.minor)
	case (f.Code == api.TimedOut || f.Code == api.Canceled) && !over(ctx):
		return api.Errorf(api.Unavailable, "see in its log whether it is still opening, or ends, and call again with the same idempotency key; if it hangs, restart it",
			"the vra at %s did not answer in time: %s", v.socket, f.Message)
	case !said && f.Code != api.Canceled && f.Code != api.TimedOut:
		return api.Errorf(api.Unavailable, "see that the vra runs, and call again with the same idempotency key; if it was started anew meanwhile, look first whether it was done",
			"the vra does not answer at %s: %s", v.socket, f.Message)
	}
	return f
}

// over says whether a caller's time is up. The vra is told how long there is in whole milliseconds, and may find it over so
// much before it is.
func over(ctx context.Context) bool {
	ends, ok := ctx.Deadline()
	return ctx.Err() != nil || ok && time.Until(ends) <= time.Millisecond
}

// answers says whether the vra can be asked.
func (v *vra) answers(ctx context.Context) error {
	asking, cancel := context.WithTimeout(ctx, knockWait)
	defer cancel()
	_, err := v.Status.About(asking, &holdfastv1.StatusServiceAboutRequest{})
	if f := api.AsFailure(err); f != nil && f.Code == api.Unimplemented {
		return nil
	}
	return v.explain(ctx, err)
}

// maxMetrics is the most that is taken of the vra's metrics, in bytes.
const maxMetrics = 16 << 20

// copyMetrics writes the vra's metrics to w as they are.
func (v *vra) copyMetrics(ctx context.Context, w io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, knockWait)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://vra/metrics", nil)
	if err != nil {
		return err
	}
	req.Header.Set("Accept-Encoding", "identity")
	res, err := v.metrics.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("the vra answers %s", res.Status)
	}
	n, err := io.Copy(w, io.LimitReader(res.Body, maxMetrics))
	if err == nil && n == maxMetrics {
		err = errors.New("the vra tells more than is taken")
	}
	return err
}

func (v *vra) close() {
	v.Client.Close()
	v.metrics.CloseIdleConnections()
}
