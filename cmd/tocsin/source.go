package main

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
	"go.yaml.in/yaml/v4" // the YAML organization's own, where gopkg.in/yaml.v3 is archived

	"github.com/tocsin-push/tocsin/internal/nearest"
)

// sources are where settings that are not on the command line come from: the
// environment, and behind it the file. A setting is a flag that has a group;
// the others belong to one call, and can only be given with it.
type sources struct {
	path   string
	file   map[string]entry
	origin map[string]string // of each setting that was found, for messages
}

// entry is a key's value in the file.
type entry struct {
	value any // a string, or []string
	line  int
}

func newSources() *sources { return &sources{origin: make(map[string]string)} }

func variable(flag *kong.Flag) string {
	return "TOCSIN_" + strings.ToUpper(strings.ReplaceAll(flag.Name, "-", "_"))
}

// Resolve implements [kong.Resolver].
func (s *sources) Resolve(ctx *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
	if flag.Group == nil {
		return nil, nil
	}
	if err := s.load(ctx); err != nil {
		return nil, err
	}
	if value, ok := os.LookupEnv(variable(flag)); ok {
		s.origin[flag.Name] = "$" + variable(flag)
		return value, nil
	}
	e, ok := s.file[flag.Name]
	if !ok {
		return nil, nil
	}
	s.origin[flag.Name] = fmt.Sprintf("%s line %d", s.path, e.line)
	list, ok := e.value.([]string)
	switch {
	case !ok:
		return e.value, nil
	case !flag.IsSlice():
		return nil, fileError{s.path, e.line, flag.Name + " takes one value"}
	}
	return kong.JoinEscaped(list, flag.Tag.Sep), nil
}

// Validate implements [kong.Resolver].
func (*sources) Validate(*kong.Application) error { return nil }

// fileError is a mistake in the file rather than in a value.
type fileError struct {
	path string
	line int
	what string
}

func (e fileError) Error() string { return fmt.Sprintf("%s line %d: %s", e.path, e.line, e.what) }

// load reads the file once, if there is one, and refuses variables that name no
// setting.
func (s *sources) load(ctx *kong.Context) error {
	if s.file != nil {
		return nil
	}
	s.file = make(map[string]entry)
	var known, variables []string
	for _, node := range append(ctx.Model.Leaves(true), ctx.Model.Node) {
		for _, flag := range node.Flags {
			if flag.Group != nil {
				known = append(known, flag.Name)
				variables = append(variables, variable(flag))
			} else if flag.Name == "config" {
				s.path, _ = ctx.FlagValue(flag).(string)
			}
		}
	}
	if err := checkVariables(os.Environ(), append(variables, fileVariable)); err != nil {
		return configError{err}
	}
	if s.path == "" {
		s.path = os.Getenv(fileVariable)
	}
	if s.path == "" {
		return nil
	}
	text, err := os.ReadFile(s.path)
	if err != nil {
		return configError{fmt.Errorf("config cannot be read: %w", err)}
	}
	return s.parse(text, known)
}

// fileVariable names the file; it is the one variable that is no setting.
const fileVariable = "TOCSIN_CONFIG"

// serviceLink matches the variables that Kubernetes sets in every pod beside a
// service whose name begins with tocsin.
var serviceLink = regexp.MustCompile(`^TOCSIN(_\w+)?_(SERVICE_HOST=|SERVICE_PORT(_\w+)?=|PORT(_\d+_(TCP|UDP|SCTP))?=\w+://|PORT_\d+_(TCP|UDP|SCTP)_(PROTO|PORT|ADDR)=)`)

// checkVariables returns an error for a variable that looks like a setting's
// and is not in known. Each of environ is NAME=value.
func checkVariables(environ, known []string) error {
	for _, v := range environ {
		name, _, _ := strings.Cut(v, "=")
		if strings.HasPrefix(name, "TOCSIN_") && !slices.Contains(known, name) && !serviceLink.MatchString(v) {
			return fmt.Errorf("there is no variable %s, %s", name, meant(name, known))
		}
	}
	return nil
}

// meant returns what may help somebody who wrote given instead of one of known.
func meant(given string, known []string) string {
	if word, ok := nearest.Word(given, known); ok {
		return "is " + word + " meant?"
	}
	return "see tocsin serve --help"
}

// configError ends the search for settings.
type configError struct{ error }

func (s *sources) parse(text []byte, known []string) error {
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return configError{fmt.Errorf("%s is not YAML: %s", s.path, strings.ReplaceAll(err.Error(), "\n", " "))}
	}
	if len(doc.Content) == 0 || doc.Content[0].Tag == "!!null" {
		return nil
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		return fileError{s.path, root.Line, "settings are written as key: value"}
	}
	for i := 0; i+1 < len(root.Content); i += 2 {
		key, val := root.Content[i], root.Content[i+1]
		if !slices.Contains(known, key.Value) {
			return fileError{s.path, key.Line, fmt.Sprintf("there is no setting %q, %s", key.Value, meant(key.Value, known))}
		}
		if _, twice := s.file[key.Value]; twice {
			return fileError{s.path, key.Line, key.Value + " comes twice"}
		}
		e, ok := newEntry(val)
		if !ok {
			return fileError{s.path, val.Line, key.Value + " takes one value or a list of them"}
		}
		s.file[key.Value] = e
	}
	return nil
}

func newEntry(val *yaml.Node) (e entry, ok bool) {
	e.line = val.Line
	switch val.Kind {
	case yaml.ScalarNode:
		e.value = val.Value
		return e, true
	case yaml.SequenceNode:
		list := make([]string, 0, len(val.Content))
		for _, item := range val.Content {
			if item.Kind != yaml.ScalarNode {
				return e, false
			}
			list = append(list, item.Value)
		}
		e.value = list
		return e, true
	}
	return e, false
}

// explain makes one sentence of what kong says about a command line.
func (s *sources) explain(err error) error {
	if bad, ok := errors.AsType[badValue](err); ok {
		where := ""
		if from := s.origin[bad.key]; from != "" {
			where = " in " + from
		}
		return fmt.Errorf("%s is %q%s, it must be %s", bad.key, bad.value, where, bad.want)
	}
	if bad, ok := errors.AsType[fileError](err); ok {
		return bad
	}
	if bad, ok := errors.AsType[configError](err); ok {
		return bad
	}
	for key, from := range s.origin { // kong's own kinds of values
		if what, ok := strings.CutPrefix(err.Error(), "--"+key+": "); ok {
			return fmt.Errorf("%s in %s: %s", key, from, what)
		}
	}
	return err
}
