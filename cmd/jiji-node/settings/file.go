package settings

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

const maxFile = 64 << 10 // bytes, thirty times what sets everything; the parser takes quadratic time

// An entry is one key of the configuration file.
type entry struct {
	name   string
	values []string // one, unless list is set
	list   bool
	line   int
}

// readFile reads a configuration file. Its errors name the file.
func readFile(path string, known []string) ([]entry, error) {
	info, err := os.Stat(path) // before opening, which blocks on a pipe
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	if !info.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: want a regular file, this is %s", path, info.Mode())
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read configuration: %w", err)
	}
	return parseFile(path, data, known)
}

// parseFile reads a YAML mapping of known names to values or lists of values.
// Its errors are one line each, and begin with the path and the line.
func parseFile(path string, data []byte, known []string) ([]entry, error) {
	if len(data) > maxFile {
		return nil, fmt.Errorf("%s: larger than %d bytes, which no configuration is", path, maxFile)
	}
	if !utf8.Valid(data) {
		return nil, fmt.Errorf("%s: not UTF-8 text", path)
	}
	data = bytes.TrimPrefix(data, []byte("\ufeff")) // as some editors write it
	file, err := parser.ParseBytes(data, 0)
	if err != nil {
		return nil, syntaxError(path, data, err)
	}
	var mapping *ast.MappingNode
	for _, doc := range file.Docs {
		switch body := doc.Body.(type) {
		case nil, *ast.NullNode:
		case *ast.MappingNode:
			if mapping != nil {
				return nil, fmt.Errorf("%s:%d: a second document, want one", path, line(body))
			}
			mapping = body
		default:
			return nil, fmt.Errorf("%s:%d: %s, want lines of the form `name: value`", path, line(body), describe(body))
		}
	}
	if mapping == nil {
		return nil, nil
	}

	var entries []entry
	var errs []error
	for _, pair := range mapping.Values {
		e := entry{name: pair.Key.GetToken().Value, line: line(pair.Key)}
		fault := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("%s:%d: %s", path, e.line, fmt.Sprintf(format, args...)))
		}
		switch {
		case !slices.Contains(known, e.name):
			fault("no setting is called %q%s", e.name, suggest(e.name, known, func(name string) string { return name }))
			continue
		case e.name == "config" || e.name == "help":
			fault("%s cannot be set in a file", e.name)
			continue
		}
		if list, ok := pair.Value.(*ast.SequenceNode); ok {
			e.list = true
			for _, item := range list.Values {
				text, ok := scalar(item)
				if !ok {
					fault("%s: an item of the list is %s, want plain values", e.name, describe(item))
				}
				e.values = append(e.values, text)
			}
		} else if text, ok := scalar(pair.Value); ok {
			e.values = []string{text}
		} else {
			fault("%s is %s, want a value or a list of values", e.name, describe(pair.Value))
		}
		entries = append(entries, e)
	}
	if len(errs) > 0 {
		return nil, errors.Join(errs...)
	}
	return entries, nil
}

// scalar returns a value as it is written, so that a name such as 007 stays one.
func scalar(n ast.Node) (string, bool) {
	switch n := n.(type) {
	case *ast.StringNode:
		return n.Value, true
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		return n.GetToken().Value, true
	}
	return "", false
}

func describe(n ast.Node) string {
	switch n.(type) {
	case nil, *ast.NullNode:
		return "empty"
	case *ast.MappingNode, *ast.MappingValueNode:
		return "a mapping"
	case *ast.SequenceNode:
		return "a list"
	case *ast.StringNode, *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode:
		return "a single value"
	}
	return "a YAML " + strings.ToLower(n.Type().String())
}

func line(n ast.Node) int {
	if t := n.GetToken(); t != nil && t.Position != nil {
		return t.Position.Line
	}
	return 1
}

// syntaxError makes one line of the parser's error, which is a message and an
// excerpt of the file with an arrow.
func syntaxError(path string, data []byte, err error) error {
	message, where := err.Error(), path
	var e yaml.Error
	if errors.As(err, &e) {
		message = e.GetMessage()
		if t := e.GetToken(); t != nil && t.Position != nil {
			where = fmt.Sprintf("%s:%d:%d", path, t.Position.Line, t.Position.Column)
			lines := bytes.Split(data, []byte("\n"))
			if n := t.Position.Line; n >= 1 && n <= len(lines) && bytes.Contains(lines[n-1], []byte("[")) {
				message += ` (an address in brackets needs quotes: "[2001:db8::1]:51820")`
			}
		}
	}
	message = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, message)
	return fmt.Errorf("%s: %s", where, message)
}
