-- Retention: what a cache keeps, what names a path so that it is kept, and which paths of a cache
-- refer to which. Words: docs/ARCHITECTURE.md; why closures stay whole: docs/STORAGE.md, "Expiry".
ALTER TABLE caches ADD COLUMN quota_bytes INTEGER;       -- NULL: the server's default; 0: no quota
ALTER TABLE caches ADD COLUMN keep_latest INTEGER;       -- NULL or 0: every path of a name
ALTER TABLE caches ADD COLUMN expired_at INTEGER;        -- when the last expire job of the cache ended

-- The last push of an object, or question whether it has to be pushed: objects of a published cache
-- expire by it. Never later than the last use.
ALTER TABLE objects ADD COLUMN pushed_at INTEGER NOT NULL DEFAULT 0;
ALTER TABLE objects ADD COLUMN nar_size INTEGER NOT NULL DEFAULT 0;
UPDATE objects SET pushed_at = last_used_at, nar_size = (SELECT n.size FROM nars AS n WHERE n.id = objects.nar);
CREATE INDEX objects_by_use ON objects (cache, last_used_at, id);
CREATE INDEX objects_by_age ON objects (cache, created_at, id);
CREATE INDEX objects_by_size ON objects (cache, nar_size, id);
CREATE INDEX objects_by_name ON objects (cache, name, created_at, id);

-- What refers to what, by the hash of the path referred to, whether the cache has that path or not.
-- A path's reference to itself is left out. A row exists exactly as long as the object of its
-- referrer.
CREATE TABLE object_refs (
    cache INTEGER NOT NULL,
    reference BLOB NOT NULL,
    referrer BLOB NOT NULL,
    PRIMARY KEY (cache, reference, referrer)
) STRICT, WITHOUT ROWID;
-- Packed references: for each one the length of its name, its hash and its name; 0 for the path
-- itself.
WITH RECURSIVE walk (id, at) AS (
    SELECT id, 1 FROM objects
    UNION ALL
    SELECT w.id, w.at + CASE WHEN hex(substr(o.refs, w.at, 1)) = '00' THEN 1 ELSE
        21 + 16 * (instr('0123456789ABCDEF', substr(hex(substr(o.refs, w.at, 1)), 1, 1)) - 1)
            + instr('0123456789ABCDEF', substr(hex(substr(o.refs, w.at, 1)), 2, 1)) - 1 END
    FROM walk AS w CROSS JOIN objects AS o WHERE o.id = w.id AND w.at <= length(o.refs))
INSERT OR IGNORE INTO object_refs (cache, reference, referrer)
SELECT o.cache, substr(o.refs, w.at + 1, 20), o.hash FROM walk AS w CROSS JOIN objects AS o
WHERE o.id = w.id AND w.at + 20 <= length(o.refs) AND hex(substr(o.refs, w.at, 1)) <> '00';

-- A name that keeps a path, and with it all that the path refers to. The path may be absent.
CREATE TABLE pins (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    cache INTEGER NOT NULL,
    name TEXT NOT NULL,
    hash BLOB NOT NULL,
    path_name TEXT NOT NULL,                    -- the path's name, without its hash
    created_at INTEGER NOT NULL,
    ends_at INTEGER                            -- NULL: never
) STRICT;
CREATE UNIQUE INDEX pins_by_name ON pins (cache, name, hash);
CREATE INDEX pins_by_path ON pins (cache, hash);

-- What people did that cannot be undone, with the subject of the token that they used.
CREATE TABLE audit (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    at INTEGER NOT NULL,
    subject TEXT,                               -- NULL: the token names none
    action TEXT NOT NULL,
    cache INTEGER NOT NULL,
    hash BLOB
) STRICT;
