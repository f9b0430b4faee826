-- What each cache and the whole installation held and did, day by day: for pictures of growth. A
-- server writes it now and then, from the counters and from what it counted in memory.
-- docs/STORAGE.md, "History".
CREATE TABLE cache_days (
    cache INTEGER NOT NULL,                     -- 0: the whole installation
    day INTEGER NOT NULL,                       -- days since 1970 UTC
    paths INTEGER,                              -- what it held when that changed last; NULL: as before
    path_bytes INTEGER,
    stored_bytes INTEGER,                       -- of the packs; of cache 0 alone
    pushes INTEGER NOT NULL DEFAULT 0,
    pulls INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (cache, day)
) STRICT, WITHOUT ROWID;
CREATE INDEX cache_days_by_day ON cache_days (day);
