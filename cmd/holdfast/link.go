package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/config"
	"github.com/spf13/cobra"
)

func (a *app) linkCommand() *cobra.Command {
	return parent("link", "Look into the link between two sites", "Look into the link between the source VRA and its target.", a.linkTest())
}

// rateFlag reads a rate in the words of the configuration, or with bps for bit.
type rateFlag struct{ *config.Rate }

func (f rateFlag) Set(text string) (err error) {
	if number, ok := strings.CutSuffix(text, "bps"); ok {
		text = number + "bit"
	}
	*f.Rate, err = config.ParseRate(text)
	return err
}

func (rateFlag) Type() string { return "rate" }

// sizeFlag reads a size in the words of the configuration.
type sizeFlag struct{ *config.Size }

func (f sizeFlag) Set(text string) (err error) {
	*f.Size, err = config.ParseSize(text)
	return err
}

func (sizeFlag) Type() string { return "size" }

// Bounds of a link test, each way.
const (
	testLeast, testMost = time.Second, time.Minute
	testBytes           = config.Size(256 << 20)
	testMostBytes       = config.Size(4 << 30)
)

func (a *app) linkTest() *cobra.Command {
	var group string
	lasts, amount, limit := config.Duration(5*time.Second), testBytes, config.Rate(0)
	cmd := &cobra.Command{
		Use:   "test",
		Short: "Measure the link to the target",
		Long: `The source VRA opens two connections to its target beside those of replication and
measures the round trip, the throughput each way, what was lost and sent again, the
largest packets that get through, and by how much the clocks differ. At the end it
says in plain words what that means.

Replication goes on beside it. The test takes at most the given time and amount each
way, over one connection; beside a busy replication it takes about half of the link
for that long, and what it measures is what replication leaves. With --cap it sends
no faster than that, and says whether the link carries it. Where shaping caps the
site, the test is counted under the cap, and without --cap takes half of it.`,
		Example: "  holdfast link test\n  holdfast link test --cap 20Mbit --duration 10s\n  holdfast link test -o json | jq .path_mtu",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if d := time.Duration(lasts); d < testLeast || d > testMost {
				return usagef("--duration %s: want %v to %v", lasts, testLeast, testMost)
			}
			if amount < 1<<20 || amount > testMostBytes {
				return usagef("--amount %s: want 1 MiB to %s", amount.Text(), testMostBytes.Text())
			}
			return a.runLinkTest(cmd, &holdfastv1.LinksServiceTestRequest{
				Group: group, Duration: api.Span(time.Duration(lasts)), Bytes: int64(amount), Cap: int64(limit),
			})
		},
	}
	cmd.Flags().StringVar(&group, "group", "", "the link of this group; needed where the source has several targets")
	cmd.Flags().Var(durationFlag{&lasts}, "duration", "of each direction, 1s to 1m")
	cmd.Flags().Var(sizeFlag{&amount}, "amount", "at most so much each way, 1MiB to 4GiB")
	cmd.Flags().Var(rateFlag{&limit}, "cap", "send no faster than this, and say whether it is reached")
	cmd.RegisterFlagCompletionFunc("group", a.completeGroups)
	return cmd
}

func (a *app) runLinkTest(cmd *cobra.Command, r *holdfastv1.LinksServiceTestRequest) error {
	client, _, err := a.dial(api.RoleSource)
	if err != nil {
		return err
	}
	defer client.Close()
	var report *holdfastv1.LinkReport
	m, stage, shown := newMeter(a.stderr), "", time.Time{}
	err = client.Links.Test(cmd.Context(), r, func(p *holdfastv1.LinksServiceTestResponse) error {
		if p.Report != nil {
			report = p.Report
			return nil
		}
		if a.output == "table" && (m.terminal || p.Stage != stage || time.Since(shown) >= lineEvery) {
			stage, shown = p.Stage, time.Now()
			m.line(linkStage(p, r))
		}
		return nil
	})
	m.done()
	if err != nil {
		return explain(api.RoleSource, err)
	}
	if report == nil {
		return fmt.Errorf("the test ended without a report")
	}
	return a.printLink(newLink(report))
}

// linkStage says how far a test is.
func linkStage(p *holdfastv1.LinksServiceTestResponse, r *holdfastv1.LinksServiceTestRequest) string {
	took := p.GetTook().AsDuration()
	if took <= 0 {
		return p.GetStage()
	}
	rate := float64(p.GetBytes()) * 8 / took.Seconds() / 1e6
	return fmt.Sprintf("%s: %.1f of %.0f s, %.1f Mbit/s", p.GetStage(), took.Seconds(), r.GetDuration().AsDuration().Seconds(), rate)
}

// link is the report of a test; its JSON is kept for ever. Times are in milliseconds,
// rates in bits per second.
type link struct {
	Target     string        `json:"target"`
	Control    string        `json:"control"`
	Data       string        `json:"data"`
	Protocol   uint32        `json:"protocol"`
	RoundTrip  *linkTrip     `json:"round_trip_ms"`
	Loaded     *linkTrip     `json:"round_trip_loaded_ms"`
	Up         *linkWay      `json:"to_target"`
	Down       *linkWay      `json:"from_target"`
	PathMTU    *int32        `json:"path_mtu"`
	BlackHole  bool          `json:"mtu_black_hole"`
	Clock      float64       `json:"clock_ahead_ms"`
	ClockError float64       `json:"clock_within_ms"`
	Cap        *int64        `json:"cap_bits_per_second"`
	CapReached *bool         `json:"cap_reached"`
	Replicated int64         `json:"replicated_bytes"`
	Findings   []linkFinding `json:"findings"`
}

type linkTrip struct {
	Min    float64 `json:"min"`
	Median float64 `json:"median"`
	Max    float64 `json:"max"`
}

type linkWay struct {
	Bytes         int64   `json:"bytes"`
	Seconds       float64 `json:"seconds"`
	Payload       int64   `json:"payload_bits_per_second"`
	Interface     int64   `json:"interface_bits_per_second"`
	Segments      *uint64 `json:"segments"`
	Retransmitted *uint64 `json:"retransmitted"`
	SegmentBytes  *uint32 `json:"segment_bytes"`
}

type linkFinding struct {
	Level string `json:"level"`
	Text  string `json:"text"`
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func newLink(m *holdfastv1.LinkReport) link {
	l := link{
		Target: m.GetTarget(), Control: m.GetControl(), Data: m.GetData(), Protocol: m.GetProtocol(),
		RoundTrip: newLinkTrip(m.GetRoundTrip()), Loaded: newLinkTrip(m.GetRoundTripLoaded()),
		Up: newLinkWay(m.GetUp()), Down: newLinkWay(m.GetDown()), PathMTU: m.PathMtu, BlackHole: m.GetMtuBlackHole(),
		Clock: milliseconds(m.GetClockAhead().AsDuration()), ClockError: milliseconds(m.GetClockWithin().AsDuration()),
		CapReached: m.CapReached, Replicated: m.GetReplicatedBytes(), Findings: []linkFinding{},
	}
	if m.GetCap() > 0 {
		l.Cap = &m.Cap
	}
	for _, f := range m.GetFindings() {
		l.Findings = append(l.Findings, linkFinding{f.GetLevel(), f.GetText()})
	}
	return l
}

func newLinkTrip(m *holdfastv1.LinkSpread) *linkTrip {
	if m == nil {
		return nil
	}
	return &linkTrip{milliseconds(m.GetMin().AsDuration()), milliseconds(m.GetMedian().AsDuration()), milliseconds(m.GetMax().AsDuration())}
}

func newLinkWay(m *holdfastv1.LinkWay) *linkWay {
	if m == nil {
		return nil
	}
	return &linkWay{m.GetBytes(), m.GetTook().AsDuration().Seconds(), m.GetPayloadBitsPerSecond(), m.GetInterfaceBitsPerSecond(),
		m.Segments, m.Retransmitted, m.SegmentBytes}
}

// printLink writes the report; people get the words below the figures.
func (a *app) printLink(l link) error {
	var rows [][]string
	for _, way := range []struct {
		name string
		*linkWay
	}{{"to " + l.Target, l.Up}, {"from " + l.Target, l.Down}} {
		if way.linkWay == nil {
			rows = append(rows, []string{way.name, "-", "-", "-", "-"})
			continue
		}
		again := "-"
		if way.Segments != nil && way.Retransmitted != nil {
			again = fmt.Sprintf("%d of %d", *way.Retransmitted, *way.Segments)
		}
		rows = append(rows, []string{way.name, mbitText(way.Payload), mbitText(way.Interface), bytesText(way.Bytes), again})
	}
	if err := a.print(l, "DIRECTION PAYLOAD INTERFACE MOVED SENT-AGAIN", rows); err != nil || a.output == "json" {
		return err
	}
	fmt.Fprintln(a.stdout)
	for _, f := range l.Findings {
		sign := "  "
		if f.Level == api.FindingWarning {
			sign = "! "
		}
		fmt.Fprintln(a.stdout, sign+printable(f.Text))
	}
	if l.Replicated > 0 {
		fmt.Fprintf(a.stdout, "  Replication sent %s beside the test.\n", bytesText(l.Replicated))
	}
	return nil
}

func mbitText(bits int64) string { return fmt.Sprintf("%.1f Mbit/s", float64(bits)/1e6) }
