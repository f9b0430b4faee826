-- Damage by chunk, and which NARs need a damaged chunk. docs/STORAGE.md, "Damage".

-- Chunks that were found damaged (chunks.damaged_at), until a job has noted that they were healed.
CREATE TABLE damaged_chunks (
    chunk INTEGER PRIMARY KEY,
    walked INTEGER NOT NULL                     -- 0: no job looked for its NARs yet; 1: a job does; 2: done
) STRICT;
-- A NAR is damaged while one of its rows here names a chunk whose damaged_at is set. So healing
-- the chunk heals every NAR at once.
CREATE TABLE damaged_nars (
    nar INTEGER NOT NULL REFERENCES nars (id) ON DELETE CASCADE,
    chunk INTEGER NOT NULL,
    PRIMARY KEY (nar, chunk)
) STRICT, WITHOUT ROWID;

INSERT INTO damaged_chunks (chunk, walked) SELECT number, 0 FROM chunks WHERE damaged_at IS NOT NULL;
INSERT INTO jobs (kind, cache, target, done, fence, lease_ends_at, failures, created_at)
SELECT 'spread-damage', NULL, NULL, 0, 0, 0, 0, unixepoch() WHERE EXISTS (SELECT 1 FROM damaged_chunks)
ON CONFLICT (kind, coalesce(cache, 0), coalesce(target, 0)) DO NOTHING;

-- One row: the last scrub that ended.
CREATE TABLE last_scrub (
    one INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    job INTEGER,
    ended_at INTEGER,
    report TEXT NOT NULL                        -- JSON
) STRICT;
INSERT INTO last_scrub (one, report) VALUES (1, '{}');
