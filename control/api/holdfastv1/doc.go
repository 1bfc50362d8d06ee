// Package holdfastv1 holds the messages of control/api, generated from
// ../holdfast/v1/*.proto. Package api says how to use them.
package holdfastv1
