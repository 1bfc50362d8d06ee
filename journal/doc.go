// Package journal keeps, at the recovery site, what the sources send: every record
// verbatim in a log per group, the replica that the log begins from, and the list
// of checkpoints that a group can be brought back to.
//
//	records ──► admit (pure) ──► queue ──► commit round ──► log        (segment)
//	                                            │      └──► replica    (initial sync only)
//	                                            ├──► done: the source may be told
//	                                            └──► watermark, catalogue, OnListed
//
// What a caller may rely on:
//   - Append calls done with nil only when the record survives power loss. Within a
//     group done is called in the order of the Appends; the sequence of a stream
//     that was durable never falls and has no gap.
//   - A record sent twice changes nothing. The same identity with another checksum
//     is ErrCorrupt, a sequence left out ErrGap, an older writer ErrFenced; another
//     history of the group is ErrLineage. What was refused left no trace.
//   - A checkpoint is listed once its cut is durable in every stream, confirmed
//     where there are several sources, with no resync open, and after the watermark
//     says so on disk. From then on damage below it is found, never cut away.
//   - A full disk stops intake, said openly, and nothing else: the store opens again and
//     shows what it holds. With space again it goes on by itself.
//   - What is damaged in one group concerns that group: one that does not open stands
//     there, says why and refuses everything, and the others are served.
//   - Damage that anybody finds, a reader or the read-back of a closed segment, is stated
//     in the manifest and in the group's state, and every checkpoint that needs what is
//     damaged is bad, those listed later too. The others stay good.
//   - An opening brings back what it finds damaged, by parity or from the rest of the log. When
//     it cannot, and has to know what the records said, the group opens up to there: what needs
//     nothing beyond is shown, and nothing is taken, promoted or dropped until it reads again.
//   - While a resync is open nothing is listed; what was listed before stays.
//   - History is kept for as long as the group's policy says (journal/retain), and shorter
//     only when space runs out, said openly. What is older is promoted into the replica
//     and dropped: never past a pin, a view, the last good checkpoint, or what is not
//     known to be listed on every target. No clock and no source expires anything.
//   - A live failover (journal/failover) is one synced entry of the manifest: from it on no source
//     appends, nothing of the history goes, and a view with scratch stands at its checkpoint, until
//     it is committed or rolled back. It goes on after a crash at any moment.
//   - A group is removed by one synced file (RemoveGroup): before it is there all that was
//     promised stands, from then on the group is gone, and its disks are plain files if they were
//     to be kept. Nobody who stands on the group loses what is under him: it is refused.
//   - Index and catalogue are caches on disk: the log and the manifest log are the truth,
//     and what is missing or not of them is built anew from them.
//
// Store and Group may be used by many goroutines at once. Callbacks (done, OnListed)
// run on the store's commit goroutines, one at a time for a group: they must not
// block, and of the methods that change anything they may call none.
//
// On disk a store is a folder of its own, locked while open:
//
//	lock  format  watermark          see FORMAT.md
//	reserve                          space that the next opening needs
//	ages  spare/                     when checkpoints were listed; segments for use again
//	groups/<group>/manifest          what this site decided (FORMAT.md)
//	groups/<group>/log/              segments (journal/segment)
//	groups/<group>/index/            where each version lies, and a snapshot (journal/index)
//	groups/<group>/replica/          raw disks and their sums (journal/replica)
//	groups/<group>/scratch/          what views write
//	groups/<group>/views/            the views that are kept
//
// An opening reads the ends of the log's segments, and the records that came after the
// index was last written: at most 1 GiB of a group, 256 MiB of one among many, and what Config.IndexMemory
// held of all. An index that is missing, damaged, behind, ahead or of another log is built
// anew from all records, also while the group is in use; a catalogue that does not
// cover what the log holds is brought up to it from the control records alone.
//
// Memory: what of all groups' indexes is not on disk takes up to Config.IndexMemory, and
// four times that while it cannot be written (then no data is taken); pages of indexes and
// blocks of views up to Config.CacheBytes; a stream 3 KiB for the sums of its last 256
// records, an older one that comes again is believed to be what it says. The queue of a group holds at most 64 MiB of records that are not durable yet, and the
// buffers in which all logs of a store put their rounds together are 64 MiB at most.
package journal
