-- What lies in edge targets, and what is still to be brought there. Words: docs/ARCHITECTURE.md; the orders that these rows
-- serve: docs/STORAGE.md, "Publishing". Everything here can be made anew from a target's listing: no data depends on it.

CREATE TABLE publish_targets (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    location TEXT NOT NULL,                     -- where it is: a target that moved is another one
    fence INTEGER NOT NULL,                     -- grows with every lease
    holder TEXT,                                -- NULL: released
    lease_ends_at INTEGER NOT NULL,
    cursor_transaction INTEGER NOT NULL,
    cursor_number INTEGER NOT NULL,
    ran_at INTEGER,
    error TEXT,                                 -- why the last run failed
    error_at INTEGER
) STRICT;

-- A cache that is published, or was and is being taken back. The name is kept for what is left of a deleted cache.
CREATE TABLE publish_caches (
    target INTEGER NOT NULL REFERENCES publish_targets (id),
    cache INTEGER NOT NULL,
    name TEXT NOT NULL,
    basis BLOB NOT NULL,                        -- digest of what every narinfo depends on: keys, store folder
    document BLOB NOT NULL,                     -- digest of the documents about the cache as they were written last
    published_at INTEGER NOT NULL,
    PRIMARY KEY (target, cache)
) STRICT, WITHOUT ROWID;

CREATE TABLE publish_objects (
    target INTEGER NOT NULL,
    cache INTEGER NOT NULL,
    hash BLOB NOT NULL,
    state INTEGER NOT NULL,                     -- 0: may be there, 1: is there, 2: is being removed
    nar BLOB NOT NULL,
    tag BLOB NOT NULL,
    digest BLOB NOT NULL,                       -- of the narinfo's text; empty before it was written
    etag TEXT,                                  -- what the target said of it
    upstream INTEGER NOT NULL,                  -- whether an upstream key signed it
    PRIMARY KEY (target, cache, hash)
) STRICT, WITHOUT ROWID;
CREATE INDEX publish_objects_by_nar ON publish_objects (target, cache, nar, tag);
CREATE INDEX publish_objects_removing ON publish_objects (target, cache, hash) WHERE state = 2;

CREATE TABLE publish_refs (
    target INTEGER NOT NULL,
    cache INTEGER NOT NULL,
    reference BLOB NOT NULL,
    referrer BLOB NOT NULL,
    PRIMARY KEY (target, cache, reference, referrer)
) STRICT, WITHOUT ROWID;
CREATE INDEX publish_refs_by_referrer ON publish_refs (target, cache, referrer);

CREATE TABLE publish_nars (
    target INTEGER NOT NULL,
    cache INTEGER NOT NULL,
    nar BLOB NOT NULL,
    tag BLOB NOT NULL,
    path BLOB NOT NULL,                         -- the object that named it last
    uploaded INTEGER NOT NULL,
    file_size INTEGER NOT NULL,
    file_hash BLOB,
    etag TEXT,
    delete_after INTEGER,                       -- nothing names it any more
    PRIMARY KEY (target, cache, nar, tag)
) STRICT, WITHOUT ROWID;
CREATE INDEX publish_nars_by_path ON publish_nars (target, cache, path);
CREATE INDEX publish_nars_by_end ON publish_nars (target, cache, delete_after) WHERE delete_after IS NOT NULL;

CREATE TABLE publish_pending (
    target INTEGER NOT NULL,
    cache INTEGER NOT NULL,
    hash BLOB NOT NULL,
    since INTEGER NOT NULL,
    lost BLOB,                                  -- a reference that was removed under it
    reason TEXT,                                -- why it waits
    PRIMARY KEY (target, cache, hash)
) STRICT, WITHOUT ROWID;
CREATE INDEX publish_pending_by_age ON publish_pending (target, cache, since, hash);
