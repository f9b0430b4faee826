-- Whether an upload may give a path of the cache another NAR. Caches from before keep what they
-- did; new ones say it themselves.
ALTER TABLE caches ADD COLUMN allow_replacement BOOLEAN NOT NULL DEFAULT TRUE;
-- For callers that may know of public caches only.
CREATE INDEX public_caches_by_name ON caches (name) WHERE is_public AND deleted_at IS NULL;
