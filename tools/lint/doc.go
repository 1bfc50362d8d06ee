// Package lint holds the tree to its own rules, as tests: which folders there
// are, who may import whom, through which one package each outside library
// enters, which packages are pure, and that every package says what it is.
package lint
