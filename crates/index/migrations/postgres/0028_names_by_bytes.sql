-- The names of paths by their bytes, so that all that begin with a text are one range of the index.
-- The database's own collation may put other names between them. The index takes the place of the
-- one that only found equal names: a push writes as many indexes as before. All statements take
-- one lock, so reads wait for the indexes, some seconds for a million paths, and nothing deadlocks.
DROP INDEX objects_by_name;
CREATE INDEX objects_by_name ON objects (cache, name COLLATE "C", created_at, id);

-- Of indexes that look equally good, as in a database without statistics, PostgreSQL takes the
-- newest. So the indexes that find an object, a NAR or a deriver in a cache are made anew, behind
-- the one that lists a cache.
ALTER TABLE objects DROP CONSTRAINT objects_cache_hash_key, ADD CONSTRAINT objects_cache_hash_key UNIQUE (cache, hash);
DROP INDEX objects_by_deriver;
CREATE INDEX objects_by_deriver ON objects (cache, deriver) WHERE deriver IS NOT NULL;
DROP INDEX objects_by_nar;
CREATE INDEX objects_by_nar ON objects (nar, cache);
