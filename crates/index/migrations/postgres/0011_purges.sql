-- Paths that were removed together with their bytes; the same as on SQLite.

-- What a removed path was made of. A row goes when the bytes that nothing else needs are gone.
CREATE TABLE purges (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    cache BIGINT NOT NULL,
    hash BYTEA NOT NULL,
    asked_at BIGINT NOT NULL,
    tried_at BIGINT,                            -- the last collection that had to leave some bytes
    recipe BYTEA NOT NULL,
    listing BYTEA                               -- the recipe of its listing, if that is in chunks
);
CREATE INDEX purges_by_cache ON purges (cache);
CREATE INDEX purges_untried ON purges (id) WHERE tried_at IS NULL;
