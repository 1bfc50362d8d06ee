package vhostuser

import (
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// memory is what a guest has, mapped. It does not change: a new table makes a new one.
type memory struct {
	regions []region
	maps    [][]byte // as they were mapped
}

type region struct {
	guest, user uint64
	mem         []byte
}

// mapMemory maps the regions, of which each lies in the file of its descriptor.
func mapMemory(list []regionInfo, fds []int) (*memory, error) {
	m := &memory{}
	for i, r := range list {
		mem, err := mapShared(fds[i], r.offset+r.bytes)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("region of memory at %#x: %w", r.guest, err), m.unmap())
		}
		m.maps = append(m.maps, mem)
		m.regions = append(m.regions, region{guest: r.guest, user: r.user, mem: mem[r.offset:]})
	}
	return m, nil
}

// mapShared maps the first bytes of a file, which must have them.
func mapShared(fd int, bytes uint64) ([]byte, error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, err
	}
	if st.Size < 0 || uint64(st.Size) < bytes {
		return nil, fmt.Errorf("%w: %d bytes of a file of %d", ErrProtocol, bytes, st.Size)
	}
	return unix.Mmap(fd, 0, int(bytes), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
}

// unmap gives the memory back; nobody may use it any more.
func (m *memory) unmap() (err error) {
	for _, p := range m.maps {
		err = errors.Join(err, unix.Munmap(p))
	}
	m.maps, m.regions = nil, nil
	return err
}

// appendGuest appends the n bytes at the guest's address, in as many pieces as there are
// regions that hold them; false: some of them are in none.
func (m *memory) appendGuest(dst [][]byte, at uint64, n uint32) ([][]byte, bool) {
	for n > 0 {
		p := m.piece(at, n, false)
		if len(p) == 0 {
			return dst, false
		}
		dst = append(dst, p)
		at, n = at+uint64(len(p)), n-uint32(len(p))
	}
	return dst, true
}

// user returns the n bytes at the front end's address, nil if no region has them whole.
func (m *memory) user(at uint64, n uint32) []byte {
	if p := m.piece(at, n, true); len(p) == int(n) {
		return p
	}
	return nil
}

// piece returns what the region that has the address has of n bytes there.
func (m *memory) piece(at uint64, n uint32, user bool) []byte {
	for i := range m.regions {
		r := &m.regions[i]
		begin := r.guest
		if user {
			begin = r.user
		}
		if off := at - begin; at >= begin && off < uint64(len(r.mem)) {
			end := min(off+uint64(n), uint64(len(r.mem)))
			return r.mem[off:end:end]
		}
	}
	return nil
}
