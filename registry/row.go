package registry

import (
	"encoding/json"
	"fmt"
	"math"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// A Row is a container as the tables hold it, together with the rows of other
// tables that belong to it. Each field is a cell with one of SQLite's values:
// nil, int64, float64, string or []byte.
type Row struct {
	ID, Service, ServerID, IP, StartedAt, Instance, Health, LastCheck, Failures, HealthPort any // containers
	ServiceProject                                                                          any // services, if any
	OursServerID, Project, Name, Ports, External                                            any // jiji_containers; all nil if there is no row
}

// Container returns what r says. It is not ok for a row that is not to be
// believed, which skipped names, and for one that is not here yet: replication
// delivers cells one by one, the others being at their defaults until then.
// An unbelievable row of services or jiji_containers only loses what it adds.
func (r Row) Container() (c Container, ok bool, skipped []Skipped) {
	if empty(r.Service) && empty(r.ServerID) && empty(r.IP) {
		return Container{}, false, nil
	}
	c, err := r.base()
	if err != nil {
		return Container{}, false, []Skipped{{"containers", key(r.ID), err.Error()}}
	}
	c.Project, err = serviceProject(r.ServiceProject)
	if err != nil {
		skipped = append(skipped, Skipped{"services", key(r.Service), err.Error()})
	}
	if empty(r.OursServerID) {
		return c, true, skipped
	}
	ours, err := r.ours().of(c)
	if err != nil {
		return c, true, append(skipped, Skipped{"jiji_containers", key(r.ID), err.Error()})
	}
	return ours, true, skipped
}

// base returns what the row of containers says.
func (r Row) base() (Container, error) {
	in := cells{}
	c := Container{
		ID:         in.text("id", r.ID),
		Service:    in.text("service", r.Service),
		ServerID:   in.text("server_id", r.ServerID),
		Instance:   in.text("instance_id", r.Instance),
		IP:         in.addr("ip", r.IP),
		StartedAt:  in.time("started_at", r.StartedAt),
		Health:     Health(in.text("health_status", r.Health)),
		LastCheck:  in.time("last_health_check", r.LastCheck),
		Failures:   int(in.integer("consecutive_failures", r.Failures, math.MaxInt32)),
		HealthPort: uint16(in.integer("health_port", r.HealthPort, math.MaxUint16)),
	}
	if in.err != nil {
		return c, in.err
	}
	return c.Normalize()
}

func serviceProject(cell any) (string, error) {
	in := cells{}
	p := in.text("project", cell)
	if in.err == nil && p != "" && !isLabel(p) {
		return "", &InvalidError{"project", p, wantLabel}
	}
	return p, in.err
}

// An extra is a row of jiji_containers: what it adds to its container.
type extra struct {
	owner, project, name string
	ports                []Port
	external             bool
	err                  error // why none of it is believed
}

func (r Row) ours() extra {
	in := cells{}
	e := extra{
		owner:    in.text("server_id", r.OursServerID),
		project:  in.text("project", r.Project),
		name:     in.text("name", r.Name),
		external: in.integer("external", r.External, 1) == 1,
	}
	ports := in.text("ports", r.Ports)
	if e.err = in.err; e.err == nil {
		e.ports, e.err = ParsePorts(ports)
	}
	return e
}

// of returns c with what the row adds.
func (e extra) of(c Container) (Container, error) {
	if e.err != nil {
		return c, e.err
	}
	if e.owner != c.ServerID {
		return c, &InvalidError{"server_id", e.owner, fmt.Sprintf("%q, as in containers", c.ServerID)}
	}
	c.Project, c.Name, c.External, c.Ports = e.project, e.name, e.external, nil
	c, err := c.Normalize()
	c.Ports = e.ports // in order already, and shared by many rows
	return c, err
}

// ParsePorts reads the cell of jiji_containers: a JSON array of "8080/tcp".
// Its error is an *InvalidError.
func ParsePorts(text string) ([]Port, error) {
	if text == "" {
		return nil, nil
	}
	var list []string
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return nil, &InvalidError{"ports", text, `a JSON array like ["8080/tcp"]`}
	}
	ports := make([]Port, 0, min(len(list), maxPorts))
	for _, s := range list {
		number, proto, _ := strings.Cut(s, "/")
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil {
			return nil, &InvalidError{"port", s, "1 to 65535, then /tcp, /udp or /sctp"}
		}
		ports = append(ports, Port{uint16(n), proto})
	}
	return sortPorts(ports)
}

// FormatPorts is the reverse of ParsePorts.
func FormatPorts(ports []Port) string {
	list := make([]string, len(ports))
	for i, p := range ports {
		list[i] = p.String()
	}
	b, err := json.Marshal(list)
	if err != nil { // impossible: strings always have a form
		panic("registry: " + err.Error())
	}
	return string(b)
}

// cells converts cells and keeps the first fault. NULL is the zero value.
type cells struct{ err error }

func (in *cells) fail(column, value, want string) {
	if in.err == nil {
		in.err = &InvalidError{column, value, want}
	}
}

func (in *cells) text(column string, cell any) string {
	switch v := cell.(type) {
	case nil:
	case string:
		return v
	default:
		in.fail(column, show(cell), "text")
	}
	return ""
}

func (in *cells) integer(column string, cell any, most int64) int64 {
	switch v := cell.(type) {
	case nil:
	case int64:
		if v >= 0 && v <= most {
			return v
		}
		in.fail(column, show(cell), fmt.Sprintf("0 to %d", most))
	default:
		in.fail(column, show(cell), "an integer")
	}
	return 0
}

func (in *cells) time(column string, cell any) time.Time {
	ms := in.integer(column, cell, maxMilli)
	if ms == 0 {
		return time.Time{}
	}
	return time.UnixMilli(ms).UTC()
}

func (in *cells) addr(column string, cell any) netip.Addr {
	text := in.text(column, cell)
	ip, err := netip.ParseAddr(text)
	if err != nil {
		in.fail(column, text, "an IPv4 address")
	}
	return ip
}

func empty(cell any) bool { return cell == nil || cell == "" }

func key(cell any) string {
	if s, ok := cell.(string); ok && isID(s) {
		return s
	}
	return strconv.Quote(clip(show(cell)))
}

func show(cell any) string {
	if b, ok := cell.([]byte); ok {
		return fmt.Sprintf("x'%x'", b[:min(len(b), 40)])
	}
	return fmt.Sprint(cell)
}
