package guest

import "golang.org/x/sys/unix"

// Leap says that n requests more are in a queue than there are, and kicks.
func (g *Guest) Leap(queue int, n uint16) error {
	q := g.queues[queue]
	q.mu.Lock()
	defer q.mu.Unlock()
	q.avail += n - 1
	return q.submitLocked(0)
}

// Head puts a request there that begins at any descriptor, and kicks.
func (g *Guest) Head(queue int, head uint16) error {
	q := g.queues[queue]
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.submitLocked(head)
}

// UserAddress is the front end's own address of where the memory begins.
func (g *Guest) UserAddress() uint64 { return g.user(0) }

// Kick kicks, whether or not there is a request. It does not look at the memory.
func (g *Guest) Kick(queue int) {
	_, _ = unix.Write(g.queues[queue].kick, []byte{1, 0, 0, 0, 0, 0, 0, 0})
}
