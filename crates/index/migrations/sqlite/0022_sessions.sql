-- Pushes by chunks in progress, and the parts that they have sent. The rows of a session go some
-- time after its end.
CREATE TABLE sessions (
    id BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    cache INTEGER NOT NULL,
    subject TEXT NOT NULL,                      -- of the token that opened it; no other caller may use it
    created_at INTEGER NOT NULL,
    ends_at INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX sessions_by_subject ON sessions (subject, ends_at);
CREATE INDEX sessions_by_end ON sessions (ends_at);
CREATE INDEX sessions_by_cache ON sessions (cache);

CREATE TABLE session_parts (
    session BLOB NOT NULL,
    digest BLOB NOT NULL CHECK (length(digest) = 32),
    chunks BLOB NOT NULL,                       -- the numbers of its chunks: a recipe without fills
    PRIMARY KEY (session, digest)
) STRICT, WITHOUT ROWID;
