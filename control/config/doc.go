// Package config reads the configuration files of the daemons and the context of
// the user's command: one YAML file each, and the words sizes, rates and durations
// are written in.
//
// What a reader may rely on:
//   - An unknown key is refused. All mistakes of a file are told at once, each once
//     and on a line of its own, with the path of the key and the line where it stands.
//   - What Load returns has been validated and carries its defaults.
//   - Marshal writes a file that Load reads back as the same value.
//
// The words:
//
//	Size      an integer with B, KiB, MiB, GiB or TiB (K, M, G, T alike; none is B): 64KiB
//	Rate      a number with kbit, Mbit or Gbit (per second), or none: 50Mbit
//	Duration  as in Go: 5s
//	ID        16 hexadecimal digits, not all zero
//	name      [a-z0-9][a-z0-9._-]{0,62}; never used as a path
package config
