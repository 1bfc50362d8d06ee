package index

import (
	"sync"
	"sync/atomic"
)

// CacheKey names something in a Cache.
type CacheKey struct {
	Owner uint64 // from Cache.Owner
	At    uint64
	Part  uint64
}

// Cache keeps byte slices that were read and verified, of all indexes and views of a
// store, within a number of bytes. What is asked for once and never again (a scan) goes
// through a tenth of it and drives out nothing that was asked for twice; or it is only
// noted, and put when it is asked for again. It may be used by many goroutines.
//
// Values are shared: nobody writes to one that was put or got.
type Cache struct {
	owners atomic.Uint64
	shards [cacheShards]cacheShard
}

const (
	cacheShards   = 16
	cacheOverhead = 160 // bytes an entry costs beside its value
	notedBytes    = 16 << 10
)

// NewCache returns a cache of at most that many bytes.
func NewCache(bytes int64) *Cache {
	c := &Cache{}
	for i := range c.shards {
		s := &c.shards[i]
		s.limit = bytes / cacheShards
		s.entries = make(map[CacheKey]*cacheEntry)
		s.ghosts.keys = make(map[CacheKey]uint64)
	}
	return c
}

// Owner draws a number that keys of no other user have. What an owner left behind
// ages out by itself.
func (c *Cache) Owner() uint64 { return c.owners.Add(1) }

func (c *Cache) shard(k CacheKey) *cacheShard {
	h := (k.Owner*0x9e3779b97f4a7c15 ^ k.At*0xc2b2ae3d27d4eb4f ^ k.Part*0x165667b19e3779f9)
	return &c.shards[(h^h>>29)*0xbf58476d1ce4e5b9>>60]
}

// Get returns what was put under the key and is still here.
func (c *Cache) Get(k CacheKey) ([]byte, bool) { return c.shard(k).get(k) }

// Put keeps v, or not. It takes v: nobody may write to it again.
func (c *Cache) Put(k CacheKey, v []byte) { c.shard(k).put(k, v) }

// Again says whether the key was noted not long ago, or left the cache unasked for, and has
// not been put since: what is put now was asked for twice.
func (c *Cache) Again(k CacheKey) bool {
	s := c.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.ghosts.keys[k]
	return ok
}

// Note remembers for a while that the key was asked for: it costs no copy, and some bytes
// for each notedBytes of the cache at most.
func (c *Cache) Note(k CacheKey) {
	s := c.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.ghosts.keys[k]; !ok && s.entries[k] == nil {
		s.remember(k)
	}
}

// Bytes is what the cache holds, with what an entry costs beside its value.
func (c *Cache) Bytes() (n int64) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		n += s.probation.bytes + s.protected.bytes
		s.mu.Unlock()
	}
	return n
}

// cacheShard is a part of the keys. New ones stand in line in probation; who was asked
// for meanwhile moves on to protected, the others leave a ghost: whoever comes back
// while its ghost is remembered goes to protected at once. In protected a hand goes
// around (CLOCK): who was asked for since it last came by stays.
type cacheShard struct {
	mu                   sync.Mutex
	limit                int64
	entries              map[CacheKey]*cacheEntry
	probation, protected cacheQueue
	ghosts               ghosts
}

type cacheEntry struct {
	key       CacheKey
	value     []byte
	next      *cacheEntry
	asked     bool
	protected bool
}

func (e *cacheEntry) cost() int64 { return int64(len(e.value)) + cacheOverhead }

// cacheQueue is a line: in at the tail, out at the head.
type cacheQueue struct {
	head, tail *cacheEntry
	bytes      int64
}

func (q *cacheQueue) push(e *cacheEntry) {
	e.next = nil
	if q.tail == nil {
		q.head = e
	} else {
		q.tail.next = e
	}
	q.tail = e
	q.bytes += e.cost()
}

func (q *cacheQueue) pop() *cacheEntry {
	e := q.head
	q.head = e.next
	if q.head == nil {
		q.tail = nil
	}
	q.bytes -= e.cost()
	return e
}

func (s *cacheShard) get(k CacheKey) ([]byte, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := s.entries[k]
	if e == nil {
		return nil, false
	}
	e.asked = true
	return e.value, true
}

func (s *cacheShard) put(k CacheKey, v []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e := &cacheEntry{key: k, value: v}
	if s.entries[k] != nil || e.cost() > s.limit {
		return
	}
	s.entries[k] = e
	if e.protected = s.ghosts.take(k); e.protected {
		s.protected.push(e)
	} else {
		s.probation.push(e)
	}
	for s.probation.bytes+s.protected.bytes > s.limit {
		s.evict()
	}
}

// evict makes one step towards room: it moves an entry on, or out.
func (s *cacheShard) evict() {
	if s.probation.bytes > s.limit/10 || s.protected.head == nil {
		e := s.probation.pop()
		if e.asked {
			e.asked, e.protected = false, true
			s.protected.push(e)
			return
		}
		delete(s.entries, e.key)
		s.remember(e.key)
		return
	}
	e := s.protected.pop()
	if e.asked {
		e.asked = false
		s.protected.push(e)
		return
	}
	delete(s.entries, e.key)
}

// remember makes a ghost of a key: there are about as many as entries would have room.
func (s *cacheShard) remember(k CacheKey) {
	s.ghosts.add(k, max(len(s.entries)+1, int(s.limit/notedBytes)))
}

// ghosts are the keys that left probation last, or were noted.
type ghosts struct {
	keys map[CacheKey]uint64 // when it left
	line []ghost
	now  uint64
}

type ghost struct {
	key CacheKey
	at  uint64
}

func (g *ghosts) add(k CacheKey, limit int) {
	g.now++
	g.keys[k] = g.now
	g.line = append(g.line, ghost{k, g.now})
	for len(g.line) > limit {
		if old := g.line[0]; g.keys[old.key] == old.at {
			delete(g.keys, old.key)
		}
		g.line = g.line[1:]
	}
}

// take says whether the key is remembered, and forgets it.
func (g *ghosts) take(k CacheKey) bool {
	_, ok := g.keys[k]
	delete(g.keys, k)
	return ok
}
