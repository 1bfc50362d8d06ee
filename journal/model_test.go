package journal

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/holdfast-dr/holdfast/ioengine"
	"github.com/holdfast-dr/holdfast/ioengine/faultdisk"
	"github.com/holdfast-dr/holdfast/journal/index"
	"github.com/holdfast-dr/holdfast/journal/retain"
	"github.com/holdfast-dr/holdfast/wire/record"
	"pgregory.net/rapid"
)

// A model of a group: what every stream sent, and what every listed checkpoint must
// give back. Random histories are held against it, through restarts, crashes and the
// loss of whatever is only a cache.
type model struct {
	t       *rapid.T
	disk    *faultdisk.Disk
	cfg     Config
	w       *target // nil: closed
	kept    *index.Memory
	streams []*modelStream
	ticket  record.Ticket
	clock   record.Time
	number  uint64             // of the last cut
	arrived *cuts              // what the records that were acknowledged list; without recovery
	images  map[uint64][]image // of the listed checkpoints, one a stream
	cps     map[uint64]Checkpoint
	old     map[string][]byte // an older copy of the index's files
	oldList *index.Memory     // and of the catalogue
	marks   marks
}

// image is the volumes of one stream.
type image map[record.VolumeID][]byte

func (i image) clone() image {
	c := image{}
	for id, p := range i {
		c[id] = slices.Clone(p)
	}
	return c
}

// modelStream is a source: two volumes, and a row of records that wait to be sent.
type modelStream struct {
	id      record.Identity
	now     image
	sync    bool            // a resync is open
	queue   []record.Record // in order, not sent yet
	after   []image         // what the volumes hold after record seq i+1
	acked   record.Seq
	records []record.Record
}

// GoString keeps what is printed of a failed history short.
func (s *modelStream) GoString() string { return fmt.Sprint("stream ", s.id.Stream) }

const modelVolumeBytes = 80 << 10

func newModel(t *rapid.T) *model {
	m := &model{t: t, disk: faultdisk.New(512), kept: new(index.Memory), arrived: newCuts(), images: map[uint64][]image{}, cps: map[uint64]Checkpoint{}, clock: 1000}
	m.cfg = config(m.disk)
	m.cfg.SegmentBytes = 32 << 10
	m.cfg.IndexMemory = int64(rapid.IntRange(4<<10, 256<<10).Draw(t, "index memory"))
	m.cfg.CacheBytes = 1 << 20
	m.marks.born = map[uint64]time.Duration{}
	m.cfg.lookedAfter = true // age does, when it knows what must come of it
	m.cfg.Clock, m.cfg.Retention = m.storeClock, retain.Policy{History: retain.MinHistory, WarnPercent: 75}
	for i := range rapid.IntRange(1, 3).Draw(t, "streams") {
		s := &modelStream{id: record.Identity{Stream: record.StreamID(70 + i), Epoch: 1, Incarnation: 1}, now: image{}}
		for k := range 2 {
			s.now[record.VolumeID(10*i+k+1)] = make([]byte, modelVolumeBytes)
		}
		m.streams = append(m.streams, s)
	}
	m.open()
	for _, s := range m.streams {
		m.openSync(s, true)
		m.closeSync(s)
	}
	m.deliver(1 << 20)
	return m
}

func (m *model) must(err error) {
	m.t.Helper()
	if err != nil {
		m.t.Fatal(err)
	}
}

func (m *model) volumes() (vs []VolumeInfo) {
	for _, s := range m.streams {
		for _, id := range slices.Sorted(maps.Keys(s.now)) {
			vs = append(vs, VolumeInfo{ID: id, Name: fmt.Sprint("volume ", id), Bytes: int64(len(s.now[id]))})
		}
	}
	return vs
}

// open opens the store, on whatever disk there is now.
func (m *model) open() {
	m.cfg.FS = m.disk
	kept := m.kept
	m.cfg.OpenCatalogue = func() (index.Map, error) { return kept, nil }
	store, err := Open(m.cfg)
	m.must(err)
	g, err := store.OpenGroup(GroupInfo{ID: testGroup, Name: "group", Lineage: testLineage})
	m.must(err)
	m.must(g.SetVolumes(m.volumes()))
	m.w = &target{store: store, group: g}
	m.admit()
}

// admit lets all streams in; each stands where it was acknowledged.
func (m *model) admit() {
	for _, s := range m.streams {
		st, err := m.w.group.Admit(s.id.Stream, 1, m.nextLife(s))
		m.must(err)
		if st.Durable != s.acked {
			m.t.Fatalf("stream %s stands at %d, %d was acknowledged", s.id.Stream, st.Durable, s.acked)
		}
	}
}

// nextLife is the incarnation of the next record to be sent.
func (m *model) nextLife(s *modelStream) record.Incarnation {
	if len(s.queue) > 0 {
		return s.queue[0].Incarnation
	}
	return s.id.Incarnation
}

func (m *model) add(s *modelStream, seal func(id record.Identity, now record.Time) []byte) {
	s.id.Seq++
	m.clock++
	r, err := record.Parse(seal(s.id, m.clock))
	m.must(err)
	s.queue = append(s.queue, r)
	s.after = append(s.after, s.now.clone())
}

func (m *model) next() record.Ticket {
	m.ticket++
	return m.ticket
}

func (m *model) openSync(s *modelStream, initial bool) {
	if s.id.Seq > 0 {
		s.id.Incarnation++
	}
	s.sync = true
	m.add(s, func(id record.Identity, now record.Time) []byte {
		return record.AppendResyncOpen(nil, id, now, m.next(), record.Resync{Initial: initial, Reason: "model"})
	})
}

func (m *model) closeSync(s *modelStream) {
	s.sync = false
	m.add(s, func(id record.Identity, now record.Time) []byte {
		return record.AppendResyncClose(nil, id, now, m.next(), record.Resync{Initial: true})
	})
}

// write makes one record of a few writes: data, zeros, long zeros, overlaps.
func (m *model) write(s *modelStream) {
	b := record.NewBatch(record.Limits{})
	ids := slices.Sorted(maps.Keys(s.now))
	for range rapid.IntRange(1, 6).Draw(m.t, "writes") {
		vol := rapid.SampledFrom(ids).Draw(m.t, "volume")
		size := int64(len(s.now[vol]))
		off := rapid.Int64Range(0, size/512-1).Draw(m.t, "off") * 512
		n := min(512*rapid.Int64Range(1, 40).Draw(m.t, "sectors"), size-off)
		p := record.Piece{Volume: vol, Off: off, Len: n, Ticket: m.next()}
		if rapid.IntRange(0, 4).Draw(m.t, "zeros") != 0 {
			p.Data = make([]byte, n)
			for i := range p.Data { // compressible, and each write unlike any other
				p.Data[i] = byte(int(m.ticket)*31 + i/64)
			}
		}
		if !b.Add(p) {
			break
		}
		if p.Data == nil {
			clear(s.now[vol][off : off+n])
		} else {
			copy(s.now[vol][off:], p.Data)
		}
	}
	m.add(s, func(id record.Identity, now record.Time) []byte { return b.Seal(nil, id, now, record.NewCompressor()) })
}

// cut places a checkpoint in all streams, confirmed where there are several.
func (m *model) cut() {
	m.number += uint64(rapid.IntRange(1, 3).Draw(m.t, "step"))
	tag := rapid.SampledFrom([]string{"", "", "before the upgrade"}).Draw(m.t, "tag")
	listed := uint64(0)
	for n := range m.cps {
		listed = max(listed, n)
	}
	for _, s := range m.streams {
		var sizes []record.VolumeSize
		for id, p := range s.now {
			sizes = append(sizes, record.VolumeSize{ID: id, Bytes: int64(len(p))})
		}
		m.add(s, func(id record.Identity, now record.Time) []byte {
			return record.AppendCut(nil, id, now, m.next(), record.Cut{Checkpoint: m.number, Wall: int64(m.number), Tag: tag, Listed: listed, Solo: len(m.streams) == 1, Volumes: sizes})
		})
	}
	if len(m.streams) == 1 || rapid.IntRange(0, 9).Draw(m.t, "unconfirmed") == 0 {
		return
	}
	for _, s := range m.streams {
		m.add(s, func(id record.Identity, now record.Time) []byte {
			return record.AppendConfirm(nil, id, now, m.next(), m.number)
		})
	}
}

// resize makes a volume larger.
func (m *model) resize(s *modelStream) {
	id := rapid.SampledFrom(slices.Sorted(maps.Keys(s.now))).Draw(m.t, "volume")
	s.now[id] = append(s.now[id], make([]byte, 512*rapid.IntRange(1, 64).Draw(m.t, "sectors"))...)
	size := record.VolumeSize{ID: id, Bytes: int64(len(s.now[id]))}
	m.add(s, func(rid record.Identity, now record.Time) []byte {
		return record.AppendResize(nil, rid, now, m.next(), size)
	})
}

// deliver sends up to n records, of streams in any order.
func (m *model) deliver(n int) {
	for ; n > 0; n-- {
		var some []*modelStream
		for _, s := range m.streams {
			if len(s.queue) > 0 {
				some = append(some, s)
			}
		}
		if len(some) == 0 {
			break
		}
		s := rapid.SampledFrom(some).Draw(m.t, "stream")
		r := s.queue[0]
		m.must(m.w.group.admitFor(r))
		m.must(m.w.send([]record.Record{r}, 1))
		s.queue, s.acked = s.queue[1:], r.Seq
		s.records = append(s.records, r)
		m.arrive(r)
	}
	if len(m.streams[0].records) > 0 {
		m.must(m.w.group.admitFor(m.last())) // what was acknowledged is listed by now
	}
}

func (m *model) last() record.Record {
	s := m.streams[0]
	return record.Record{Header: record.Header{Identity: record.Identity{Stream: s.id.Stream, Epoch: 1, Incarnation: m.nextLife(s)}}}
}

// arrive says what the record makes a checkpoint of.
func (m *model) arrive(r record.Record) {
	d := durableRecord{stream: r.Stream, seq: r.Seq, kind: r.Kind, time: r.Time}
	m.must(d.readBody(r))
	cp, ok := m.arrived.step(d)
	if !ok {
		return
	}
	m.cps[cp.Number] = cp
	m.marks.born[cp.Number] = m.marks.passed()
	for _, at := range cp.At {
		s := m.streams[slices.IndexFunc(m.streams, func(s *modelStream) bool { return s.id.Stream == at.Stream })]
		m.images[cp.Number] = append(m.images[cp.Number], s.after[at.Seq-1])
	}
}

// listed compares all that is listed with the model.
func (m *model) listed() {
	cps, err := m.w.group.Checkpoints(0, 10000)
	m.must(err)
	want := slices.Sorted(maps.Keys(m.cps))
	var got []uint64
	for _, cp := range cps {
		got = append(got, cp.Number)
		if have, want := fmt.Sprintf("%+v", cp), fmt.Sprintf("%+v", m.cps[cp.Number]); have != want {
			m.t.Fatalf("listed is\n%s, want\n%s", have, want)
		}
	}
	if !slices.Equal(got, want) {
		m.t.Fatalf("listed are %v, want %v", got, want)
	}
	st, good := m.w.group.State(), 0
	for _, cp := range m.cps {
		if cp.State == index.Good {
			good++
		}
	}
	if st.Count != good {
		m.t.Fatalf("%d good ones are counted, want %d", st.Count, good)
	}
}

// look opens one of the checkpoints and compares it, whole or in part.
func (m *model) look() {
	numbers := slices.Sorted(maps.Keys(m.cps))
	if len(numbers) == 0 {
		return
	}
	m.compare(rapid.SampledFrom(numbers).Draw(m.t, "checkpoint"), func(size int64) (off, n int64) {
		off = rapid.Int64Range(0, size-1).Draw(m.t, "off")
		return off, rapid.Int64Range(1, size-off).Draw(m.t, "n")
	})
}

func (m *model) compare(number uint64, part func(size int64) (off, n int64)) {
	v, err := m.w.group.OpenView(number, ViewOptions{})
	m.must(err)
	defer v.Close()
	for _, im := range m.images[number] {
		for id, want := range im {
			d, ok := v.Device(id)
			if !ok || d.Size() != int64(len(want)) {
				m.t.Fatalf("checkpoint %d: volume %d: %v", number, id, ok)
			}
			off, n := part(d.Size())
			got := make([]byte, n)
			m.must(d.ReadAt(got, off))
			if want := want[off : off+n]; !bytes.Equal(got, want) {
				m.t.Fatalf("checkpoint %d, volume %d differs at %d", number, id, off+int64(firstDifference(got, want)))
			}
		}
	}
}

// all compares every listed checkpoint whole.
func (m *model) all() {
	m.listed()
	for n := range m.cps {
		m.compare(n, func(size int64) (int64, int64) { return 0, size })
	}
}

// restart ends the store in one way or another, does what is asked to what it left, and
// opens it again.
func (m *model) restart(how string, meanwhile func()) {
	switch how {
	case "close":
		m.must(m.w.store.Close())
	case "kill":
		dead := m.disk
		m.disk = dead.Kill()
		m.must(m.w.store.Close())
	case "crash":
		dead := m.disk
		keep := keeps[rapid.IntRange(0, len(keeps)-1).Draw(m.t, "keep")]
		m.disk = dead.Crash(rand.New(rand.NewPCG(uint64(rapid.IntRange(0, 1000).Draw(m.t, "seed")), 1)), keep)
		m.must(m.w.store.Close())
	}
	meanwhile()
	m.open()
	m.listed()
}

func (m *model) indexDir() string {
	return path.Join("/store", groupsName, testGroup.String(), indexName)
}

// readDir returns the files of a folder; nil: it is not there.
func readDir(disk *faultdisk.Disk, dir string) map[string][]byte {
	names, err := disk.List(dir)
	if err != nil {
		return nil
	}
	files := make(map[string][]byte)
	for _, n := range names {
		if p, err := readManifest(disk, path.Join(dir, n)); err == nil {
			files[n] = p
		}
	}
	return files
}

// writeDir makes the folder hold the files and nothing else, durably.
func writeDir(disk *faultdisk.Disk, dir string, files map[string][]byte) error {
	have, err := disk.List(dir)
	if err != nil {
		err = disk.Mkdir(dir)
	}
	for _, n := range have {
		err = errors.Join(err, disk.Remove(path.Join(dir, n)))
	}
	for n, p := range files {
		f, e := disk.Open(path.Join(dir, n), ioengine.Create)
		if err = errors.Join(err, e); err != nil {
			return err
		}
		_, e = f.WriteAt(p, 0)
		err = errors.Join(err, e, f.Sync(), f.Close())
	}
	return errors.Join(err, disk.SyncDir(dir), disk.SyncDir(path.Dir(dir)))
}

// clone returns a copy of a catalogue's map.
func clone(kept *index.Memory) *index.Memory {
	c := new(index.Memory)
	_ = kept.Scan(nil, []byte{0xff}, func(k, v []byte) bool {
		_ = c.Update([]index.Pair{{Key: slices.Clone(k), Value: slices.Clone(v)}}, nil)
		return true
	})
	return c
}

// harm does something to what is only a cache.
func (m *model) harm() {
	switch rapid.SampledFrom([]string{"no index", "older index", "keep a copy", "flip", "no catalogue", "older catalogue", "neither"}).Draw(m.t, "harm") {
	case "no index":
		m.must(writeDir(m.disk, m.indexDir(), nil))
	case "older index":
		if m.old != nil {
			m.must(writeDir(m.disk, m.indexDir(), m.old))
		}
	case "keep a copy":
		m.old, m.oldList = readDir(m.disk, m.indexDir()), clone(m.kept)
	case "flip":
		files := readDir(m.disk, m.indexDir())
		if len(files) == 0 {
			return
		}
		n := rapid.SampledFrom(slices.Sorted(maps.Keys(files))).Draw(m.t, "file")
		if len(files[n]) > 0 {
			m.must(m.disk.Rot(path.Join(m.indexDir(), n), rapid.Int64Range(0, int64(len(files[n]))-1).Draw(m.t, "byte"), 1))
		}
	case "no catalogue":
		m.kept = new(index.Memory)
	case "older catalogue":
		if m.oldList != nil {
			m.kept = clone(m.oldList)
		}
	case "neither":
		m.kept = new(index.Memory)
		m.must(writeDir(m.disk, m.indexDir(), nil))
	}
}

// modelOps are what a history is made of: the name says how often, as "name*weight".
// Files that test more add theirs.
var modelOps = map[string]func(m *model){
	"write*6": func(m *model) { m.write(m.any()) },
	"cut*4":   (*model).cut,
	"resync": func(m *model) {
		s := m.any()
		m.openSync(s, false)
		for range rapid.IntRange(0, 2).Draw(m.t, "during") {
			m.write(s)
		}
		if rapid.Bool().Draw(m.t, "cut in it") {
			m.cut()
		}
		m.closeSync(s)
	},
	"resize":    func(m *model) { m.resize(m.any()) },
	"deliver*4": func(m *model) { m.deliver(rapid.IntRange(1, 8).Draw(m.t, "records")) },
	"thin*2":    (*model).thin,
	"tag":       (*model).tag,
	"pin":       (*model).pin,
	"unpin":     (*model).unpin,
	"promote":   (*model).promote,
	"age*2":     (*model).age,
	"look*3":    (*model).look,
	"list":      (*model).listed,
	"close":     func(m *model) { m.restart("close", func() {}) },
	"kill":      func(m *model) { m.restart("kill", func() {}) },
	"crash":     func(m *model) { m.restart("crash", func() {}) },
	"harm*2": func(m *model) {
		m.restart(rapid.SampledFrom([]string{"close", "kill", "crash"}).Draw(m.t, "how"), m.harm)
	},
}

// thin does without the checkpoints between two, and perhaps folds the log.
func (m *model) thin() {
	numbers := slices.Sorted(maps.Keys(m.cps))
	if len(numbers) < 3 {
		return
	}
	i := rapid.IntRange(0, len(numbers)-3).Draw(m.t, "from")
	j := rapid.IntRange(i+2, len(numbers)-1).Draw(m.t, "to")
	may := numbers[j] <= m.w.group.thinCeiling()
	between := slices.DeleteFunc(slices.Clone(numbers[i+1:j]), func(n uint64) bool { return m.cps[n].Pinned })
	n, err := m.w.group.thin([]retain.Pair{{From: numbers[i], To: numbers[j]}})
	m.must(err)
	if may && n != len(between) || !may && n != 0 {
		m.t.Fatalf("thinning between %d and %d: %d went, want %d", numbers[i], numbers[j], n, len(between))
	}
	if may {
		m.marks.thins = append(m.marks.thins, span{numbers[i], numbers[j]})
		for _, n := range between {
			m.forget(n)
		}
	}
	m.listed()
	if rapid.Bool().Draw(m.t, "fold") {
		m.must(m.w.foldAll())
		m.all()
	}
}

func (m *model) any() *modelStream { return rapid.SampledFrom(m.streams).Draw(m.t, "of stream") }

// TestModel runs random histories of several streams and volumes, with checkpoints,
// resyncs, resizes and views, through restarts, kills, crashes and the loss of caches:
// what is listed, and every byte of it, is the model's.
func TestModel(t *testing.T) { runModel(t, 40, modelOps) }

// TestModelOfRetention is TestModel for what makes checkpoints go: they come fast, some are
// pinned, and most of what happens is that they are promoted, thinned out or too old.
func TestModelOfRetention(t *testing.T) {
	ops := map[string]func(*model){"checkpoint*5": func(m *model) {
		m.write(m.any())
		m.cut()
		m.deliver(8)
	}}
	for _, name := range []string{"thin*2", "pin", "unpin", "promote", "age*2", "look*3", "close", "crash"} {
		ops[name] = modelOps[name]
	}
	runModel(t, 25, ops)
}

func runModel(t *testing.T, most int, ops map[string]func(*model)) {
	var names []string
	for name := range ops {
		weight := 1
		if _, n, ok := strings.Cut(name, "*"); ok {
			fmt.Sscan(n, &weight)
		}
		for range weight {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	rapid.Check(t, func(t *rapid.T) {
		m := newModel(t)
		for range rapid.IntRange(most/8, most).Draw(t, "steps") {
			m.heed()
			ops[rapid.SampledFrom(names).Draw(t, "op")](m)
		}
		m.deliver(1 << 20)
		m.heed()
		m.all()
		m.restart("close", func() {})
		m.all()
		m.must(m.w.store.Close())
	})
}
