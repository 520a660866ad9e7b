// Package scenario has the questions that are asked of a server, each a type
// whose fields are its flags: how many connections at what memory each, how
// long until all have a message, what a push costs, how long an answer takes,
// how long until all are back. Its method Run asks one and writes the report.
//
// Below the questions stand a session, which is one run of one of them, and its
// subjects: the server, and the bare loop of system calls that it is held
// against. The program that uses it starts the bare loop when its first
// argument is "floor-server", and is the generator's worker.
//
// It knows neither sockets nor what a report looks like.
package scenario
