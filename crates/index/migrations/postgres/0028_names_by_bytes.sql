-- The names of paths by their bytes, so that all that begin with a text are one range of the index.
-- The database's own collation may put other names between them. The index takes the place of the
-- one that only found equal names: a push writes as many indexes as before. Both statements take
-- one lock, so reads wait for the index, some seconds for a million paths, and nothing deadlocks.
DROP INDEX objects_by_name;
CREATE INDEX objects_by_name ON objects (cache, name COLLATE "C", created_at, id);
