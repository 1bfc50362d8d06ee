package main

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/holdfast-dr/holdfast/bench/bars"
	"github.com/holdfast-dr/holdfast/bench/load"
	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/journal"
	"github.com/holdfast-dr/holdfast/journal/retain"
	"github.com/holdfast-dr/holdfast/wire/record"
)

// promoteArgs describe an intake at a steady rate.
type promoteArgs struct {
	Dir     string
	Rate    float64 // bytes of guest writes a second
	Seconds float64 // measured
	Limit   int64   // of the history; it is filled first. 0: none, nothing is promoted
	Cut     float64 // seconds from one checkpoint to the next
	Volume  int64
	// Empty leaves out the initial sync: the replica is all holes, and promotion is the first
	// to write to nearly every place of it.
	Empty bool
}

type promoteResult struct {
	Taken    int64   // bytes of records, from the end of a pass to the end of a pass
	Promoted int64   // of them, or of those before: what passes freed of the log
	Passes   int     // that ended while it was measured; the first and the last of them count
	Measured int64   // bytes of records in all that was measured
	Written  int64   // bytes that promotion wrote into the replica
	AckP50   float64 // ms
	AckP99   float64 // ms
	AckMax   float64 // ms
	SyncP99  float64 // ms, of the log's syncs, one a round of commits
	// Held is how many seconds records were held up before they were taken, since the history had no room
	// for them at that rate, and HeldMost the ms of the longest.
	Held, HeldMost float64
	// Stalls is how often the disk finished nothing for a tenth of a second or longer while
	// requests waited for it, Stalled the ms of it, and AckApart the p99 without the records
	// that were under way then or within the second after it.
	Stalls   int
	Stalled  float64
	AckApart float64
	CPU      float64 // seconds, of user and system, of this process with what makes the records
	Level    string  // of the history, at the end
	Late     float64 // seconds that the intake was behind its rate, at the end
}

// promotePart takes writes of 64 KiB at random places, sixteen a record.
func promotePart(_ context.Context, a promoteArgs) (r promoteResult, err error) {
	var syncs syncTimes
	s, err := journal.Open(journal.Config{FS: ioengine.OS(), Dir: a.Dir, Still: a.Limit == 0, ObserveSync: syncs.took})
	if err != nil {
		return r, err
	}
	streams, err := openGroups(s, 1, a.Volume)
	if err != nil {
		return r, err
	}
	st := streams[0]
	in := &intake{st: st, data: load.Noise(16*mib, 1), rate: a.Rate, cutEvery: time.Duration(a.Cut * 1e9), free: make(chan []byte, inFlight)}
	for range inFlight {
		in.free <- nil
	}
	if err := st.syncing(); err != nil {
		return r, err
	}
	if !a.Empty {
		if err := in.whole(); err != nil {
			return r, err
		}
	}
	if err := st.synced(); err != nil {
		return r, err
	}
	if a.Limit > 0 {
		p := retain.Default()
		p.Limit = a.Limit
		if err := st.group.SetRetention(p); err != nil {
			return r, err
		}
	}
	fill := float64(aloneFill)
	if a.Limit > 0 { // until the limit is reached
		fill = float64(a.Limit) / a.Rate * 1.2
	}
	if _, err := in.run(fill); err != nil {
		return r, err
	}
	wrote := st.group.Retention().Promoted
	in.taken, in.acks, in.passes.ends, in.held, in.heldMost = 0, nil, nil, 0, 0
	syncs.reset()
	stop := bars.Profile()
	cpu := cpuNow()
	disk := bars.WatchDisk(a.Dir)
	r.Late, err = in.run(a.Seconds)
	stalls := disk()
	if err != nil {
		return r, err
	}
	r.CPU = cpuNow() - cpu
	stop()
	state := st.group.Retention()
	r.Measured, r.Passes = in.taken, len(in.passes.ends)
	r.Taken, r.Promoted = in.passes.between()
	r.Written = state.Promoted - wrote
	r.Level = fmt.Sprint(state.Level)
	r.Held, r.HeldMost = in.held.Seconds(), in.heldMost.Seconds()*1000
	r.AckP50, r.AckP99, r.AckMax = partOf(in.acks, 0.5), partOf(in.acks, 0.99), partOf(in.acks, 1)
	r.SyncP99 = syncs.p99()
	r.Stalls, r.Stalled = sumOf(stalls)
	r.AckApart = partOf(slices.DeleteFunc(in.acks, func(k ack) bool { return k.beside(stalls) }), 0.99)
	return r, s.Close()
}

// aloneFill is for how many seconds the same intake goes on before it is measured without promotion:
// the disk has as much behind it that it only took as with it, the initial sync and a history.
const aloneFill = 10

// syncTimes are what a store's syncs took.
type syncTimes struct {
	mu   sync.Mutex
	acks []ack
}

func (s *syncTimes) took(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.acks = append(s.acks, ack{took: d})
}

func (s *syncTimes) reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.acks = nil
}

// p99 is in ms.
func (s *syncTimes) p99() float64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return partOf(s.acks, 0.99)
}

// passes sees the ends of passes: the log takes more space with the records, and each pass frees
// at its end what it promoted, whole segments at once. What was promoted is therefore counted from
// the end of a pass to the end of a pass: from one moment to another it would be
// more or less by up to what one pass frees, as the moments fall. So counted it is
// within one segment of what it would be if less than segments were freed.
type passes struct {
	log   int64 // bytes of the log, last seen
	freed int64
	ends  []passEnd
}

// passEnd is how much had been taken and freed when a pass had ended.
type passEnd struct{ taken, freed int64 }

// look is told of the log after each record.
func (p *passes) look(taken, log int64) {
	if log < p.log {
		p.freed += p.log - log
		p.ends = append(p.ends, passEnd{taken, p.freed})
	}
	p.log = log
}

// between returns what was taken and promoted between the first end of a pass and the last.
func (p *passes) between() (taken, promoted int64) {
	if len(p.ends) < 2 {
		return 0, 0
	}
	first, last := p.ends[0], p.ends[len(p.ends)-1]
	return last.taken - first.taken, last.freed - first.freed
}

// logSegment is what a pass frees at once, in bytes.
const logSegment = 256 * mib

// keepsUp is how much was promoted of each byte taken. The first pass and the last may each have promoted up to a segment more than they
// freed, so that less than a segment too few says nothing.
func keepsUp(taken, promoted int64) float64 {
	if promoted < taken && taken-promoted < logSegment {
		return 1
	}
	return float64(promoted) / float64(taken)
}

// sumOf is how many stalls there were, and how many ms they took in all.
func sumOf(stalls []bars.Stall) (n int, ms float64) {
	for _, x := range stalls {
		ms += x.To.Sub(x.From).Seconds() * 1000
	}
	return len(stalls), ms
}

// ack is a record that was acknowledged.
type ack struct {
	from time.Time
	took time.Duration
}

// beside says whether the record was under way in a stall of the disk, or within the second
// after one, in which what had gathered is taken in.
func (k ack) beside(stalls []bars.Stall) bool {
	return slices.ContainsFunc(stalls, func(x bars.Stall) bool {
		return k.from.Before(x.To.Add(time.Second)) && k.from.Add(k.took).After(x.From)
	})
}

// partOf is the time, in ms, within which that part of them was acknowledged; it sorts them.
func partOf(acks []ack, of float64) float64 {
	if len(acks) == 0 {
		return 0
	}
	slices.SortFunc(acks, func(x, y ack) int { return cmp.Compare(x.took, y.took) })
	return float64(acks[min(int(float64(len(acks))*of), len(acks)-1)].took.Microseconds()) / 1000
}

// cpuNow is what this process has used so far, in seconds.
func cpuNow() float64 {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano()).Seconds()
}

// intake is a source that writes at a rate.
type intake struct {
	st   *stream
	data []byte
	rate float64
	free chan []byte

	cutEvery time.Duration
	durable  atomic.Uint64 // the last checkpoint that is, and was not told of; 0: none

	taken    int64
	passes   passes
	held     time.Duration // that Append took, in all and at most
	heldMost time.Duration
	mu       sync.Mutex
	acks     []ack
	err      error
}

const (
	promoteWrites = 16
	promoteWrite  = 64 * kib
)

// run takes writes for so many seconds, and returns how far behind its rate it was at the end.
func (in *intake) run(seconds float64) (late float64, err error) {
	const bytes = promoteWrites * promoteWrite
	began := time.Now()
	cut := began
	for n := 0; ; n++ {
		due := began.Add(time.Duration(float64(n) * bytes / in.rate * 1e9))
		if due.Sub(began).Seconds() >= seconds {
			break
		}
		time.Sleep(time.Until(due))
		if time.Since(cut) >= in.cutEvery {
			cut = time.Now()
			if err := in.cut(); err != nil {
				return 0, err
			}
		}
		if err := in.one(func(int) int64 { return in.st.rng.Int64N(in.st.volume/promoteWrite) * promoteWrite }); err != nil {
			return 0, err
		}
		in.passes.look(in.taken, in.st.group.Usage().Log)
		if n := in.durable.Swap(0); n > 0 { // what is listed everywhere promotion may go to
			in.st.group.ListedEverywhere(n)
		}
	}
	late = time.Since(began).Seconds() - seconds
	return max(0, late), in.drain()
}

// whole writes the whole volume once, as fast as it is taken: what an initial sync brings.
func (in *intake) whole() error {
	for off := int64(0); off < in.st.volume; off += promoteWrites * promoteWrite {
		if err := in.one(func(i int) int64 { return off + int64(i)*promoteWrite }); err != nil {
			return err
		}
	}
	return in.drain()
}

// drain waits until all is acknowledged.
func (in *intake) drain() error {
	var bufs [][]byte
	for range inFlight {
		bufs = append(bufs, <-in.free)
	}
	for _, p := range bufs {
		in.free <- p
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.err
}

// one takes a record of writes at those places.
func (in *intake) one(place func(i int) int64) error {
	p := <-in.free
	writes := make([]write, promoteWrites)
	for i := range writes {
		at := in.st.rng.IntN((len(in.data)-promoteWrite)/512) * 512
		writes[i] = write{place(i), in.data[at : at+promoteWrite]}
	}
	p, err := in.st.seal(p[:0], writes...)
	if err != nil {
		return err
	}
	rec, err := record.Parse(p)
	if err != nil {
		return err
	}
	in.taken += int64(len(p))
	from := time.Now()
	defer func() {
		held := time.Since(from)
		in.held, in.heldMost = in.held+held, max(in.heldMost, held)
	}()
	return in.st.group.Append(rec, func(err error) {
		in.mu.Lock()
		in.acks = append(in.acks, ack{from, time.Since(from)})
		in.mu.Unlock()
		in.ended(err)
		in.free <- p
	})
}

// ended is told of a record that was taken in, or not.
func (in *intake) ended(err error) {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.err == nil {
		in.err = err
	}
}

// cut makes a checkpoint. Writes go on meanwhile, as those of a source do.
func (in *intake) cut() error {
	listed := in.st.cuts
	id, at, ticket := in.st.next()
	in.st.cuts = uint64(id.Seq)
	rec, err := record.Parse(record.AppendCut(nil, id, at, ticket, record.Cut{Checkpoint: in.st.cuts, Wall: time.Now().UnixNano(), Listed: listed, Solo: true,
		Volumes: []record.VolumeSize{{ID: volumeID, Bytes: in.st.volume}}}))
	if err != nil {
		return err
	}
	number := in.st.cuts
	return in.st.group.Append(rec, func(err error) {
		if in.ended(err); err == nil {
			in.durable.Store(number)
		}
	})
}

// historySeconds of intake are the least that the history holds: checkpoints are 5 s apart, and a pass goes from one to
// another. In less than five of them no target is run at its limit.
const historySeconds = 27

// promoteScale says what is tried in place of what the bar says; zero values: as the bar says.
type promoteScale struct {
	seconds float64 // of a sample
	rate    float64 // MB/s of intake
	history int64   // bytes of history at its limit
	empty   bool    // the volume is not synchronised first
}

// promote takes each pair with promotion and without, in turn the one and the other first. The
// volume is synchronised first, as that of every group is: its replica has no holes then.
// Beside each pair fio gives the disk the same flows: what the disk itself takes.
// At a smaller scale checkpoints are the nearer to each other: a history at its limit holds
// as many of them.
func (b *bench) promote() error {
	rate := b.try.rate * 1e6
	if rate == 0 {
		peer, _, err := b.fio(b.size(4 * gib))
		if err != nil {
			return err
		}
		rate = peer.BytesPerSecond / 4
	}
	seconds := max(3, 120*b.scale)
	if b.try.seconds > 0 {
		seconds = b.try.seconds
	}
	history := cmp.Or(b.try.history, b.size(max(6*gib, int64(rate*historySeconds))))
	run := func(limit int64, seconds float64) (r promoteResult, foreign float64, err error) {
		a := promoteArgs{Rate: rate, Seconds: seconds, Limit: limit, Cut: 5 * min(1, b.scale), Volume: b.size(16 * gib), Empty: b.try.empty}
		if a.Dir, err = b.Fresh("promote"); err != nil {
			return r, 0, err
		}
		defer os.RemoveAll(a.Dir)
		return bars.Alone[promoteResult](b.Run, "promote", a)
	}
	for i := range b.Pairs {
		var alone, both promoteResult
		var foreign float64
		for turn := range 2 {
			var err error
			if i%2 == turn {
				alone, _, err = run(0, seconds/4)
			} else {
				both, foreign, err = run(history, seconds)
			}
			if err != nil {
				return err
			}
		}
		if both.Passes < 2 {
			return fmt.Errorf("%d passes ended in %.0f s: that says nothing of whether promotion keeps up", both.Passes, seconds)
		}
		b.Sample(bars.Sample{Row: "promote-keeps-up", Value: keepsUp(both.Taken, both.Promoted), Ours: float64(both.Promoted) / mib, Peer: float64(both.Taken) / mib, OursUnit: "MiB", Foreign: foreign,
			Note: fmt.Sprintf("%.4f as counted by segments; intake %.0f MB/s, from the first to the last of the ends of %d passes; %.1f s late, level %s, %d MiB written, %.2f CPU-s/GiB, %.2f without", float64(both.Promoted)/float64(both.Taken), rate/1e6, both.Passes, both.Late, both.Level, both.Written/mib, both.perGiB(), alone.perGiB())})
		disk, err := b.flows(flows{Rate: rate, Replica: rate * float64(both.Written) / float64(both.Measured), Back: rate, Volume: b.size(16 * gib),
			Log: history, Seconds: seconds})
		if err != nil {
			return err
		}
		b.Sample(bars.Sample{Row: "promote-ack", Value: both.AckP99 / alone.AckP99, Ours: both.AckP99, Peer: alone.AckP99, OursUnit: "ms", Foreign: foreign,
			Note: fmt.Sprintf("half of them in %.1f ms, and %.1f without; all in %.0f and %.0f; before they were taken in they were held up for %.1f s in all, at most %.0f ms, and %.1f s without; the log's syncs p99 %.1f and %.1f; %d times the disk finished nothing for 0.1 s or more, %.0f ms in all, and %d without; p99 apart from that %.2f and %.2f",
				both.AckP50, alone.AckP50, both.AckMax, alone.AckMax, both.Held, both.HeldMost, alone.Held, both.SyncP99, alone.SyncP99, both.Stalls, both.Stalled, alone.Stalls, both.AckApart, alone.AckApart)})
		b.Sample(bars.Sample{Row: "promote-disk", Value: disk.Beside / disk.Alone, Ours: disk.Beside, Peer: disk.Alone, OursUnit: "ms", Foreign: foreign,
			Note: fmt.Sprintf("%d times the disk finished nothing for 0.1 s or more, %.0f ms in all", disk.Stalls, disk.Stalled)})
	}
	return nil
}

// perGiB is the CPU-seconds for each GiB taken.
func (r promoteResult) perGiB() float64 { return r.CPU * gib / float64(r.Measured) }
