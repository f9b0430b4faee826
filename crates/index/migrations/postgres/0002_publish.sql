-- What lies in edge targets, and what is still to be brought there. Words: docs/ARCHITECTURE.md; the orders that these rows
-- serve: docs/STORAGE.md, "Publishing". Everything here can be made anew from a target's listing: no data depends on it. The
-- same tables as on SQLite.

CREATE TABLE publish_targets (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    name TEXT COLLATE "C" NOT NULL UNIQUE,
    location TEXT NOT NULL,                     -- where it is: a target that moved is another one
    fence BIGINT NOT NULL,                      -- grows with every lease
    holder TEXT,                                -- NULL: released
    lease_ends_at BIGINT NOT NULL,
    cursor_transaction BIGINT NOT NULL,
    cursor_number BIGINT NOT NULL,
    ran_at BIGINT,
    error TEXT,                                 -- why the last run failed
    error_at BIGINT
);

-- A cache that is published, or was and is being taken back. The name is kept for what is left of a deleted cache.
CREATE TABLE publish_caches (
    target BIGINT NOT NULL REFERENCES publish_targets (id),
    cache BIGINT NOT NULL,
    name TEXT NOT NULL,
    basis BYTEA NOT NULL,                        -- digest of what every narinfo depends on: keys, store folder
    document BYTEA NOT NULL,                     -- digest of the documents about the cache as they were written last
    published_at BIGINT NOT NULL,
    PRIMARY KEY (target, cache)
);

CREATE TABLE publish_objects (
    target BIGINT NOT NULL,
    cache BIGINT NOT NULL,
    hash BYTEA NOT NULL,
    state BIGINT NOT NULL,                     -- 0: may be there, 1: is there, 2: is being removed
    nar BYTEA NOT NULL,
    tag BYTEA NOT NULL,
    digest BYTEA NOT NULL,                       -- of the narinfo's text; empty before it was written
    etag TEXT,                                  -- what the target said of it
    upstream BIGINT NOT NULL,                  -- whether an upstream key signed it
    PRIMARY KEY (target, cache, hash)
);
CREATE INDEX publish_objects_by_nar ON publish_objects (target, cache, nar, tag);
CREATE INDEX publish_objects_removing ON publish_objects (target, cache, hash) WHERE state = 2;

CREATE TABLE publish_refs (
    target BIGINT NOT NULL,
    cache BIGINT NOT NULL,
    reference BYTEA NOT NULL,
    referrer BYTEA NOT NULL,
    PRIMARY KEY (target, cache, reference, referrer)
);
CREATE INDEX publish_refs_by_referrer ON publish_refs (target, cache, referrer);

CREATE TABLE publish_nars (
    target BIGINT NOT NULL,
    cache BIGINT NOT NULL,
    nar BYTEA NOT NULL,
    tag BYTEA NOT NULL,
    path BYTEA NOT NULL,                         -- the object that named it last
    uploaded BIGINT NOT NULL,
    file_size BIGINT NOT NULL,
    file_hash BYTEA,
    etag TEXT,
    delete_after BIGINT,                       -- nothing names it any more
    PRIMARY KEY (target, cache, nar, tag)
);
CREATE INDEX publish_nars_by_path ON publish_nars (target, cache, path);
CREATE INDEX publish_nars_by_end ON publish_nars (target, cache, delete_after) WHERE delete_after IS NOT NULL;

CREATE TABLE publish_pending (
    target BIGINT NOT NULL,
    cache BIGINT NOT NULL,
    hash BYTEA NOT NULL,
    since BIGINT NOT NULL,
    lost BYTEA,                                  -- a reference that was removed under it
    reason TEXT,                                -- why it waits
    PRIMARY KEY (target, cache, hash)
);
CREATE INDEX publish_pending_by_age ON publish_pending (target, cache, since, hash);
