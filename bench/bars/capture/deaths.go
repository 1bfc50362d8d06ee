package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/holdfast-dr/holdfast/bench/bars"
	"github.com/holdfast-dr/holdfast/bench/drive"
	"github.com/holdfast-dr/holdfast/control/api"
	"github.com/holdfast-dr/holdfast/control/api/holdfastv1"
	"github.com/holdfast-dr/holdfast/control/config"
)

// deathSpan is how much of the disk the guest of these measures writes to.
const deathSpan = 1 << 30

// deathLimit is for how long a part that was killed, or a group, may be away before a measure fails.
const deathLimit = 30 * time.Second

// filterKills kills the filter again and again while a guest writes and verifies at depth 32; at the end it reads all that it wrote, and
// the disk is held against what has arrived.
func (b *bench) filterKills() (err error) {
	lab, end, err := b.ownLab("kills", nil, "--size", fmt.Sprint(deathSpan))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	v, err := b.verify(lab.Volumes[0].VhostUser, deathSpan, 0)
	if err != nil {
		return err
	}
	const between = 500 * time.Millisecond // of load, before each
	for n := 0; n < b.kills && err == nil; n++ {
		if err = b.sleep(between); err != nil {
			break
		}
		if err = lab.Kill(b.Context, "vra-filter"); err != nil {
			break
		}
		ctx, done := context.WithTimeout(b.Context, deathLimit)
		err = v.meetings(ctx, n+1)
		done()
	}
	if err == nil {
		err = b.sleep(between)
	}
	all, failed := v.stop()
	if err != nil && failed == nil { // it was not run to its end, and says nothing
		return err
	}
	if failed == nil {
		if err := b.inStep(lab); err != nil {
			return err
		}
		failed = b.arrived(lab, diskOf(lab))
	}
	if b.Context.Err() != nil {
		return b.Context.Err()
	}
	errs := 0.0
	if failed != nil {
		errs = 1
	}
	b.Sample(bars.Sample{Row: "filter-kills", Value: all.Gap.Seconds(), Ours: all.Gap.Seconds(), OursUnit: "s",
		Note: fmt.Sprintf("%d kills, %d writes and %d reads, all as written unless an error is counted; the supervisor waits up to 0.8 s before it starts one again that dies often", all.Meetings, all.Writes, all.Reads)})
	b.Sample(bars.Sample{Row: "filter-kill-errors", Value: errs})
	return failed
}

// sleep waits, unless the run is interrupted.
func (b *bench) sleep(d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-b.Context.Done():
		return b.Context.Err()
	}
}

// event is something after which bytes may be sent again.
type event struct {
	row string
	do  func(*drive.Lab) error
}

// eventList are those of which it is counted what is sent again.
func (b *bench) eventList() []event {
	kill := func(name string) func(*drive.Lab) error {
		return func(lab *drive.Lab) error { return lab.Kill(b.Context, name) }
	}
	const away = 10 * time.Second // of the link
	return []event{
		{"resent-filter", kill("vra-filter")},
		{"resent-source", kill("vra-source")},
		{"resent-target", kill("vra-target")},
		{"resent-cut", func(lab *drive.Lab) error {
			return errors.Join(lab.Link(b.Context, "down"), b.sleep(away), lab.Link(b.Context, "up"))
		}},
	}
}

// resent counts what the link carries after each event, while a guest writes what does not compress; what it wrote
// before the event does not count as touched. It is counted until all has arrived, and what is not raw bytes, headers
// and acknowledgements of the link, is counted too. Each event comes once for every three pairs.
func (b *bench) resent() (err error) {
	lab, end, err := b.ownLab("resent", nil, "--size", fmt.Sprint(deathSpan))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, end()) }()
	for range (b.Pairs + 2) / 3 {
		for _, e := range b.eventList() {
			if !b.Wanted(e.row) {
				continue
			}
			if err := b.resentAfter(lab, e); err != nil {
				return fmt.Errorf("%s: %w", e.row, err)
			}
		}
		if b.Wanted(adoptRow) {
			if err := b.adopted(lab); err != nil {
				return fmt.Errorf("%s: %w", adoptRow, err)
			}
		}
	}
	return b.arrived(lab, diskOf(lab))
}

// diskOf is the file of a lab's only disk.
func diskOf(lab *drive.Lab) string { return filepath.Join(lab.Dir, "disks", lab.Volumes[0].Name) }

const adoptRow = "resent-adopted"

// adopted kills the source's VRA while the link is down, what a guest wrote stands in its window and the guest rests: all that
// the next one packs was packed before.
func (b *bench) adopted(lab *drive.Lab) error {
	const span, rate, rest = 5 * time.Second, 1000, 2 * time.Second
	c, err := config.LoadVRA(filepath.Join(lab.Dir, "etc", "vra-source.yaml"))
	if err != nil {
		return err
	}
	source := api.DialUnix(c.Socket)
	if err := errors.Join(b.inStep(lab), lab.Link(b.Context, "down")); err != nil {
		return err
	}
	v, err := b.verify(lab.Volumes[0].VhostUser, deathSpan, rate)
	if err != nil {
		return err
	}
	err = b.sleep(span)
	s, failed := v.stop()
	if err := errors.Join(err, failed, b.sleep(rest)); err != nil { // it is packed by then
		return err
	}
	held, err := packed(b.Context, source)
	if err != nil {
		return err
	}
	if held.WindowBytes < int64(s.Writes*verifyBlock)/2 { // it does not compress: nothing could be lost, nor packed again
		return fmt.Errorf("only %d bytes stand in the window, of %d writes", held.WindowBytes, s.Writes)
	}
	if err := errors.Join(lab.Kill(b.Context, "vra-source"), b.sleep(rest), lab.Link(b.Context, "up"), b.inStep(lab)); err != nil {
		return err
	}
	again, err := packed(b.Context, source)
	if err != nil {
		return err
	}
	const mib = 1 << 20
	raw, wrote := float64(again.PackRawBytesTotal)/mib, float64(s.Writes*verifyBlock)/mib
	b.Sample(bars.Sample{Row: adoptRow, Value: raw, Ours: raw, Peer: wrote, OursUnit: "MiB",
		Note: fmt.Sprintf("%.3g MiB stored stood in the window", float64(held.WindowBytes)/mib)})
	return nil
}

// packed is what a VRA tells of its only group.
func packed(ctx context.Context, c *api.Client) (*holdfastv1.Group, error) {
	res, err := c.Status.Get(ctx, &holdfastv1.StatusServiceGetRequest{})
	if err != nil {
		return nil, err
	}
	if len(res.Groups) != 1 {
		return nil, fmt.Errorf("a vra tells of %d groups", len(res.Groups))
	}
	return res.Groups[0], nil
}

// resentAfter counts for one event.
func (b *bench) resentAfter(lab *drive.Lab, e event) error {
	const rate, before = 1000, 5 * time.Second
	if err := b.inStep(lab); err != nil {
		return err
	}
	v, err := b.verify(lab.Volumes[0].VhostUser, deathSpan, rate)
	if err != nil {
		return err
	}
	err = b.sleep(before)
	from, lookErr := lab.Machinery(b.Context)
	_, failed := v.look() // what it touched before the event
	err = errors.Join(err, lookErr, failed)
	if err == nil {
		began := time.Now()
		err = e.do(lab)
		err = errors.Join(err, b.sleep(b.after-time.Since(began)))
	}
	s, failed := v.stop()
	if err := errors.Join(err, failed, b.inStep(lab)); err != nil {
		return err
	}
	to, err := lab.Machinery(b.Context)
	if err != nil {
		return err
	}
	const mib = 1 << 20
	sent, touched, wrote := float64(to.Link.Sent-from.Link.Sent)/mib, float64(len(s.Blocks)*verifyBlock)/mib, float64(s.Writes*verifyBlock)/mib
	b.Sample(bars.Sample{Row: e.row, Value: sent / touched, Ours: sent, Peer: touched, OursUnit: "MiB",
		Note: fmt.Sprintf("in %v; %.3g MiB written, so %.3g MiB beyond what the guest wrote", b.after, wrote, sent-wrote)})
	return nil
}

// inStep waits until the group is protected and all that was written has arrived.
func (b *bench) inStep(lab *drive.Lab) error {
	return lab.Await(b.Context, 2*time.Minute, "in step", func(s drive.Status) bool {
		return s.State == "protected" && s.BytesBehind != nil && *s.BytesBehind == 0
	})
}
