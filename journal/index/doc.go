// Package index finds things in the journal: the catalogue (checkpoints and
// segments) and the versions of each place of a volume.
//
// The catalogue is a sorted map. It is a cache of facts that the log and the manifest log
// hold, and says itself how much of each group's log it tells (Covers): whoever opens a
// group tells it the rest, or all. Badger is its implementation and this package
// Badger's only importer; Memory stands in for it in tests.
//
// On disk it costs about 250 bytes a checkpoint of two volumes and one stream; in memory
// it does not grow with them (see OpenBadger). A page of a list costs what is on it,
// wherever it begins, and by whatever it is filtered.
//
// Table holds the extents of all records by the places they touch, and answers which
// record's bytes a checkpoint holds there: the newest records in memory, all others in
// sorted files (runs) that are merged in the background. It too is a cache, of the
// records' own tables. Versions is the same in memory alone, for tests and simulators.
package index

// Map is a sorted map, as the catalogue needs it. Calls may run
// concurrently; a batch is applied whole or not at all. Keys and values passed in
// are borrowed for the call, those passed out for the time of the callback.
type Map interface {
	Get(key []byte) (value []byte, ok bool, err error)
	// Scan calls emit for each key in [from, to), in order, until it returns false. What
	// is called must not use the map.
	Scan(from, to []byte, emit func(key, value []byte) bool) error
	// Back is Scan from the last key to the first.
	Back(from, to []byte, emit func(key, value []byte) bool) error
	// Update sets and then deletes.
	Update(set []Pair, del [][]byte) error
	Close() error
}

// Pair is one entry of a Map.
type Pair struct{ Key, Value []byte }
