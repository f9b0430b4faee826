-- Paths that were removed together with their bytes; the same as on PostgreSQL.

-- What a removed path was made of. A row goes when the bytes that nothing else needs are gone.
CREATE TABLE purges (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    cache INTEGER NOT NULL,
    hash BLOB NOT NULL,
    asked_at INTEGER NOT NULL,
    tried_at INTEGER,                           -- the last collection that had to leave some bytes
    recipe BLOB NOT NULL,
    listing BLOB                                -- the recipe of its listing, if that is in chunks
) STRICT;
CREATE INDEX purges_by_cache ON purges (cache);
CREATE INDEX purges_untried ON purges (id) WHERE tried_at IS NULL;
