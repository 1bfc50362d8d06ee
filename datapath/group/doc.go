// Package group decides for one group at its source: when to cut a checkpoint and
// when a cut is void, when an incarnation begins and where, when a resync opens
// and whether it may close, and what state the group is in. It is pure: Step takes
// what happened and returns what to do; datapath carries that out.
//
// A group's life within one process, and what moves it:
//
//	      Stood              Begun           Close placed
//	idle ───────► beginning ───────► syncing ────────────► live
//	  ▲                              ▲    │ walk until        │
//	  │ the target lacks records     │    └─ nothing is dirty │
//	  └ that are gone here           └────────── lost ◄───────┘
//
// What the rest relies on:
//   - A cut is placed only while live, and only if lost, read after the cut's
//     ticket was taken, is what the last closed resync covered. So no checkpoint
//     misses a write that came before one it holds.
//   - A resync closes only if lost, read after the closing ticket, is what it was
//     before the dirty maps were found empty, and they are empty still.
//   - Nothing of an earlier life counts: actions and their answers carry the life.
//   - While it is paused no life begins, and the one there was is over once an answer of the
//     target's that was under way for it has come.
//   - A volume that is added stands in cuts from when MayJoin says so.
//   - Among several source VRAs cuts come from outside (Shared); what they hold to is the same.
//   - A cut says that the guests were at rest only if they were when its ticket was taken.
//   - The state is never better than the truth: protected needs a checkpoint that
//     was listed after the last resync closed.
package group
