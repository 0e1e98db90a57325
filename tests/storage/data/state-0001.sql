BEGIN TRANSACTION;
CREATE TABLE aliases (
	set_id INTEGER NOT NULL, 
	alias TEXT NOT NULL, 
	number INTEGER NOT NULL, 
	generation INTEGER NOT NULL, 
	changed_at TEXT NOT NULL, 
	CONSTRAINT pk_aliases PRIMARY KEY (set_id, alias), 
	CONSTRAINT fk_aliases_set_id_number FOREIGN KEY(set_id, number) REFERENCES model_versions (set_id, number), 
	CONSTRAINT fk_aliases_set_id FOREIGN KEY(set_id) REFERENCES version_sets (set_id)
);
INSERT INTO "aliases" VALUES(1,'prod',1,0,'{}');
CREATE TABLE audit (
	sequence INTEGER NOT NULL, 
	time TEXT NOT NULL, 
	actor TEXT NOT NULL, 
	action TEXT NOT NULL, 
	object TEXT NOT NULL, 
	detail TEXT, 
	CONSTRAINT pk_audit PRIMARY KEY (sequence)
);
INSERT INTO "audit" VALUES(1,'{}','{}','{}','{}',NULL);
CREATE TABLE base_models (
	sequence INTEGER NOT NULL, 
	project TEXT NOT NULL, 
	name TEXT NOT NULL, 
	path TEXT NOT NULL, 
	description TEXT NOT NULL, 
	tags TEXT NOT NULL, 
	facts TEXT NOT NULL, 
	created_at TEXT NOT NULL, 
	CONSTRAINT pk_base_models PRIMARY KEY (sequence), 
	CONSTRAINT uq_base_models_project_name UNIQUE (project, name)
);
INSERT INTO "base_models" VALUES(1,'{}','{}','{}','{}','{}','{}','{}');
CREATE TABLE datasets (
	sequence INTEGER NOT NULL, 
	dataset_id TEXT NOT NULL, 
	project TEXT NOT NULL, 
	name TEXT NOT NULL, 
	description TEXT NOT NULL, 
	tags TEXT NOT NULL, 
	kind TEXT, 
	rows INTEGER NOT NULL, 
	bytes INTEGER NOT NULL, 
	sha256 TEXT NOT NULL, 
	content_hash TEXT NOT NULL, 
	columns TEXT NOT NULL, 
	file_name TEXT NOT NULL, 
	location TEXT, 
	source_uri TEXT, 
	source_version_id TEXT, 
	num_warnings INTEGER NOT NULL, 
	report TEXT NOT NULL, 
	created_at TEXT NOT NULL, 
	CONSTRAINT pk_datasets PRIMARY KEY (sequence), 
	CONSTRAINT uq_datasets_dataset_id UNIQUE (dataset_id)
);
INSERT INTO "datasets" VALUES(1,'{}','{}','{}','{}','{}',NULL,0,0,'{}','{}','{}','{}',NULL,NULL,NULL,0,'{}','{}');
CREATE TABLE events (
	job_id TEXT NOT NULL, 
	number INTEGER NOT NULL, 
	kind TEXT NOT NULL, 
	body TEXT NOT NULL, 
	CONSTRAINT pk_events PRIMARY KEY (job_id, number), 
	CONSTRAINT fk_events_job_id FOREIGN KEY(job_id) REFERENCES jobs (job_id) ON DELETE CASCADE
)
 WITHOUT ROWID

;
INSERT INTO "events" VALUES('job-000000000001',1,'state','{}');
CREATE TABLE idempotency (
	actor TEXT NOT NULL, 
	"key" TEXT NOT NULL, 
	route TEXT NOT NULL, 
	body_sha256 TEXT NOT NULL, 
	object_id TEXT NOT NULL, 
	created_at TEXT NOT NULL, 
	CONSTRAINT pk_idempotency PRIMARY KEY (actor, "key")
);
INSERT INTO "idempotency" VALUES('{}','{}','{}','{}','{}','{}');
CREATE TABLE jobs (
	sequence INTEGER NOT NULL, 
	job_id TEXT NOT NULL, 
	project TEXT NOT NULL, 
	submitted_by TEXT NOT NULL, 
	state TEXT NOT NULL, 
	phase TEXT, 
	waiting_reason TEXT, 
	retry_at FLOAT, 
	is_foreground BOOLEAN NOT NULL, 
	is_paused BOOLEAN NOT NULL, 
	name TEXT NOT NULL, 
	priority INTEGER NOT NULL, 
	model_version TEXT NOT NULL, 
	created_at TEXT NOT NULL, 
	started_at TEXT, 
	finished_at TEXT, 
	attempts INTEGER NOT NULL, 
	fence INTEGER NOT NULL, 
	lease_owner TEXT, 
	lease_until FLOAT, 
	worker_pid INTEGER, 
	worker_started_at FLOAT, 
	run_limit_seconds INTEGER, 
	run_seconds FLOAT NOT NULL, 
	log TEXT, 
	results_uri TEXT NOT NULL, 
	artifact_uri TEXT, 
	request TEXT NOT NULL, 
	settings TEXT NOT NULL, 
	command TEXT NOT NULL, 
	failure TEXT, 
	failure_family TEXT, 
	events_read_bytes INTEGER NOT NULL, 
	num_events INTEGER NOT NULL, 
	CONSTRAINT pk_jobs PRIMARY KEY (sequence), 
	CONSTRAINT uq_jobs_job_id UNIQUE (job_id)
);
INSERT INTO "jobs" VALUES(1,'job-000000000001','{}','{}','SUCCEEDED',NULL,NULL,NULL,0,0,'{}',0,'bot:1','{}',NULL,NULL,0,0,NULL,NULL,NULL,NULL,NULL,0.0,NULL,'{}',NULL,'{}','{}','{}',NULL,NULL,0,0);
CREATE TABLE locations (
	name TEXT NOT NULL, 
	uri TEXT NOT NULL, 
	endpoint_url TEXT, 
	region TEXT, 
	credentials TEXT, 
	description TEXT NOT NULL, 
	created_at TEXT NOT NULL, 
	CONSTRAINT pk_locations PRIMARY KEY (name)
);
INSERT INTO "locations" VALUES('{}','{}',NULL,NULL,NULL,'{}','{}');
CREATE TABLE logs (
	name TEXT NOT NULL, 
	description TEXT NOT NULL, 
	retention_days INTEGER NOT NULL, 
	maximum_bytes INTEGER NOT NULL, 
	created_at TEXT NOT NULL, 
	CONSTRAINT pk_logs PRIMARY KEY (name)
);
INSERT INTO "logs" VALUES('{}','{}',0,0,'{}');
CREATE TABLE model_versions (
	sequence INTEGER NOT NULL, 
	set_id INTEGER NOT NULL, 
	number INTEGER NOT NULL, 
	project TEXT NOT NULL, 
	model_version TEXT NOT NULL, 
	state TEXT NOT NULL, 
	name TEXT NOT NULL, 
	description TEXT NOT NULL, 
	tags TEXT NOT NULL, 
	base_name TEXT NOT NULL, 
	job_id TEXT, 
	parent TEXT, 
	lineage TEXT, 
	results_uri TEXT NOT NULL, 
	artifact_uri TEXT, 
	manifest TEXT, 
	metrics TEXT, 
	verdict TEXT, 
	best_epoch INTEGER, 
	outcome TEXT, 
	is_losing_bytes BOOLEAN NOT NULL, 
	created_at TEXT NOT NULL, 
	changed_at TEXT NOT NULL, 
	CONSTRAINT pk_model_versions PRIMARY KEY (sequence), 
	CONSTRAINT fk_model_versions_set_id FOREIGN KEY(set_id) REFERENCES version_sets (set_id), 
	CONSTRAINT uq_model_versions_project_model_version UNIQUE (project, model_version), 
	CONSTRAINT uq_model_versions_set_id_number UNIQUE (set_id, number)
);
INSERT INTO "model_versions" VALUES(1,1,1,'default','bot:1','ACTIVE','{}','{}','{}','{}',NULL,NULL,NULL,'{}',NULL,NULL,NULL,NULL,NULL,NULL,0,'{}','{}');
CREATE TABLE networks (
	name TEXT NOT NULL, 
	cidr TEXT NOT NULL, 
	interface TEXT, 
	description TEXT NOT NULL, 
	created_at TEXT NOT NULL, 
	CONSTRAINT pk_networks PRIMARY KEY (name)
);
INSERT INTO "networks" VALUES('{}','{}',NULL,'{}','{}');
CREATE TABLE revision (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT revision_pkc PRIMARY KEY (version_num)
);
INSERT INTO "revision" VALUES('0001');
CREATE TABLE tokens (
	token_id TEXT NOT NULL, 
	name TEXT NOT NULL, 
	role TEXT NOT NULL, 
	sha256 TEXT NOT NULL, 
	created_at TEXT NOT NULL, 
	expires_at TEXT, 
	revoked_at TEXT, 
	CONSTRAINT pk_tokens PRIMARY KEY (token_id), 
	CONSTRAINT uq_tokens_sha256 UNIQUE (sha256)
);
INSERT INTO "tokens" VALUES('{}','{}','{}','{}','{}',NULL,NULL);
CREATE TABLE version_sets (
	set_id INTEGER NOT NULL, 
	project TEXT NOT NULL, 
	name TEXT NOT NULL, 
	description TEXT NOT NULL, 
	created_at TEXT NOT NULL, 
	last_number INTEGER NOT NULL, 
	alias_changes INTEGER NOT NULL, 
	CONSTRAINT pk_version_sets PRIMARY KEY (set_id), 
	CONSTRAINT uq_version_sets_project_name UNIQUE (project, name)
);
INSERT INTO "version_sets" VALUES(1,'default','bot','{}','{}',1,0);
CREATE INDEX ix_datasets_project_sequence ON datasets (project, sequence);
CREATE INDEX ix_datasets_sha256 ON datasets (sha256);
CREATE INDEX ix_idempotency_created_at ON idempotency (created_at);
CREATE INDEX ix_jobs_project_sequence ON jobs (project, sequence);
CREATE INDEX ix_jobs_state_sequence ON jobs (state, sequence);
CREATE INDEX ix_events_job_id_kind_number ON events (job_id, kind, number);
CREATE INDEX ix_model_versions_job_id ON model_versions (job_id);
CREATE INDEX ix_model_versions_parent ON model_versions (parent);
CREATE INDEX ix_model_versions_project_sequence ON model_versions (project, sequence);
CREATE INDEX ix_model_versions_state_sequence ON model_versions (state, sequence);
CREATE TRIGGER audit_no_update BEFORE UPDATE ON audit BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
CREATE TRIGGER audit_no_delete BEFORE DELETE ON audit BEGIN SELECT RAISE(ABORT, 'the audit log is append-only'); END;
COMMIT;
