-- What each cache and the whole installation held and did, day by day: for pictures of growth. A
-- server writes it now and then, from the counters and from what it counted in memory.
-- docs/STORAGE.md, "History".
CREATE TABLE cache_days (
    cache BIGINT NOT NULL,                      -- 0: the whole installation
    day BIGINT NOT NULL,                        -- days since 1970 UTC
    paths BIGINT,                               -- what it held when that changed last; NULL: as before
    path_bytes BIGINT,
    stored_bytes BIGINT,                        -- of the packs; of cache 0 alone
    pushes BIGINT NOT NULL DEFAULT 0,
    pulls BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (cache, day)
);
CREATE INDEX cache_days_by_day ON cache_days (day);
