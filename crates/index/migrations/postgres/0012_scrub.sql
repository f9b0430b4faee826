-- Damage by chunk, and which NARs need a damaged chunk; the same as on SQLite. docs/STORAGE.md,
-- "Damage".

-- Chunks that were found damaged (chunks.damaged_at), until a job has noted that they were healed.
CREATE TABLE damaged_chunks (
    chunk BIGINT NOT NULL PRIMARY KEY,
    walked BIGINT NOT NULL                      -- 0: no job looked for its NARs yet; 1: a job does; 2: done
);
-- A NAR is damaged while one of its rows here names a chunk whose damaged_at is set. So healing
-- the chunk heals every NAR at once.
CREATE TABLE damaged_nars (
    nar BIGINT NOT NULL REFERENCES nars (id) ON DELETE CASCADE,
    chunk BIGINT NOT NULL,
    PRIMARY KEY (nar, chunk)
);

INSERT INTO damaged_chunks (chunk, walked) SELECT number, 0 FROM chunks WHERE damaged_at IS NOT NULL;
INSERT INTO jobs (kind, cache, target, done, fence, lease_ends_at, failures, created_at)
SELECT 'spread-damage', NULL, NULL, 0, 0, 0, 0, extract(epoch FROM now())::bigint
WHERE EXISTS (SELECT 1 FROM damaged_chunks)
ON CONFLICT (kind, coalesce(cache, 0), coalesce(target, 0)) DO NOTHING;

-- One row: the last scrub that ended.
CREATE TABLE last_scrub (
    one BIGINT NOT NULL PRIMARY KEY CHECK (one = 1),
    job BIGINT,
    ended_at BIGINT,
    report TEXT NOT NULL                        -- JSON
);
INSERT INTO last_scrub (one, report) VALUES (1, '{}');
