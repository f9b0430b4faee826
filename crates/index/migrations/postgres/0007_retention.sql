-- Retention: what a cache keeps, what names a path so that it is kept, and which paths of a cache
-- refer to which. Words: docs/ARCHITECTURE.md; why closures stay whole: docs/STORAGE.md, "Expiry".
-- The same tables as on SQLite.
ALTER TABLE caches ADD COLUMN quota_bytes BIGINT;       -- NULL: the server's default; 0: no quota
ALTER TABLE caches ADD COLUMN keep_latest BIGINT;       -- NULL or 0: every path of a name
ALTER TABLE caches ADD COLUMN expired_at BIGINT;        -- when the last expire job of the cache ended

-- The last push of an object, or question whether it has to be pushed: objects of a published cache
-- expire by it. Never later than the last use.
ALTER TABLE objects ADD COLUMN pushed_at BIGINT NOT NULL DEFAULT 0;
ALTER TABLE objects ADD COLUMN nar_size BIGINT NOT NULL DEFAULT 0;
UPDATE objects SET pushed_at = last_used_at, nar_size = (SELECT n.size FROM nars AS n WHERE n.id = objects.nar);
CREATE INDEX objects_by_use ON objects (cache, last_used_at, id);
CREATE INDEX objects_by_age ON objects (cache, created_at, id);
CREATE INDEX objects_by_size ON objects (cache, nar_size, id);
CREATE INDEX objects_by_name ON objects (cache, name, created_at, id);
-- Of indexes that look equally good, as in a database without statistics, PostgreSQL takes the
-- newest. So the indexes that find an object or a NAR in a cache are made anew, behind those that
-- list a cache.
ALTER TABLE objects DROP CONSTRAINT objects_cache_hash_key, ADD CONSTRAINT objects_cache_hash_key UNIQUE (cache, hash);
DROP INDEX objects_by_nar;
CREATE INDEX objects_by_nar ON objects (nar, cache);

-- What refers to what, by the hash of the path referred to, whether the cache has that path or not.
-- A path's reference to itself is left out. A row exists exactly as long as the object of its
-- referrer.
CREATE TABLE object_refs (
    cache BIGINT NOT NULL,
    reference BYTEA NOT NULL,
    referrer BYTEA NOT NULL,
    PRIMARY KEY (cache, reference, referrer)
);
-- Packed references: for each one the length of its name, its hash and its name; 0 for the path
-- itself.
WITH RECURSIVE walk (id, at) AS (
    SELECT id, 0 FROM objects
    UNION ALL
    SELECT w.id, w.at + CASE get_byte(o.refs, w.at) WHEN 0 THEN 1 ELSE 21 + get_byte(o.refs, w.at) END
    FROM walk AS w JOIN objects AS o ON o.id = w.id WHERE w.at < length(o.refs))
INSERT INTO object_refs (cache, reference, referrer)
SELECT o.cache, substr(o.refs, w.at + 2, 20), o.hash FROM walk AS w JOIN objects AS o ON o.id = w.id
WHERE CASE WHEN w.at + 20 < length(o.refs) THEN get_byte(o.refs, w.at) <> 0 ELSE FALSE END
ON CONFLICT DO NOTHING;

-- A name that keeps a path, and with it all that the path refers to. The path may be absent.
CREATE TABLE pins (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    cache BIGINT NOT NULL,
    name TEXT COLLATE "C" NOT NULL,
    hash BYTEA NOT NULL,
    path_name TEXT NOT NULL,                    -- the path's name, without its hash
    created_at BIGINT NOT NULL,
    ends_at BIGINT                            -- NULL: never
);
CREATE UNIQUE INDEX pins_by_name ON pins (cache, name, hash);
CREATE INDEX pins_by_path ON pins (cache, hash);

-- What people did that cannot be undone, with the subject of the token that they used.
CREATE TABLE audit (
    number BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    at BIGINT NOT NULL,
    subject TEXT,                               -- NULL: the token names none
    action TEXT NOT NULL,
    cache BIGINT NOT NULL,
    hash BYTEA
);
