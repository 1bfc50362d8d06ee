package sidecar

import (
	"bytes"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/holdfast-dr/holdfast/control/pairing"
)

// Lines that are logged of refusals: so many a second at most, so that nobody fills the log.
const linesPerSecond = 10

// counters is what the sidecar counts of itself.
type counters struct {
	calls    atomic.Uint64
	watchers atomic.Int64
	lines    *quiet

	mu struct {
		sync.Mutex
		refused map[string]uint64
	}
}

func newCounters() *counters {
	c := &counters{lines: &quiet{now: time.Now}}
	c.mu.refused = make(map[string]uint64)
	return c
}

// refused counts a refusal. The reasons are constants of this package and of pairing: few.
func (c *counters) refused(why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mu.refused[why]++
}

// quiet logs warnings, a bounded number a second, and how many were left out.
type quiet struct {
	now func() time.Time

	mu      sync.Mutex
	second  time.Time
	lines   int
	dropped int
}

func (q *quiet) warn(log *slog.Logger, text string, args ...any) {
	q.mu.Lock()
	if now := q.now(); now.Sub(q.second) >= time.Second {
		if q.dropped > 0 {
			log.Warn("refusals were not logged: there were too many", "lines", q.dropped)
		}
		q.second, q.lines, q.dropped = now, 0, 0
	}
	q.lines++
	let := q.lines <= linesPerSecond
	if !let {
		q.dropped++
	}
	q.mu.Unlock()
	if let {
		log.Warn(text, args...)
	}
}

// metrics answers GET /metrics with those of the vra, as they come, and the sidecar's own.
type metrics struct {
	vra   *vra
	count *counters
	trust func() *pairing.Trust
	began time.Time
}

// ServeHTTP implements http.Handler.
func (m *metrics) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var text bytes.Buffer
	up := 1
	if err := m.vra.copyMetrics(r.Context(), &text); err != nil {
		text.Reset() // half of them would be taken for all
		up = 0
	}
	w.Header().Set("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
	m.append(&text, up)
	w.Write(text.Bytes()) // its failing is the caller's going away
}

// append writes the sidecar's own metrics, in the text format of Prometheus.
func (m *metrics) append(b *bytes.Buffer, up int) {
	head := func(name, kind, help string) {
		fmt.Fprintf(b, "# HELP holdfast_sidecar_%s %s\n# TYPE holdfast_sidecar_%s %s\n", name, help, name, kind)
	}
	head("vra_up", "gauge", "1 when the vra of this machine answered the sidecar.")
	fmt.Fprintf(b, "holdfast_sidecar_vra_up %d\n", up)
	head("start_timestamp_seconds", "gauge", "When the sidecar was started, in seconds since 1970.")
	fmt.Fprintf(b, "holdfast_sidecar_start_timestamp_seconds %d\n", m.began.Unix())
	head("calls_total", "counter", "Calls that were let through, of all ports.")
	fmt.Fprintf(b, "holdfast_sidecar_calls_total %d\n", m.count.calls.Load())
	head("watchers", "gauge", "Callers that watch the status.")
	fmt.Fprintf(b, "holdfast_sidecar_watchers %d\n", m.count.watchers.Load())
	leaf, ca := m.trust().Ends()
	head("certificate_expiry_timestamp_seconds", "gauge", "When a certificate ends, in seconds since 1970: the sidecar's own, and that of the authority of its site.")
	fmt.Fprintf(b, "holdfast_sidecar_certificate_expiry_timestamp_seconds{certificate=\"own\"} %d\n", leaf.Unix())
	fmt.Fprintf(b, "holdfast_sidecar_certificate_expiry_timestamp_seconds{certificate=\"authority\"} %d\n", ca.Unix())
	head("refused_total", "counter", "Connections and calls that were refused, by why.")
	m.count.mu.Lock()
	defer m.count.mu.Unlock()
	for _, why := range slices.Sorted(maps.Keys(m.count.mu.refused)) {
		fmt.Fprintf(b, "holdfast_sidecar_refused_total{reason=%q} %d\n", why, m.count.mu.refused[why])
	}
}
