package engine

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
)

// Where the engines are told which name server their containers have.
const (
	DaemonFile = "/etc/docker/daemon.json"
	PodmanFile = "/etc/containers/containers.conf.d/90-jiji.conf" // read after, and thus ahead of, what the administrator wrote
)

// DNS is what the engine's containers are to resolve names with.
type DNS struct {
	Server netip.Addr
	Search string
	Mark   string // VALUE/MASK of packets that Docker's nftables are to let in, too; "": it has none
}

const keyMark = "bridge-accept-fwmark"

const ndots = "ndots:1" // so that a name without a dot is searched for: with Docker's own 0 musl never does

// PodmanDNS is the content of PodmanFile.
func PodmanDNS(d DNS) []byte {
	return fmt.Appendf(nil, `# Written by jiji-node, which takes it away with "jiji-node down": names of the mesh.
[containers]
dns_servers = [%q]
dns_searches = [%q]
dns_options = [%q]
`, d.Server, d.Search, ndots)
}

// A member is one of an object's, as it is written.
type member struct {
	key   string
	value json.RawMessage
}

const maxDaemon = 1 << 20 // bytes of daemon.json

// parseDaemon reads daemon.json, in order. An empty file is an empty object.
func parseDaemon(text []byte) ([]member, error) {
	if len(bytes.TrimSpace(text)) == 0 {
		return nil, nil
	}
	if len(text) > maxDaemon {
		return nil, fmt.Errorf("has %d bytes, want at most %d", len(text), maxDaemon)
	}
	var whole map[string]json.RawMessage
	if err := json.Unmarshal(text, &whole); err != nil {
		return nil, located(text, err)
	}
	if whole == nil {
		return nil, errors.New("line 1: is null, want a JSON object")
	}
	d := json.NewDecoder(bytes.NewReader(text))
	if _, err := d.Token(); err != nil { // impossible: it was read above, like the rest
		return nil, err
	}
	var list []member
	for d.More() {
		t, err := d.Token()
		if err != nil {
			return nil, err
		}
		m := member{key: t.(string)}
		if slices.ContainsFunc(list, func(o member) bool { return o.key == m.key }) {
			return nil, fmt.Errorf("line %d: has %q twice", lineOf(text, d.InputOffset()), m.key)
		}
		if err := d.Decode(&m.value); err != nil {
			return nil, err
		}
		list = append(list, m)
	}
	return list, nil
}

// located says where in text err is, and what is usually meant.
func located(text []byte, err error) error {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		hint := ""
		if at := int(syntax.Offset); at >= 1 && at <= len(text) && strings.ContainsRune("/#", rune(text[at-1])) {
			hint = " (JSON has no comments)"
		}
		return fmt.Errorf("line %d: %v%s", lineOf(text, syntax.Offset), err, hint)
	case errors.As(err, &kind):
		return fmt.Errorf("line 1: is a JSON %s, want an object", kind.Value)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("line %d: ends too early", lineOf(text, int64(len(text))))
	}
	return err
}

func lineOf(text []byte, offset int64) int {
	return 1 + bytes.Count(text[:max(0, min(int(offset)-1, len(text)))], []byte("\n"))
}

// formatDaemon is the reverse of parseDaemon.
func formatDaemon(list []member) []byte {
	var out bytes.Buffer
	out.WriteString("{")
	for i, m := range list {
		if i > 0 {
			out.WriteString(",")
		}
		key, err := json.Marshal(m.key)
		if err != nil { // impossible: strings always have a form
			panic(err)
		}
		out.WriteString("\n  ")
		out.Write(key)
		out.WriteString(": ")
		if err := json.Indent(&out, m.value, "  ", "  "); err != nil { // impossible: it was read
			panic(err)
		}
	}
	out.WriteString("\n}\n")
	return out.Bytes()
}

// MergeDaemon returns daemon.json with d in place of the name servers that it has,
// which would be asked beside ours and not know the mesh: those are dropped. What is
// so already is returned as it is. It does no I/O.
func MergeDaemon(text []byte, d DNS) (merged []byte, dropped []string, err error) {
	list, err := parseDaemon(text)
	if err != nil {
		return nil, nil, err
	}
	get := func(key string) (values []string, err error) {
		i := slices.IndexFunc(list, func(m member) bool { return m.key == key })
		if i < 0 {
			return nil, nil
		}
		if json.Unmarshal(list[i].value, &values) != nil {
			return nil, fmt.Errorf("%q is %s, want a list of texts", key, clipped(list[i].value))
		}
		return values, nil
	}
	same := true
	set := func(key string, was, values []string) {
		if slices.Equal(was, values) {
			return
		}
		same = false
		value, err := json.Marshal(values)
		if err != nil { // impossible: strings always have a form
			panic(err)
		}
		if i := slices.IndexFunc(list, func(m member) bool { return m.key == key }); i >= 0 {
			list[i].value = value
		} else {
			list = append(list, member{key, value})
		}
	}
	servers, err := get("dns")
	if err != nil {
		return nil, nil, err
	}
	search, err := get("dns-search")
	if err != nil {
		return nil, nil, err
	}
	options, err := get("dns-opts")
	if err != nil {
		return nil, nil, err
	}
	for _, s := range servers {
		if s != d.Server.String() {
			dropped = append(dropped, s)
		}
	}
	set("dns", servers, []string{d.Server.String()})
	set("dns-search", search, append([]string{d.Search}, slices.DeleteFunc(slices.Clone(search), func(s string) bool { return strings.EqualFold(s, d.Search) })...))
	set("dns-opts", options, append(slices.DeleteFunc(slices.Clone(options), func(o string) bool { return strings.HasPrefix(o, "ndots:") }), ndots))
	if i := slices.IndexFunc(list, func(m member) bool { return m.key == keyMark }); d.Mark != "" {
		value, err := json.Marshal(d.Mark)
		if err != nil { // impossible: strings always have a form
			return nil, nil, err
		}
		switch {
		case i < 0:
			same = false
			list = append(list, member{keyMark, value})
		case !bytes.Equal(list[i].value, value):
			return nil, nil, fmt.Errorf("%q is %s, want %s: Docker's nftables drop what the mesh sends", keyMark, clipped(list[i].value), value)
		}
	}
	if same {
		return text, nil, nil
	}
	return formatDaemon(list), dropped, nil
}

// UnmergeDaemon returns daemon.json, which somebody may have changed since, with the
// values of was in place of what MergeDaemon set; nil if there was no file and nothing
// else is in it now.
func UnmergeDaemon(text, was []byte) ([]byte, error) {
	list, err := parseDaemon(text)
	if err != nil {
		return nil, err
	}
	before, err := parseDaemon(was)
	if err != nil {
		return nil, err
	}
	for _, key := range []string{"dns", "dns-search", "dns-opts", keyMark} {
		i := slices.IndexFunc(list, func(m member) bool { return m.key == key })
		k := slices.IndexFunc(before, func(m member) bool { return m.key == key })
		switch {
		case i >= 0 && k >= 0:
			list[i].value = before[k].value
		case i >= 0:
			list = slices.Delete(list, i, i+1)
		case k >= 0:
			list = append(list, before[k])
		}
	}
	if len(list) == 0 && was == nil {
		return nil, nil
	}
	return formatDaemon(list), nil
}

func clipped(value []byte) string {
	if len(value) > 40 {
		return string(value[:40]) + "..."
	}
	return string(value)
}
