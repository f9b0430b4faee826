-- Pushes by chunks in progress, and the parts that they have sent. The rows of a session go some
-- time after its end.
CREATE TABLE sessions (
    id BYTEA NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    cache BIGINT NOT NULL,
    subject TEXT COLLATE "C" NOT NULL,          -- of the token that opened it; no other caller may use it
    created_at BIGINT NOT NULL,
    ends_at BIGINT NOT NULL
);
CREATE INDEX sessions_by_subject ON sessions (subject, ends_at);
CREATE INDEX sessions_by_end ON sessions (ends_at);
CREATE INDEX sessions_by_cache ON sessions (cache);

CREATE TABLE session_parts (
    session BYTEA NOT NULL,
    digest BYTEA NOT NULL CHECK (length(digest) = 32),
    chunks BYTEA NOT NULL,                      -- the numbers of its chunks: a recipe without fills
    PRIMARY KEY (session, digest)
);
