// Package holdfastv1connect holds the handlers and clients of control/api's
// services over plain messages, generated from ../../holdfast/v1/*.proto. Package
// api serves and dials them.
package holdfastv1connect
