// Package roster is what users have asked of a group at its source beyond its
// configuration, and how far that has come: whether it is paused, which volumes are to be
// sent whole once more, and which volumes there are and in which phase. It is pure; its
// user keeps what Encode gives in a file, and does so before it acts on a change.
//
//	adding ──► joining ──► member          gone
//	  │ stated    │ all of it was marked     ▲ for good: an id is never given out twice
//	  │           │ dirty once, it is read   │
//	  └───────────┴─── beside the others ────┘
//
// What a reader may rely on:
//   - Only members stand in cuts. A volume that was ever a member was whole at the target then.
//   - What is written to a volume that is adding or gone is not sent: of the first all is
//     dirty later, of the second nobody asks.
//   - A volume of the configuration that the roster does not know is a member if there was no
//     roster yet (the group is new, or came from a release that kept none), else it is adding.
//   - One that the configuration had and has no more is gone. One that a command added stays.
//   - Each step is one file: a process that is killed between two goes on from the first.
package roster
