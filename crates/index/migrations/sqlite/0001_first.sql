-- The index, version 1. Words: docs/ARCHITECTURE.md; what must hold: docs/STORAGE.md, "Invariants".
--
-- Hashes and ids are raw bytes, times are seconds since 1970 UTC. What is long or rarely read comes last in a row, so that
-- a look-up does not touch its overflow pages. Rows that other rows or followers name are numbered with AUTOINCREMENT:
-- a number is never given twice.

CREATE TABLE settings (
    name TEXT NOT NULL PRIMARY KEY,
    value BLOB NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE caches (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL,
    is_public INTEGER NOT NULL,
    store_dir TEXT NOT NULL,
    priority INTEGER NOT NULL,
    upstream_cache_key_names TEXT NOT NULL,     -- JSON array
    retention_seconds INTEGER,
    created_at INTEGER NOT NULL,
    deleted_at INTEGER                          -- the row stays, so that followers can tell which cache went
) STRICT;
CREATE UNIQUE INDEX caches_by_name ON caches (name) WHERE deleted_at IS NULL;

CREATE TABLE cache_keys (
    cache INTEGER NOT NULL REFERENCES caches (id),
    position INTEGER NOT NULL,
    active INTEGER NOT NULL,
    public_key TEXT NOT NULL,
    sealed_secret BLOB NOT NULL,
    PRIMARY KEY (cache, position)
) STRICT, WITHOUT ROWID;

CREATE TABLE packs (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id BLOB NOT NULL UNIQUE CHECK (length(id) = 16),
    size INTEGER NOT NULL,
    created_at INTEGER NOT NULL,
    used_at INTEGER NOT NULL,                   -- stamp of the last commit that used one of its chunks
    condemned_at INTEGER
) STRICT;

-- A chunk's number is 65,536 times the number of the pack that brought it, plus its position there: the chunks of one
-- upload have consecutive numbers, which makes recipes short. The number stays when the chunk moves to another pack.
CREATE TABLE chunks (
    number INTEGER PRIMARY KEY,
    id BLOB NOT NULL UNIQUE CHECK (length(id) = 32),
    pack INTEGER NOT NULL REFERENCES packs (number),
    start INTEGER NOT NULL,
    checksum INTEGER NOT NULL,                  -- XXH3-64, the same bits as a signed number
    damaged_at INTEGER,
    layout BLOB NOT NULL
) STRICT;

CREATE TABLE nars (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    hash BLOB NOT NULL UNIQUE CHECK (length(hash) = 32),
    size INTEGER NOT NULL,
    file_size INTEGER NOT NULL,
    tag BLOB NOT NULL CHECK (length(tag) = 16),
    damaged_at INTEGER,
    recipe BLOB NOT NULL
) STRICT;

CREATE TABLE listings (
    nar INTEGER PRIMARY KEY REFERENCES nars (id) ON DELETE CASCADE,
    size INTEGER,                               -- NULL: body is the compressed JSON; else bytes of JSON, body is a recipe
    body BLOB NOT NULL
) STRICT;

CREATE TABLE objects (
    id INTEGER PRIMARY KEY,
    cache INTEGER NOT NULL REFERENCES caches (id),
    hash BLOB NOT NULL CHECK (length(hash) = 20),
    nar INTEGER NOT NULL REFERENCES nars (id),
    created_at INTEGER NOT NULL,
    last_used_at INTEGER NOT NULL,
    name TEXT NOT NULL,                         -- the path's, without its hash
    deriver TEXT,
    ca TEXT,
    system TEXT,
    sigs BLOB NOT NULL,
    refs BLOB NOT NULL,
    UNIQUE (cache, hash)
) STRICT;
CREATE INDEX objects_by_nar ON objects (nar, cache);

-- NARs that stay readable for a while after their object went. The object's hash is kept, so that a removal for cause ends
-- the grace too.
CREATE TABLE graces (
    cache INTEGER NOT NULL REFERENCES caches (id),
    hash BLOB NOT NULL,
    nar INTEGER NOT NULL REFERENCES nars (id),
    ends_at INTEGER NOT NULL,
    PRIMARY KEY (cache, hash, nar)
) STRICT, WITHOUT ROWID;
CREATE INDEX graces_by_nar ON graces (nar, cache);

CREATE TABLE aliases (
    cache INTEGER NOT NULL REFERENCES caches (id),
    file_name TEXT NOT NULL,
    nar INTEGER NOT NULL REFERENCES nars (id),
    used_at INTEGER NOT NULL,
    compression TEXT NOT NULL,
    PRIMARY KEY (cache, file_name)
) STRICT, WITHOUT ROWID;
CREATE INDEX aliases_by_nar ON aliases (nar, cache);

CREATE TABLE outbox (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    cache INTEGER NOT NULL,
    hash BLOB,                                  -- NULL: the cache itself changed
    at INTEGER NOT NULL
) STRICT;
