// Package journal remembers what was changed on a machine and what each change
// replaced, in a file that is on the disk before the change is made. So what
// is ours can be taken back after any crash, by any version of the program.
package journal

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/acidtib/jiji-node/node/statefile"
)

// FileName is the journal's name in the state directory.
const FileName = "undo.json"

const maxSize = 16 << 20 // bytes

// A Kind says what was changed. A journal may hold kinds of a newer version.
type Kind string

const (
	Sysctl    Kind = "sysctl"    // Name: its path in /proc/sys: net/ipv4/ip_forward
	File      Kind = "file"      // Name: its path
	Directory Kind = "directory" // Name: its path; made by us
	Route     Kind = "route"     // Name: type and destination: unreachable 10.210.0.0/16
	Firewall  Kind = "firewall"  // Name: the back end that was used; Set: the interfaces it was told of
	Socket    Kind = "socket"    // Name: its path; of use to a running node only
	Daemon    Kind = "daemon"    // Name: path of Docker's configuration, into which name servers were merged
	Network   Kind = "network"   // Name: a container engine and the network that was made in it: docker jiji-mesh
)

// A Change is one thing of the machine that was changed.
type Change struct {
	Kind Kind      `json:"kind"`
	Name string    `json:"name"`          // which one of the kind
	Was  *Value    `json:"was,omitempty"` // what the first change replaced; nil: there was nothing
	Set  []Value   `json:"set,omitempty"` // all that was put there since, oldest first
	At   time.Time `json:"at"`            // of the first change
}

// A Value is the state of one thing.
type Value struct {
	Text string      `json:"text"`           // of a sysctl or a file; what is not UTF-8 is refused
	Mode fs.FileMode `json:"mode,omitempty"` // of a file
}

// A CorruptError says that the file is not a journal.
type CorruptError struct {
	Path string
	Err  error
}

func (e *CorruptError) Error() string {
	return fmt.Sprintf("%s is damaged, expected the JSON that jiji-node wrote: %v", e.Path, e.Err)
}

func (e *CorruptError) Unwrap() error { return e.Err }

// A Journal is the file at one path. The caller holds the lock of the file's
// directory. Its methods are safe for concurrent use.
type Journal struct {
	path string

	mu      sync.Mutex // guards changes, and the file
	changes []record
	rest    map[string]json.RawMessage // fields that a newer version added
}

// A record is a change with the text it was read from, if it was: a newer
// version's fields stay.
type record struct {
	Change
	raw   json.RawMessage
	stale bool // raw lacks a value that was set since
}

// Open reads the journal file; one that is absent is an empty one. What
// is no journal is a *CorruptError.
func Open(file string) (*Journal, error) {
	j := &Journal{path: file, rest: map[string]json.RawMessage{}}
	data, _, err := statefile.Read(file, maxSize)
	var access *fs.PathError
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return j, nil
	case errors.As(err, &access):
		return nil, fmt.Errorf("read undo journal: %w", err)
	case err != nil: // no file, or a huge one
		return nil, &CorruptError{file, err}
	}
	if err := j.parse(data); err != nil {
		return nil, &CorruptError{file, err}
	}
	return j, nil
}

func (j *Journal) parse(data []byte) error {
	if err := json.Unmarshal(data, &j.rest); err != nil {
		return err
	}
	var raws []json.RawMessage
	if err := json.Unmarshal(j.rest["changes"], &raws); err != nil {
		return fmt.Errorf("field changes: %w", err)
	}
	delete(j.rest, "changes")
	for i, raw := range raws {
		r := record{raw: raw}
		// First what any version has: a newer kind's values may look different.
		var head struct{ Kind, Name string }
		if err := json.Unmarshal(raw, &head); err != nil {
			return fmt.Errorf("change %d: %w", i+1, err)
		}
		if head.Kind == "" || head.Name == "" {
			return fmt.Errorf("change %d: has no kind or no name", i+1)
		}
		r.Kind, r.Name = Kind(head.Kind), head.Name
		if r.Known() {
			if err := json.Unmarshal(raw, &r.Change); err != nil {
				return fmt.Errorf("change %d: %w", i+1, err)
			}
			if !r.plausible() {
				return fmt.Errorf("change %d: no version changes the %s %q", i+1, r.Kind, r.Name)
			}
		}
		j.changes = append(j.changes, r)
	}
	return nil
}

// Known reports whether this version knows what c is about.
func (c Change) Known() bool {
	switch c.Kind {
	case Sysctl, File, Directory, Route, Firewall, Socket, Network, Daemon:
		return true
	}
	return false
}

// plausible reports whether some version may have made c: what is to be undone is
// written to and removed, so it must not be just anything.
func (c Change) plausible() bool {
	if strings.ContainsRune(c.Name, 0) || path.Clean(c.Name) != c.Name {
		return c.Kind == Route // a type and a destination
	}
	switch c.Kind {
	case Sysctl:
		return strings.HasPrefix(c.Name, "net/")
	case File, Directory:
		return strings.HasPrefix(c.Name, "/etc/")
	case Socket:
		return path.IsAbs(c.Name)
	}
	return true
}

func (c Change) is(kind Kind, name string) bool { return c.Kind == kind && c.Name == name }

// check refuses what a journal would not give back as it was.
func (c Change) check() error {
	if !c.plausible() {
		return fmt.Errorf("note a change of %s %q in the undo journal: no version changes that", c.Kind, c.Name)
	}
	values := c.Set
	if c.Was != nil {
		values = append([]Value{*c.Was}, values...)
	}
	for _, v := range values {
		if !utf8.ValidString(v.Text) {
			return fmt.Errorf("note a change of %s in the undo journal: its content is not UTF-8", c.Name)
		}
	}
	return nil
}

// Record notes a change that is about to be made, and returns once the note is
// on the disk. What a thing was is noted once; a change that is known to the
// journal already costs nothing.
func (j *Journal) Record(changes ...Change) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	next := slices.Clone(j.changes)
	news := false
	for _, c := range changes {
		if err := c.check(); err != nil {
			return err
		}
		i := slices.IndexFunc(next, func(r record) bool { return r.is(c.Kind, c.Name) })
		if i < 0 {
			c.At = time.Now().UTC().Truncate(time.Millisecond)
			next, news = append(next, record{Change: c}), true
			continue
		}
		known := next[i]
		known.Set = slices.Clone(known.Set)
		for _, v := range c.Set {
			if !slices.Contains(known.Set, v) {
				known.Set, known.stale, news = append(known.Set, v), true, true
			}
		}
		next[i] = known
	}
	if !news {
		return nil
	}
	return j.write(next)
}

// Forget takes out what was taken back. An empty journal has no file. A full
// disk is no error: the file then tells of what is gone until the journal is
// empty, or there is room; to take that back again changes nothing.
func (j *Journal) Forget(c Change) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	next := slices.DeleteFunc(slices.Clone(j.changes), func(r record) bool { return r.is(c.Kind, c.Name) })
	err := j.write(next)
	if statefile.IsFull(err) {
		j.changes = next
		return nil
	}
	return err
}

// Changes returns what was changed, in the order in which that began, kinds of
// newer versions included.
func (j *Journal) Changes() []Change {
	j.mu.Lock()
	defer j.mu.Unlock()
	out := make([]Change, len(j.changes))
	for i, r := range j.changes {
		out[i] = r.Change
	}
	return out
}

// write makes next the journal's content, on the disk first; j.mu is held.
func (j *Journal) write(next []record) error {
	if len(next) == 0 && len(j.rest) == 0 {
		if err := statefile.Remove(j.path); err != nil {
			return fmt.Errorf("remove undo journal: %w", err)
		}
		j.changes = nil
		return nil
	}
	list := make([]any, len(next))
	for i, r := range next {
		list[i] = r.encode()
	}
	doc := map[string]any{"changes": list}
	for name, raw := range j.rest {
		doc[name] = raw
	}
	data, err := json.MarshalIndent(doc, "", "  ")
	if err != nil {
		return fmt.Errorf("encode undo journal: %w", err)
	}
	if err := statefile.Write(j.path, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("write undo journal: %w", err)
	}
	j.changes = next
	return nil
}

// encode is what json.Marshal is to write of r.
func (r record) encode() any {
	switch {
	case r.raw == nil:
		return r.Change
	case !r.stale:
		return r.raw
	}
	fields := map[string]any{}
	if err := json.Unmarshal(r.raw, &fields); err != nil {
		panic(err) // impossible: parse read it
	}
	fields["set"] = r.Set
	return fields
}
