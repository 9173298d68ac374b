package registry

// Schema is all tables.
const Schema = SharedSchema + OwnSchema + ServersSchema

// SharedSchema is the four tables that clusters of other programs have too:
// their names, types and defaults never change.
const SharedSchema = `CREATE TABLE IF NOT EXISTS cluster_metadata (
  key TEXT PRIMARY KEY NOT NULL,
  value TEXT NOT NULL DEFAULT ''
);
CREATE TABLE IF NOT EXISTS servers (
  id TEXT PRIMARY KEY NOT NULL,
  hostname TEXT NOT NULL DEFAULT '',
  subnet TEXT NOT NULL DEFAULT '',
  wireguard_ip TEXT NOT NULL DEFAULT '',
  wireguard_pubkey TEXT NOT NULL DEFAULT '',
  management_ip TEXT NOT NULL DEFAULT '',
  endpoints TEXT NOT NULL DEFAULT '',
  last_seen INTEGER NOT NULL DEFAULT 0,
  removed_at INTEGER
);
CREATE TABLE IF NOT EXISTS services (
  name TEXT PRIMARY KEY NOT NULL,
  project TEXT NOT NULL DEFAULT ''
);
CREATE TABLE IF NOT EXISTS containers (
  id TEXT PRIMARY KEY NOT NULL,
  service TEXT NOT NULL DEFAULT '',
  server_id TEXT NOT NULL DEFAULT '',
  ip TEXT NOT NULL DEFAULT '',
  started_at INTEGER NOT NULL DEFAULT 0,
  instance_id TEXT,
  health_status TEXT NOT NULL DEFAULT 'healthy',
  last_health_check INTEGER NOT NULL DEFAULT 0,
  consecutive_failures INTEGER NOT NULL DEFAULT 0,
  health_port INTEGER
);
`

// OwnSchema is the tables that only we have. They are changed by addition
// alone, and in ways that replication takes: every column that is no key has a
// default. A row of jiji_containers repeats its container's server_id, so that
// the server can find the rows that an interrupted deletion left.
const OwnSchema = `CREATE TABLE IF NOT EXISTS jiji_meta (
  key TEXT PRIMARY KEY NOT NULL,
  value TEXT NOT NULL DEFAULT ''
);
CREATE TABLE IF NOT EXISTS jiji_containers (
  id TEXT PRIMARY KEY NOT NULL,
  server_id TEXT NOT NULL DEFAULT '',
  project TEXT NOT NULL DEFAULT '',
  name TEXT NOT NULL DEFAULT '',
  ports TEXT NOT NULL DEFAULT '[]',
  external INTEGER NOT NULL DEFAULT 0
);
`

// ServersSchema is what OwnSchema got later: a row for each server, written by
// that server alone. claimed_at (Unix ms) is when it took its subnet; boot_id
// differs between processes.
const ServersSchema = `CREATE TABLE IF NOT EXISTS jiji_servers (
  id TEXT PRIMARY KEY NOT NULL,
  version TEXT NOT NULL DEFAULT '',
  boot_id TEXT NOT NULL DEFAULT '',
  mtu INTEGER NOT NULL DEFAULT 0,
  claimed_at INTEGER NOT NULL DEFAULT 0
);
`
