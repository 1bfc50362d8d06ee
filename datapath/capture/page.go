package capture

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/holdfast-dr/holdfast/wire/record"
)

// The order page; FORMAT.md tells what each word means and who writes it.
const (
	pageMagic   = 0x3147_5044_524f_4648 // "HFORDPG1"
	pageVersion = 1
	pageBytes   = 8192

	pageAtMagic       = 0
	pageAtVersion     = 8
	pageAtBytes       = 12
	pageAtBoot        = 16
	pageAtGroup       = 32
	pageAtID          = 40
	pageAtNext        = 64
	pageAtLost        = 128
	pageAtHold        = 192
	pageAtDeadline    = 200
	pageAtDurable     = 208
	pageAtCovered     = 216
	pageAtIncarnation = 224
	pageAtPassed      = 232
	pageAtBroken      = 256
	pageAtSleeping    = 320
	pageAtEntries     = 4096

	pageEntries     = 64
	pageEntryBytes  = 64
	entryAtKey      = 0
	entryAtInstance = 8
	entryAtPID      = 16
)

var _ [pageBytes]byte = [pageAtEntries + pageEntries*pageEntryBytes]byte{}

// orderPage is the group's few shared words on this host.
type orderPage struct {
	mem []byte
	id  uint64 // of this very page

	next, lost, hold, deadline, durable, covered, incarnation, passed, broken, sleeping *atomic.Uint64
}

// openPage maps the group's order page in dir. Whoever comes first in a boot makes it;
// it has its name only once it is complete, and is replaced only after a boot.
func openPage(dir string, group record.GroupID, boot bootID) (*orderPage, error) {
	name := filepath.Join(dir, fmt.Sprintf("order-%s.page", group))
	lock, err := lockFile(name + ".lock")
	if err != nil {
		return nil, err
	}
	defer lock.Close() // nothing was written through it
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return makePage(name, group, boot)
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if st.Size() != pageBytes {
		return nil, fmt.Errorf("order page %s: %d bytes: %w", name, st.Size(), ErrCorrupt)
	}
	p, err := mapPage(int(f.Fd()))
	if err != nil {
		return nil, err
	}
	switch pageBoot, err := checkPage(p.mem, group); {
	case err != nil:
		p.close()
		return nil, fmt.Errorf("order page %s: %w", name, err)
	case pageBoot != boot: // nobody of this boot has it mapped: they would have replaced it
		p.close()
		return makePage(name, group, boot)
	}
	return p, nil
}

func makePage(name string, group record.GroupID, boot bootID) (*orderPage, error) {
	var id [8]byte
	if _, err := rand.Read(id[:]); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(name+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, pageBytes); err != nil {
		return nil, fmt.Errorf("order page %s: %w", name, err)
	}
	if _, err := f.WriteAt(newPage(group, boot, binary.LittleEndian.Uint64(id[:])|1), 0); err != nil {
		return nil, err
	}
	p, err := mapPage(int(f.Fd()))
	if err != nil {
		return nil, err
	}
	if err := os.Rename(name+".new", name); err != nil {
		p.close()
		return nil, err
	}
	return p, nil
}

// newPage returns a fresh page: the first ticket is 1, and something is lost, since
// nobody knows what was written before.
func newPage(group record.GroupID, boot bootID, id uint64) []byte {
	mem := make([]byte, pageBytes)
	le := binary.LittleEndian
	le.PutUint64(mem[pageAtMagic:], pageMagic)
	le.PutUint32(mem[pageAtVersion:], pageVersion)
	le.PutUint32(mem[pageAtBytes:], pageBytes)
	copy(mem[pageAtBoot:], boot[:])
	le.PutUint64(mem[pageAtGroup:], uint64(group))
	le.PutUint64(mem[pageAtID:], id)
	le.PutUint64(mem[pageAtNext:], 1)
	le.PutUint64(mem[pageAtLost:], 1)
	return mem
}

// checkPage says whether mem is the page of the group, and of which boot.
func checkPage(mem []byte, group record.GroupID) (bootID, error) {
	le := binary.LittleEndian
	if len(mem) != pageBytes || le.Uint64(mem[pageAtMagic:]) != pageMagic {
		return bootID{}, fmt.Errorf("no order page: %w", ErrCorrupt)
	}
	if v := le.Uint32(mem[pageAtVersion:]); v != pageVersion {
		return bootID{}, fmt.Errorf("order page version %d: %w", v, ErrVersion)
	}
	if le.Uint32(mem[pageAtBytes:]) != pageBytes {
		return bootID{}, fmt.Errorf("order page size: %w", ErrCorrupt)
	}
	if g := record.GroupID(le.Uint64(mem[pageAtGroup:])); g != group {
		return bootID{}, fmt.Errorf("order page of group %s: %w", g, ErrCorrupt)
	}
	if le.Uint64(mem[pageAtNext:]) == 0 || le.Uint64(mem[pageAtID:]) == 0 {
		return bootID{}, fmt.Errorf("order page words: %w", ErrCorrupt)
	}
	return bootID(mem[pageAtBoot : pageAtBoot+16]), nil
}

func mapPage(fd int) (*orderPage, error) {
	mem, err := mapFD(fd, pageBytes, true)
	if err != nil {
		return nil, err
	}
	return &orderPage{
		mem:         mem,
		id:          binary.LittleEndian.Uint64(mem[pageAtID:]),
		next:        word(mem, pageAtNext),
		lost:        word(mem, pageAtLost),
		hold:        word(mem, pageAtHold),
		deadline:    word(mem, pageAtDeadline),
		durable:     word(mem, pageAtDurable),
		covered:     word(mem, pageAtCovered),
		incarnation: word(mem, pageAtIncarnation),
		passed:      word(mem, pageAtPassed),
		broken:      word(mem, pageAtBroken),
		sleeping:    word(mem, pageAtSleeping),
	}, nil
}

func (p *orderPage) close() { unmapAll(p.mem) }

// take takes the next ticket.
func (p *orderPage) take() record.Ticket { return record.Ticket(p.next.Add(1) - 1) }

// last is the highest ticket taken so far; 0 for none.
func (p *orderPage) last() record.Ticket { return record.Ticket(p.next.Load() - 1) }

func (p *orderPage) entryWord(i int, at int64) *atomic.Uint64 {
	return word(p.mem, pageAtEntries+int64(i)*pageEntryBytes+at)
}

// enter puts a filter in the page, in the place of its dead predecessor if that one
// stands there still. The caller holds the filter's lock: nobody else uses key.
func (p *orderPage) enter(key, instance uint64) error {
	place := -1
	for i := range pageEntries {
		if p.entryWord(i, entryAtKey).Load() == key {
			place = i
			break
		}
	}
	for i := 0; place < 0 && i < pageEntries; i++ {
		if p.entryWord(i, entryAtKey).CompareAndSwap(0, key) {
			place = i
		}
	}
	if place < 0 {
		return fmt.Errorf("more than %d filters in one group on this host", pageEntries)
	}
	p.entryWord(place, entryAtPID).Store(uint64(os.Getpid()))
	p.entryWord(place, entryAtInstance).Store(instance)
	return nil
}

// leave takes a filter out; it has no ticket that is not published.
func (p *orderPage) leave(key uint64) {
	for i := range pageEntries {
		if p.entryWord(i, entryAtKey).Load() == key {
			p.entryWord(i, entryAtInstance).Store(0)
			p.entryWord(i, entryAtKey).Store(0)
			return
		}
	}
}

// pageEntry is one filter that stands in the page.
type pageEntry struct{ key, instance uint64 }

// entered appends the filters that stand in the page.
func (p *orderPage) entered(list []pageEntry) []pageEntry {
	for i := range pageEntries {
		key := p.entryWord(i, entryAtKey).Load()
		if instance := p.entryWord(i, entryAtInstance).Load(); key != 0 && instance != 0 {
			list = append(list, pageEntry{key, instance})
		}
	}
	return list
}
