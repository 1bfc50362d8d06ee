package several

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
)

// AwaitState waits until the group is in a state at all sources.
func (g *Group) AwaitState(ctx context.Context, state string) error {
	ctx, stop := context.WithTimeout(ctx, time.Minute)
	defer stop()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for h := 0; h < g.c.Hosts; {
		res, err := g.Client(Source(h)).Status.Get(ctx, &holdfastv1.StatusServiceGetRequest{})
		if err == nil && len(res.Groups) == 1 && res.Groups[0].State == state {
			h++
			continue
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("host %d does not come to %s: %v, %w", h, state, res, err)
		}
	}
	return nil
}

// Cuts are what the metrics say of a group's cuts so far: of all sources, in sum.
type Cuts struct {
	Intervals, Listed, Void float64
	holds                   map[float64]float64 // by upper bound in seconds, how many were no longer
}

// Cuts asks all sources.
func (g *Group) Cuts() (c Cuts, err error) {
	c.holds = map[float64]float64{}
	for h := range g.c.Hosts {
		all, err := g.metrics(Source(h))
		if err != nil {
			return c, err
		}
		for series, v := range all {
			switch name, labels, _ := strings.Cut(series, "{"); name {
			case "holdfast_group_shared_intervals_total":
				c.Intervals += v
			case "holdfast_group_shared_intervals_listed_total":
				c.Listed += v
			case "holdfast_group_shared_cuts_total":
				if strings.Contains(labels, `"void"`) {
					c.Void += v
				}
			case "holdfast_group_hold_seconds_bucket":
				_, le, _ := strings.Cut(labels, `le="`)
				if bound, err := strconv.ParseFloat(strings.TrimSuffix(le, `"}`), 64); err == nil {
					c.holds[bound] += v
				}
			}
		}
	}
	return c, nil
}

// HoldP99 is a bound in ms that 99 of 100 of the holds since before did not go beyond, and how many there were.
func (c Cuts) HoldP99(before Cuts) (ms float64, holds int) {
	var bounds []float64
	for b := range c.holds {
		bounds = append(bounds, b)
	}
	slices.Sort(bounds)
	if len(bounds) == 0 {
		return 0, 0
	}
	last := bounds[len(bounds)-1]
	count := c.holds[last] - before.holds[last]
	for _, b := range bounds {
		if c.holds[b]-before.holds[b] >= 0.99*count {
			return 1000 * b, int(count)
		}
	}
	return 1000 * last, int(count)
}

// metrics are a vra's, by series.
func (g *Group) metrics(name string) (map[string]float64, error) {
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", g.socket(name))
		},
		DisableKeepAlives: true,
	}}
	res, err := client.Get("http://vra/metrics")
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	all := map[string]float64{}
	lines := bufio.NewScanner(res.Body)
	for lines.Scan() {
		series, value, _ := strings.Cut(lines.Text(), " ")
		if v, err := strconv.ParseFloat(value, 64); err == nil && !strings.HasPrefix(series, "#") {
			all[series] = v
		}
	}
	return all, lines.Err()
}
