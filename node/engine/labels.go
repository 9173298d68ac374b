package engine

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/acidtib/jiji-node/registry"
)

// Labels that say what a container is. Of Compose's, podman-compose sets the same.
const (
	labelService    = "jiji.service"
	labelProject    = "jiji.project"
	labelInstance   = "jiji.instance"
	labelPort       = "jiji.port"
	labelHealthPort = "jiji.health.port"
	labelIP         = "jiji.ip"

	composeService = "com.docker.compose.service"
	composeProject = "com.docker.compose.project"
	composeNumber  = "com.docker.compose.container-number"

	ownPrefix = "jiji."
)

// labelsOf are those of all that say something here.
func labelsOf(all map[string]string) map[string]string {
	kept := map[string]string{}
	for name, value := range all {
		switch {
		case strings.HasPrefix(name, ownPrefix), name == composeService, name == composeProject, name == composeNumber:
			kept[name] = value
		}
	}
	return kept
}

// A word is a label's value and the label, or another source, that it is from.
type word struct{ value, from string }

// first is the first of labels that c has.
func (c Container) first(labels ...string) word {
	for _, name := range labels {
		if v, ok := c.Labels[name]; ok {
			return word{v, "label " + name}
		}
	}
	return word{}
}

// describe completes row, which has an address, with what c's labels and its name
// say. An error names the label.
func (c Container) describe(row registry.Container) (registry.Container, error) {
	from := map[string]word{
		"service":  c.first(labelService, composeService),
		"project":  c.first(labelProject, composeProject),
		"instance": c.first(labelInstance, composeNumber),
	}
	if from["service"].from == "" {
		from["service"] = word{c.Name, "name"}
	}
	row.ID, row.Name, row.StartedAt = c.ID, c.Name, c.StartedAt
	row.Service, row.Project, row.Instance = from["service"].value, from["project"].value, from["instance"].value
	if text, ok := c.Labels[labelHealthPort]; ok {
		port, err := strconv.ParseUint(text, 10, 16)
		if err != nil || port == 0 {
			return row, &registry.InvalidError{Field: "label " + labelHealthPort, Value: text, Want: "a TCP port, 1 to 65535"}
		}
		row.HealthPort = uint16(port)
	}
	var err error
	if row.Ports, err = parsePorts(c.Labels[labelPort]); err != nil {
		return row, err
	}
	row, err = row.Normalize()
	var invalid *registry.InvalidError
	if errors.As(err, &invalid) {
		if w, ok := from[invalid.Field]; ok {
			named := &registry.InvalidError{Field: w.from, Value: invalid.Value, Want: invalid.Want}
			if own := "label " + ownPrefix + invalid.Field; w.from != own {
				return row, fmt.Errorf("%w; a %s gives it another %s", named, own, invalid.Field)
			}
			return row, named
		}
	}
	return row, err
}

// parsePorts reads "8080", "8080/tcp" or several of them: "80,53/udp".
func parsePorts(text string) ([]registry.Port, error) {
	if text == "" {
		return nil, nil
	}
	var ports []registry.Port
	for part := range strings.SplitSeq(text, ",") {
		number, proto, ok := strings.Cut(strings.TrimSpace(part), "/")
		if !ok {
			proto = "tcp"
		}
		n, err := strconv.ParseUint(number, 10, 16)
		if err != nil || n == 0 || proto != "tcp" && proto != "udp" && proto != "sctp" {
			return nil, &registry.InvalidError{Field: "label " + labelPort, Value: text, Want: "ports like 8080 or 53/udp, with commas between"}
		}
		ports = append(ports, registry.Port{Number: uint16(n), Proto: proto})
	}
	return ports, nil
}

// labelled is the address that a label gives c; zero if none does.
func (c Container) labelled() (netip.Addr, error) {
	text, ok := c.Labels[labelIP]
	if !ok {
		return netip.Addr{}, nil
	}
	ip, err := netip.ParseAddr(text)
	if err != nil {
		return netip.Addr{}, &registry.InvalidError{Field: "label " + labelIP, Value: text, Want: "an IPv4 address"}
	}
	return ip, nil
}

// ours reports whether a label of ours is on c: it is meant to be in the mesh.
func (c Container) ours() bool {
	for name := range c.Labels {
		if strings.HasPrefix(name, ownPrefix) {
			return true
		}
	}
	return false
}
