package registry

import "time"

// The statements that write rows of containers, in all backends. They change
// nothing where nothing differs.
const (
	InsertService   = `INSERT INTO services (name, project) VALUES (?, ?) ON CONFLICT (name) DO NOTHING`
	UpsertContainer = `
		INSERT INTO containers (id, service, server_id, ip, started_at, instance_id,
			health_status, last_health_check, consecutive_failures, health_port)
		VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET
			service = excluded.service, server_id = excluded.server_id, ip = excluded.ip,
			started_at = excluded.started_at, instance_id = excluded.instance_id,
			health_status = excluded.health_status, last_health_check = excluded.last_health_check,
			consecutive_failures = excluded.consecutive_failures, health_port = excluded.health_port
		WHERE (containers.service, containers.server_id, containers.ip, containers.started_at, containers.instance_id,
			containers.health_status, containers.last_health_check, containers.consecutive_failures, containers.health_port)
		IS NOT (excluded.service, excluded.server_id, excluded.ip, excluded.started_at, excluded.instance_id,
			excluded.health_status, excluded.last_health_check, excluded.consecutive_failures, excluded.health_port)`
	UpsertExtra = `
		INSERT INTO jiji_containers (id, server_id, project, name, ports, external)
		VALUES (?, ?, ?, ?, ?, ?)
		ON CONFLICT (id) DO UPDATE SET
			server_id = excluded.server_id, project = excluded.project, name = excluded.name,
			ports = excluded.ports, external = excluded.external
		WHERE (jiji_containers.server_id, jiji_containers.project, jiji_containers.name,
			jiji_containers.ports, jiji_containers.external)
		IS NOT (excluded.server_id, excluded.project, excluded.name, excluded.ports, excluded.external)`
)

// Cells is the row of containers of a normalized c, in the order of UpsertContainer.
func (c Container) Cells() []any {
	cells := []any{c.ID, c.Service, c.ServerID, c.IP.String(), unixMilli(c.StartedAt), nil, string(c.Health), unixMilli(c.LastCheck), int64(c.Failures), nil}
	if c.Instance != "" {
		cells[5] = c.Instance
	}
	if c.HealthPort != 0 {
		cells[9] = int64(c.HealthPort)
	}
	return cells
}

// ExtraCells is its row of jiji_containers, in the order of UpsertExtra.
func (c Container) ExtraCells() []any {
	external := int64(0)
	if c.External {
		external = 1
	}
	return []any{c.ID, c.ServerID, c.Project, c.Name, FormatPorts(c.Ports), external}
}

func unixMilli(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}
