package stripe

import (
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"syscall"
)

// names is what a Set knows: its members, its folders, and of each file which object it is
// and where that object's copies or shards lie. It is pure: entries go in, nothing is done.
type names struct {
	set        uint64 // drawn when the set was made
	generation uint64
	installed  bool // every member that is in has this generation
	geometry   Geometry
	nextMember uint32
	nextObject uint64
	members    map[uint32]*memberInfo
	folders    map[string]map[string]bool // names within, folders too
	files      map[string]uint64          // object
	objects    map[uint64]*objectInfo
}

// memberInfo is one store of a set.
type memberInfo struct {
	state memberState
	dir   string
}

type memberState uint8

const (
	memberIn       memberState = iota + 1
	memberOut                  // failed: what it holds is not read again
	memberRetiring             // read and kept up, and takes nothing new
)

func (s memberState) String() string {
	return [...]string{"?", "in", "out", "retiring"}[min(s, memberRetiring)]
}

// objectInfo is a file's content: K of its geometry is 1 for one that is mirrored.
type objectInfo struct {
	Geometry
	id     uint64
	name   string
	length int64    // of a striped one
	dirty  bool     // it was open for writing: its copies may differ in what was not synced
	places []uint32 // the members with a copy, or those of each shard in order; 0: that shard is missing
}

func (o *objectInfo) striped() bool { return o.K > 1 }

func (o *objectInfo) clone() *objectInfo {
	c := *o
	c.places = slices.Clone(o.places)
	return &c
}

// left is how many more copies or shards may go, by what holds says of members; -1: it is lost.
func (o *objectInfo) left(holds func(uint32) bool) int {
	have := 0
	for _, m := range o.places {
		if m != 0 && holds(m) {
			have++
		}
	}
	return have - o.K
}

func newNames(set uint64, g Geometry) *names {
	return &names{set: set, geometry: g, nextMember: 1, nextObject: 1, members: map[uint32]*memberInfo{},
		folders: map[string]map[string]bool{"/": {}}, files: map[string]uint64{}, objects: map[uint64]*objectInfo{}}
}

func clean(name string) string { return path.Clean("/" + name) }

func (n *names) outs() (ids []uint32) {
	for _, id := range slices.Sorted(maps.Keys(n.members)) {
		if n.members[id].state == memberOut {
			ids = append(ids, id)
		}
	}
	return ids
}

// holds says whether a member's copies count.
func (n *names) holds(id uint32) bool {
	m := n.members[id]
	return m != nil && m.state != memberOut
}

// mayMake says why a file or folder cannot be made under that name.
func (n *names) mayMake(name string) error {
	if n.folders[path.Dir(name)] == nil {
		return fs.ErrNotExist
	}
	if n.folders[name] != nil {
		return syscall.EISDIR
	}
	return nil
}

// apply takes an entry over. An entry that makes no sense is ErrCorrupt.
func (n *names) apply(e entry) error {
	switch e.kind {
	case entryMember:
		n.members[e.member] = &memberInfo{e.state, e.name}
		n.nextMember = max(n.nextMember, e.member+1)
	case entryMemberGone:
		delete(n.members, e.member)
	case entryFolder:
		if n.folders[path.Dir(e.name)] == nil {
			return corrupt("folder %s without the one above", e.name)
		}
		if n.folders[e.name] == nil {
			n.folders[e.name] = map[string]bool{}
			n.link(e.name)
		}
	case entryFile:
		if n.mayMake(e.name) != nil {
			return corrupt("file %s without its folder", e.name)
		}
		n.forget(e.name)
		n.files[e.name] = e.object.id
		n.link(e.name)
		o := e.object.clone()
		o.name = e.name
		n.objects[o.id] = o
		n.nextObject = max(n.nextObject, o.id+1)
	case entryPlaced:
		have := n.objects[e.object.id]
		if have == nil {
			return corrupt("object %x was placed and never made", e.object.id)
		}
		o := e.object.clone()
		o.name = have.name
		n.objects[o.id] = o
	case entryRename:
		id, ok := n.files[e.name]
		if !ok || n.mayMake(e.to) != nil {
			return corrupt("rename of %s", e.name)
		}
		if e.name == e.to {
			return nil
		}
		n.forget(e.to)
		n.unlink(e.name)
		delete(n.files, e.name)
		n.files[e.to] = id
		n.objects[id].name = e.to
		n.link(e.to)
	case entryRemove:
		if n.folders[e.name] != nil {
			delete(n.folders, e.name)
			n.unlink(e.name)
			return nil
		}
		n.forget(e.name)
	case entryGeometry:
		n.geometry = e.object.Geometry
	case entryInstalled:
		n.installed = true
	case entryNext:
		n.nextMember, n.nextObject = max(n.nextMember, e.member), max(n.nextObject, e.object.id)
	}
	return nil
}

func (n *names) link(name string)   { n.folders[path.Dir(name)][path.Base(name)] = true }
func (n *names) unlink(name string) { delete(n.folders[path.Dir(name)], path.Base(name)) }

// forget removes a file, if it is there.
func (n *names) forget(name string) {
	if id, ok := n.files[name]; ok {
		delete(n.objects, id)
		delete(n.files, name)
		n.unlink(name)
	}
}

// snapshot returns entries that make the same names out of none.
func (n *names) snapshot() []entry {
	es := []entry{{kind: entryGeometry, object: objectInfo{Geometry: n.geometry}},
		{kind: entryNext, member: n.nextMember, object: objectInfo{id: n.nextObject}}}
	for _, id := range slices.Sorted(maps.Keys(n.members)) {
		es = append(es, entry{kind: entryMember, member: id, state: n.members[id].state, name: n.members[id].dir})
	}
	for _, f := range slices.SortedFunc(maps.Keys(n.folders), func(a, b string) int {
		if d := strings.Count(a, "/") - strings.Count(b, "/"); d != 0 {
			return d
		}
		return strings.Compare(a, b)
	}) {
		if f != "/" {
			es = append(es, entry{kind: entryFolder, name: f})
		}
	}
	for _, f := range slices.Sorted(maps.Keys(n.files)) {
		es = append(es, entry{kind: entryFile, name: f, object: *n.objects[n.files[f]].clone()})
	}
	return es
}
