package embedded

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"github.com/acidtib/jiji-node/registry"
)

func dataVersion(ctx context.Context, conn *sql.Conn) (version int64, err error) {
	err = conn.QueryRowContext(ctx, `PRAGMA data_version`).Scan(&version)
	return version, err
}

func readRows(ctx context.Context, conn *sql.Conn) ([]registry.Row, error) {
	rows, err := conn.QueryContext(ctx, `
		SELECT c.id, c.service, c.server_id, c.ip, c.started_at, c.instance_id,
			c.health_status, c.last_health_check, c.consecutive_failures, c.health_port,
			s.project, j.server_id, j.project, j.name, j.ports, j.external
		FROM containers c
		LEFT JOIN services s ON s.name = c.service
		LEFT JOIN jiji_containers j ON j.id = c.id`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var list []registry.Row
	for rows.Next() {
		var r registry.Row
		if err := rows.Scan(&r.ID, &r.Service, &r.ServerID, &r.IP, &r.StartedAt, &r.Instance,
			&r.Health, &r.LastCheck, &r.Failures, &r.HealthPort,
			&r.ServiceProject, &r.OursServerID, &r.Project, &r.Name, &r.Ports, &r.External); err != nil {
			return nil, err
		}
		list = append(list, r)
	}
	return list, rows.Err()
}

// A writer is one transaction of this server's. The shared tables come before
// ours in it, as they do where each is a transaction of its own.
type writer struct {
	tx      *sql.Tx
	self    string
	changes int64 // rows inserted, changed or deleted
}

func (w *writer) exec(ctx context.Context, statement string, args ...any) error {
	res, err := w.tx.ExecContext(ctx, statement, args...)
	if err != nil {
		return err
	}
	n, err := res.RowsAffected()
	w.changes += n
	return err
}

// mine returns nil if the container is this server's, else an error that wraps
// registry.ErrNotFound or an *OwnerError. A row without owner is not here yet.
func (w *writer) mine(ctx context.Context, id string) error {
	var owner string
	err := w.tx.QueryRowContext(ctx, `SELECT server_id FROM containers WHERE id = ?`, id).Scan(&owner)
	switch {
	case errors.Is(err, sql.ErrNoRows) || err == nil && owner == "":
		return fmt.Errorf("%w: %q", registry.ErrNotFound, id)
	case err == nil && owner != w.self:
		return &registry.OwnerError{ID: id, Owner: owner, Self: w.self}
	}
	return err
}

func (w *writer) put(ctx context.Context, c registry.Container) error {
	if err := w.exec(ctx, registry.InsertService, c.Service, c.Project); err != nil {
		return err
	}
	if err := w.exec(ctx, registry.UpsertContainer, c.Cells()...); err != nil {
		return err
	}
	return w.exec(ctx, registry.UpsertExtra, c.ExtraCells()...)
}

func (w *writer) setHealth(ctx context.Context, id string, h registry.Health, at time.Time) error {
	return w.exec(ctx, `
		UPDATE containers SET health_status = ?1, last_health_check = ?2,
			consecutive_failures = CASE ?1 WHEN 'healthy' THEN 0 ELSE consecutive_failures END
		WHERE id = ?3 AND server_id = ?4 AND health_status <> ?1`,
		string(h), milli(at), id, w.self)
}

func (w *writer) remove(ctx context.Context, id string) error {
	if err := w.exec(ctx, `DELETE FROM containers WHERE id = ? AND server_id = ?`, id, w.self); err != nil {
		return err
	}
	return w.exec(ctx, `DELETE FROM jiji_containers WHERE id = ? AND server_id = ?`, id, w.self)
}

func (w *writer) adopt(ctx context.Context, former string) (containers int, err error) {
	before := w.changes
	if err := w.exec(ctx, `UPDATE containers SET server_id = ? WHERE server_id = ?`, w.self, former); err != nil {
		return 0, err
	}
	containers = int(w.changes - before)
	return containers, w.exec(ctx, `UPDATE jiji_containers SET server_id = ? WHERE server_id = ?`, w.self, former)
}

func milli(t time.Time) int64 {
	if t.IsZero() {
		return 0
	}
	return t.UnixMilli()
}
