package topology

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"
	"unicode/utf8"

	"github.com/acidtib/jiji-node/node/ipplan"
	"github.com/acidtib/jiji-node/tunnel/wgkey"
)

const (
	maxSize = 64 << 20 // bytes of a file; one of 65,536 servers has about half
	maxText = 255      // bytes of one value
)

// A field is a member of a JSON object that this package knows.
type field int

const (
	fieldID field = iota
	fieldHostname
	fieldSubnet
	fieldWireGuardIP
	fieldKey
	fieldManagementIP
	fieldEndpoints
	fieldRemovedAt
	fieldRejoinedAfter
	fieldCluster
	fieldDomain
	fieldDiscovery
	fieldServers
	fieldCreatedAt
	fieldUpdatedAt
	fieldTopology
	fieldNone // any other
)

var fieldNames = [fieldNone]string{
	"id", "hostname", "subnet", "wireguardIp", "wireguardPublicKey", "managementIp", "endpoints", "removedAt", "rejoinedAfter",
	"clusterCidr", "serviceDomain", "discovery", "servers", "createdAt", "updatedAt", "topology",
}

func (f field) String() string { return fieldNames[f] }

// The JSON forms. Values that are not known are empty strings, so that every
// field is there for those who read it by name.
type (
	jsonServer struct {
		ID           string           `json:"id"`
		Hostname     string           `json:"hostname"`
		Subnet       string           `json:"subnet"`
		WireGuardIP  string           `json:"wireguardIp"`
		Key          wgkey.Public     `json:"wireguardPublicKey"`
		ManagementIP string           `json:"managementIp"`
		Endpoints    []netip.AddrPort `json:"endpoints"`
		RemovedAt    string           `json:"removedAt,omitempty"`
		Rejoined     string           `json:"rejoinedAfter,omitempty"`
	}
	jsonEntry struct {
		jsonServer
		Cluster string `json:"clusterCidr,omitempty"`
		Domain  string `json:"serviceDomain,omitempty"`
	}
	jsonTopology struct {
		Cluster   string `json:"clusterCidr"`
		Domain    string `json:"serviceDomain"`
		Discovery string `json:"discovery"`
		Servers   []kept `json:"servers"`
		CreatedAt string `json:"createdAt"`
		UpdatedAt string `json:"updatedAt"`
	}
	jsonFile struct {
		Topology kept `json:"topology"`
	}
)

// A kept value is a struct, and what a newer version added to it.
type kept struct {
	known any
	rest  string // further members, as JSON without braces; "": none
}

// MarshalJSON implements json.Marshaler.
func (k kept) MarshalJSON() ([]byte, error) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false) // what a newer version added stays as it is
	err := e.Encode(k.known)
	if err != nil || k.rest == "" {
		return b.Bytes(), err
	}
	return fmt.Appendf(bytes.TrimSuffix(b.Bytes(), []byte("}\n")), ",%s}", k.rest), nil
}

// Marshal returns t as the content of network.json.
func (t Topology) Marshal() []byte {
	servers := make([]kept, len(t.Servers))
	for i, s := range t.Servers {
		servers[i] = kept{toJSON(s), s.rest}
	}
	topo := jsonTopology{prefixText(t.Cluster), t.Domain, t.Discovery, servers, timeText(t.CreatedAt), timeText(t.UpdatedAt)}
	return indented(kept{jsonFile{kept{topo, t.rest}}, t.beside})
}

// Entry returns s as an entry of t, in the form that ParseEntries reads. That s was
// removed is not in it: with an entry a server is introduced.
func Entry(t Topology, s Server) []byte {
	s.RemovedAt, s.RejoinedAfter = time.Time{}, time.Time{}
	return indented(jsonEntry{toJSON(s), prefixText(t.Cluster), t.Domain})
}

func toJSON(s Server) jsonServer {
	endpoints := s.Endpoints
	if endpoints == nil {
		endpoints = []netip.AddrPort{}
	}
	return jsonServer{s.ID, s.Hostname, prefixText(s.Subnet), addrText(s.WireGuardIP), s.Key, addrText(s.ManagementIP), endpoints, timeText(s.RemovedAt), timeText(s.RejoinedAfter)}
}

func indented(v any) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b) // ends with a newline
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(v); err != nil { // impossible: every type in it has a text
		panic("topology: " + err.Error())
	}
	return b.Bytes()
}

func prefixText(p netip.Prefix) string {
	if !p.IsValid() {
		return ""
	}
	return p.String()
}

func addrText(a netip.Addr) string {
	if !a.IsValid() {
		return ""
	}
	return a.String()
}

func timeText(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339Nano)
}

// A SyntaxError is what is wrong at one place of a file: bad JSON, a value of
// the wrong type, or one that breaks a rule.
type SyntaxError struct {
	Source       string
	Line, Column int // from 1; columns are characters
	Err          error
}

func (e *SyntaxError) Error() string {
	return fmt.Sprintf("%s:%d:%d: %v", e.Source, e.Line, e.Column, e.Err)
}

func (e *SyntaxError) Unwrap() error { return e.Err }

// Parse reads network.json. Names that it does not know are kept for Marshal,
// since newer versions add some; values are checked, also as Check does. Its error
// joins one *SyntaxError for each fault, in which source is the file's name.
func Parse(source string, data []byte) (Topology, error) {
	r := reader{source: source, data: data}
	if len(data) > maxSize {
		return Topology{}, tooLarge(source)
	}
	if err := r.validate(0); err != nil {
		return Topology{}, err
	}
	start := r.skipSpace(0)
	top := r.record(span{start, len(data)}, "the file", false)
	if len(r.faults) == 0 && top[fieldTopology] == (span{}) {
		hint := ""
		if top[fieldKey] != (span{}) {
			hint = ": this is one server's entry, which `jiji-node server add` takes"
		}
		r.bad(start, "has no %q, want {%[1]q: {…}}%s", fieldTopology, hint)
	}
	if err := r.err(); err != nil {
		return Topology{}, err
	}
	rec := r.record(top[fieldTopology], "topology", false)
	t := Topology{
		rest: r.rest(top[fieldTopology]), beside: r.rest(span{start, len(data)}),
		Domain:    r.domain(rec),
		Discovery: r.text(rec, fieldDiscovery, "topology"),
		Cluster:   r.cluster(rec),
		CreatedAt: r.time(rec, fieldCreatedAt, "topology"),
		UpdatedAt: r.time(rec, fieldUpdatedAt, "topology"),
	}
	places := r.list(rec, fieldServers, "topology")
	t.Servers = make([]Server, len(places))
	for i, place := range places {
		t.Servers[i] = r.server(r.record(place, ordinal(i), false), i)
		if len(r.faults) == 0 {
			t.Servers[i].rest = r.rest(place)
		}
	}
	if err := r.err(); err != nil {
		return Topology{}, err
	}
	c := check(t)
	for _, f := range c.faults {
		place := top[fieldTopology]
		if f.server >= 0 {
			place = places[f.server]
		}
		if at := r.record(place, "", false)[f.field]; at != (span{}) {
			place = at
		}
		r.bad(place.start, "%w", f.err)
	}
	r.more = c.more
	if err := r.err(); err != nil {
		return Topology{}, err
	}
	return t, nil
}

// ParseEntries reads one or more entries, one after the other. Unlike Parse it
// refuses names that it does not know. Its errors are those of Parse.
func ParseEntries(source string, in io.Reader) ([]EntryDoc, error) {
	data, err := io.ReadAll(io.LimitReader(in, maxSize+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", source, err)
	}
	if len(data) > maxSize {
		return nil, tooLarge(source)
	}
	r := reader{source: source, data: data}
	dec := json.NewDecoder(bytes.NewReader(data))
	var entries []EntryDoc
	for {
		start := int(dec.InputOffset())
		var raw json.RawMessage
		if err := dec.Decode(&raw); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			return nil, cmp.Or(r.validate(start), err) // the decoder miscounts the offsets of its errors
		}
		end := int(dec.InputOffset())
		i := len(entries)
		rec := r.record(span{end - len(raw), end}, ordinal(i), true)
		e := EntryDoc{Server: r.server(rec, i), Cluster: r.cluster(rec), Domain: r.domain(rec)}
		if len(r.faults) == 0 {
			r.checkEntry(e, i, rec, end-len(raw))
		}
		entries = append(entries, e)
	}
	if len(entries) == 0 {
		return nil, fmt.Errorf("%s: is empty, want the entry that `jiji-node init` prints", source)
	}
	if err := r.err(); err != nil {
		return nil, err
	}
	return entries, nil
}

func (r *reader) checkEntry(e EntryDoc, i int, rec record, start int) {
	var c checker
	c.server(i, e.Server, e.Cluster)
	for _, f := range c.faults {
		at := start
		if rec[f.field] != (span{}) {
			at = rec[f.field].start
		}
		r.bad(at, "%w", f.err)
	}
	if !e.RemovedAt.IsZero() {
		r.bad(rec[fieldRemovedAt].start, "%s: was removed at %s, only a member can be added", nameOf(i, e.Server), timeText(e.RemovedAt))
	}
}

func ordinal(i int) string { return fmt.Sprintf("server number %d", i+1) }

func tooLarge(source string) error {
	return fmt.Errorf("%s: has more than %d MiB", source, maxSize>>20)
}

// A reader takes values out of JSON text that is known to be valid, and
// collects what is wrong with them.
type reader struct {
	source string
	data   []byte
	faults []error
	more   int // faults after maxFaults, only counted
}

// A span is the place of a value, [start, end) of the data; zero if it is not there.
type span struct{ start, end int }

// A record is an object: the places of the members that are known.
type record [fieldNone + 1]span

func (r *reader) bad(at int, format string, args ...any) {
	if len(r.faults) == maxFaults {
		r.more++
		return
	}
	r.faults = append(r.faults, r.place(at, fmt.Errorf(format, args...)))
}

func (r *reader) err() error {
	if r.more > 0 {
		return errors.Join(append(r.faults, fmt.Errorf("%s: and %d more faults", r.source, r.more))...)
	}
	return errors.Join(r.faults...)
}

func (r *reader) place(at int, err error) error {
	before := r.data[:min(max(at, 0), len(r.data))]
	line := before[bytes.LastIndexByte(before, '\n')+1:]
	return &SyntaxError{r.source, bytes.Count(before, []byte{'\n'}) + 1, utf8.RuneCount(line) + 1, err}
}

// validate reports the first syntax error of the data from start on, where one
// value and nothing else has to be.
func (r *reader) validate(start int) error {
	text := r.data[start:]
	if json.Valid(text) {
		return nil
	}
	var raw json.RawMessage
	err := json.Unmarshal(text, &raw)
	at := len(r.data)
	var syn *json.SyntaxError
	if errors.As(err, &syn) {
		at = start + int(syn.Offset) - 1 // Offset is behind the offending byte
	}
	return r.place(at, err)
}

// record reads the object at v, which errors call what; a strict one has only
// members of an entry.
func (r *reader) record(v span, what string, strict bool) record {
	var rec record
	if r.data[v.start] != '{' {
		r.bad(v.start, "%s: want an object, have %s", what, r.kind(v))
		return rec
	}
	for i := r.skipSpace(v.start + 1); r.data[i] != '}'; i = r.skipSpace(i) {
		name := span{i, r.skipValue(i)}
		start := r.skipSpace(name.end)
		value := span{start, r.skipValue(start)}
		i = value.end
		f := r.field(name)
		switch {
		case strict && f == fieldTopology:
			r.bad(name.start, "this is a whole network file, not a server's entry: start the node with `--network %s`", r.source)
			return rec
		case strict && f > fieldDomain:
			r.bad(name.start, "%s: unknown field %.80q", what, r.unquote(name))
		case f == fieldNone:
		case rec[f] != span{}:
			r.bad(name.start, "%s: %q is there twice", what, f)
		default:
			rec[f] = value
		}
	}
	return rec
}

// rest returns the members of the object at v that are not known.
func (r *reader) rest(v span) string {
	if r.data[v.start] != '{' {
		return ""
	}
	var b bytes.Buffer
	for i := r.skipSpace(v.start + 1); r.data[i] != '}'; i = r.skipSpace(i) {
		name := span{i, r.skipValue(i)}
		start := r.skipSpace(name.end)
		i = r.skipValue(start)
		if r.field(name) != fieldNone {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.Write(r.data[name.start:name.end])
		b.WriteByte(':')
		if err := json.Compact(&b, r.data[start:i]); err != nil { // impossible: the text was found valid
			panic("topology: " + err.Error())
		}
	}
	return b.String()
}

func (r *reader) field(name span) field {
	text := r.unquote(name)
	for f, known := range fieldNames {
		if text == known {
			return field(f)
		}
	}
	return fieldNone
}

// text returns the string f of rec, empty if it is null or not there.
func (r *reader) text(rec record, f field, what string) string {
	v := rec[f]
	if v == (span{}) || r.data[v.start] == 'n' {
		return ""
	}
	text, _ := r.stringAt(v, f, what)
	return text
}

func (r *reader) stringAt(v span, f field, what string) (text string, ok bool) {
	switch {
	case r.data[v.start] != '"':
		r.bad(v.start, "%s: %q: want a string, have %s", what, f, r.kind(v))
		return "", false
	case v.end-v.start-2 > maxText:
		r.bad(v.start, "%s: %q: has %d bytes, want at most %d", what, f, v.end-v.start-2, maxText)
		return "", false
	}
	return r.unquote(v), true
}

// list returns the places of the elements of the array f of rec, none if it is
// null or not there.
func (r *reader) list(rec record, f field, what string) []span {
	v := rec[f]
	switch {
	case v == span{} || r.data[v.start] == 'n':
		return nil
	case r.data[v.start] != '[':
		r.bad(v.start, "%s: %q: want an array, have %s", what, f, r.kind(v))
		return nil
	}
	var places []span
	for i := r.skipSpace(v.start + 1); r.data[i] != ']'; i = r.skipSpace(i) {
		end := r.skipValue(i)
		places = append(places, span{i, end})
		i = end
	}
	return places
}

func (r *reader) time(rec record, f field, what string) time.Time {
	text := r.text(rec, f, what)
	if text == "" {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339Nano, text)
	if err != nil || t.IsZero() {
		r.bad(rec[f].start, "%s: %q: %q is no time, want one such as 2026-01-31T12:00:00Z", what, f, text)
	}
	return t.UTC()
}

func (r *reader) cluster(rec record) netip.Prefix {
	text := r.text(rec, fieldCluster, "topology")
	if text == "" {
		return netip.Prefix{}
	}
	p, err := ipplan.ParseCluster(text)
	if err != nil {
		r.bad(rec[fieldCluster].start, "%w", err)
	}
	return p
}

func (r *reader) domain(rec record) string {
	text := r.text(rec, fieldDomain, "topology")
	if text == "" {
		return ""
	}
	domain, err := ParseDomain(text)
	if err != nil {
		r.bad(rec[fieldDomain].start, "%w", err)
	}
	return domain
}

// server reads the values of server number i; whether they fit together is
// for check to say.
func (r *reader) server(rec record, i int) Server {
	s := Server{ID: r.text(rec, fieldID, ordinal(i))}
	what := nameOf(i, s)
	s.Hostname = r.text(rec, fieldHostname, what)
	s.RemovedAt = r.time(rec, fieldRemovedAt, what)
	s.RejoinedAfter = r.time(rec, fieldRejoinedAfter, what)
	if text := r.text(rec, fieldKey, what); text != "" {
		key, err := wgkey.ParsePublic(text)
		if err != nil {
			r.bad(rec[fieldKey].start, "%s: %w", what, err)
		}
		s.Key = key
	}
	if text := r.text(rec, fieldSubnet, what); text != "" {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			r.bad(rec[fieldSubnet].start, "%s: subnet %q: want an IPv4 /24 such as 10.210.1.0/24", what, text)
		}
		s.Subnet = p
	}
	s.WireGuardIP = r.addr(rec, fieldWireGuardIP, what)
	s.ManagementIP = r.addr(rec, fieldManagementIP, what)
	places := r.list(rec, fieldEndpoints, what)
	if len(places) > maxEndpoints {
		r.bad(rec[fieldEndpoints].start, "%s: has %d endpoints, want at most %d", what, len(places), maxEndpoints)
		return s
	}
	for _, place := range places {
		text, ok := r.stringAt(place, fieldEndpoints, what)
		if !ok {
			continue
		}
		ep, err := netip.ParseAddrPort(text)
		if err != nil {
			r.bad(place.start, "%s: endpoint %q: want ip:port such as 203.0.113.10:51820", what, text)
			continue
		}
		s.Endpoints = append(s.Endpoints, ep)
	}
	return derive(s)
}

func (r *reader) addr(rec record, f field, what string) netip.Addr {
	text := r.text(rec, f, what)
	if text == "" {
		return netip.Addr{}
	}
	ip, err := netip.ParseAddr(text)
	if err != nil {
		r.bad(rec[f].start, "%s: %q: %q is no IP address", what, f, text)
	}
	return ip
}

func (r *reader) kind(v span) string {
	switch r.data[v.start] {
	case '{':
		return "an object"
	case '[':
		return "an array"
	case '"':
		return "a string"
	case 't', 'f':
		return "a boolean"
	case 'n':
		return "null"
	default:
		return "a number"
	}
}

// unquote returns the string at v.
func (r *reader) unquote(v span) string {
	raw := r.data[v.start:v.end]
	if bytes.IndexByte(raw, '\\') < 0 && utf8.Valid(raw) {
		return string(raw[1 : len(raw)-1])
	}
	var s string
	if err := json.Unmarshal(raw, &s); err != nil { // impossible: the text was found valid
		panic("topology: " + err.Error())
	}
	return s
}

// skipSpace returns the place of the next value, name or closing bracket.
func (r *reader) skipSpace(i int) int {
	for {
		switch r.data[i] {
		case ' ', '\t', '\r', '\n', ',', ':':
			i++
		default:
			return i
		}
	}
}

// skipValue returns the end of the value at i.
func (r *reader) skipValue(i int) int {
	depth := 0
	for {
		switch r.data[i] {
		case '"':
			for i++; r.data[i] != '"'; i++ {
				if r.data[i] == '\\' {
					i++
				}
			}
			i++
		case '{', '[':
			depth++
			i++
		case '}', ']':
			depth--
			i++
		case ' ', '\t', '\r', '\n', ',', ':':
			i++
		default: // a number or a word
			for i < len(r.data) && bytes.IndexByte([]byte(" \t\r\n,:]}"), r.data[i]) < 0 {
				i++
			}
		}
		if depth == 0 {
			return i
		}
	}
}
