// Package report says what a run measured: as a table, JSON, HTML, Markdown and
// plots at its end, and in a line of progress while it lasts.
//
// It is given plain figures under their keys, histograms and reasons. It knows
// which figures there are, their units and which of them a floor bounds, but
// not how any is measured: no connection, no generator, no scenario.
package report
