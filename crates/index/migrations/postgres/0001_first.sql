-- The index, version 1. Words: docs/ARCHITECTURE.md; what must hold: docs/STORAGE.md, "Invariants". The same tables as on
-- SQLite.
--
-- Hashes and ids are raw bytes, times are seconds since 1970 UTC. Text is compared byte by byte, whatever the database's
-- language. Numbers of rows are never given twice.

CREATE TABLE settings (
    name TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    value BYTEA NOT NULL
);

CREATE TABLE caches (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name TEXT COLLATE "C" NOT NULL,
    is_public BOOLEAN NOT NULL,
    store_dir TEXT NOT NULL,
    priority INTEGER NOT NULL,
    upstream_cache_key_names TEXT NOT NULL,     -- JSON array
    retention_seconds BIGINT,
    created_at BIGINT NOT NULL,
    deleted_at BIGINT                           -- the row stays, so that followers can tell which cache went
);
CREATE UNIQUE INDEX caches_by_name ON caches (name) WHERE deleted_at IS NULL;

CREATE TABLE cache_keys (
    cache BIGINT NOT NULL REFERENCES caches (id),
    position INTEGER NOT NULL,
    active BOOLEAN NOT NULL,
    public_key TEXT NOT NULL,
    sealed_secret BYTEA NOT NULL,
    PRIMARY KEY (cache, position)
);

-- A commit stamps the packs that it uses: room in each page keeps such an update on its page, and out of the indexes.
CREATE TABLE packs (
    number BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    id BYTEA NOT NULL UNIQUE CHECK (length(id) = 16),
    size BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    used_at BIGINT NOT NULL,                    -- stamp of the last commit that used one of its chunks
    condemned_at BIGINT
) WITH (fillfactor = 70);

-- A chunk's number is 65,536 times the number of the pack that brought it, plus its position there: the chunks of one
-- upload have consecutive numbers, which makes recipes short. The number stays when the chunk moves to another pack.
CREATE TABLE chunks (
    number BIGINT PRIMARY KEY,
    pack BIGINT NOT NULL REFERENCES packs (number),
    start BIGINT NOT NULL,
    checksum BIGINT NOT NULL,                   -- XXH3-64, the same bits as a signed number
    damaged_at BIGINT,
    id BYTEA NOT NULL UNIQUE CHECK (length(id) = 32),
    layout BYTEA NOT NULL
);

CREATE TABLE nars (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    size BIGINT NOT NULL,
    file_size BIGINT NOT NULL,
    damaged_at BIGINT,
    hash BYTEA NOT NULL UNIQUE CHECK (length(hash) = 32),
    tag BYTEA NOT NULL CHECK (length(tag) = 16),
    recipe BYTEA NOT NULL
);

-- Compressed already: what PostgreSQL's own compression would try in vain.
CREATE TABLE listings (
    nar BIGINT PRIMARY KEY REFERENCES nars (id) ON DELETE CASCADE,
    size BIGINT,                                -- NULL: body is the compressed JSON; else bytes of JSON, body is a recipe
    body BYTEA NOT NULL
);
ALTER TABLE listings ALTER COLUMN body SET STORAGE EXTERNAL;

-- Uses are written down in place: see packs.
CREATE TABLE objects (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    cache BIGINT NOT NULL REFERENCES caches (id),
    nar BIGINT NOT NULL REFERENCES nars (id),
    created_at BIGINT NOT NULL,
    last_used_at BIGINT NOT NULL,
    hash BYTEA NOT NULL CHECK (length(hash) = 20),
    name TEXT NOT NULL,                         -- the path's, without its hash
    deriver TEXT,
    ca TEXT,
    system TEXT,
    sigs BYTEA NOT NULL,
    refs BYTEA NOT NULL,
    UNIQUE (cache, hash)
) WITH (fillfactor = 90);
CREATE INDEX objects_by_nar ON objects (nar, cache);

-- NARs that stay readable for a while after their object went. The object's hash is kept, so that a removal for cause ends
-- the grace too.
CREATE TABLE graces (
    cache BIGINT NOT NULL REFERENCES caches (id),
    hash BYTEA NOT NULL,
    nar BIGINT NOT NULL REFERENCES nars (id),
    ends_at BIGINT NOT NULL,
    PRIMARY KEY (cache, hash, nar)
);
CREATE INDEX graces_by_nar ON graces (nar, cache);

CREATE TABLE aliases (
    cache BIGINT NOT NULL REFERENCES caches (id),
    file_name TEXT COLLATE "C" NOT NULL,
    nar BIGINT NOT NULL REFERENCES nars (id),
    used_at BIGINT NOT NULL,
    compression TEXT NOT NULL,
    PRIMARY KEY (cache, file_name)
);
CREATE INDEX aliases_by_nar ON aliases (nar, cache);

-- Numbers become visible out of order when several transactions write at once. So a row carries its transaction's id, and
-- followers read rows of ended transactions only, ordered by (transaction, number).
CREATE TABLE outbox (
    number BIGINT GENERATED ALWAYS AS IDENTITY,
    transaction BIGINT NOT NULL,                -- its id in this server plus outbox_base.base
    cache BIGINT NOT NULL,
    hash BYTEA,                                 -- NULL: the cache itself changed
    at BIGINT NOT NULL,
    PRIMARY KEY (transaction, number)
);

-- Transaction ids begin anew when a dump is restored into another server; the base lifts them above all that were given.
CREATE TABLE outbox_base (
    base BIGINT NOT NULL,
    one BOOLEAN NOT NULL PRIMARY KEY DEFAULT TRUE CHECK (one)
);
INSERT INTO outbox_base (base) VALUES (0);
