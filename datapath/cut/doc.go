// Package cut decides how the source VRAs of one group take one checkpoint together: what a
// member does when it is told to, and how a leader goes about it. It is pure: Step takes what
// happened and returns what to do; datapath carries that out, over the order page, the stream,
// and connections between the VRAs.
//
//	leader                              each member, the leader's own VRA among them
//	Place ────────────────────────────► set the hold word, then take the ticket, then read lost
//	      ◄──────────────────── Placed   (no filter answers a write that looks at the word now)
//	all have: Release ────────────────► clear the word, then read broken and lost again
//	      ◄────────────────────── Held   (neither has changed)
//	all have: Confirm ────────────────► write the confirm into the stream
//
// What the rest relies on:
//   - Between the last Placed and the first Release every member's guests are held, or the cut
//     is void. So a write that was answered anywhere before a write of the cut began is in the
//     cut: a checkpoint that is confirmed in every stream holds no write without its causes.
//   - A member has one cut open. It takes no number twice in a life of its stream, and none at or
//     below what it took, so that two leaders never have one number for two cuts.
//   - A hold lasts HoldMost at most, whatever dies, and after one that lasted t a member rests
//     for 99 t: all together they are at most 1 % of the time.
//   - There may be several leaders. They are in each other's way, and no more.
package cut
