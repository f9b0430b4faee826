-- Whether the rows of a target were compared with what is at its location: 0 from the moment that a
-- target moves until a run has compared all of them.
ALTER TABLE publish_targets ADD COLUMN compared INTEGER NOT NULL DEFAULT 1;
UPDATE publish_targets SET compared = 0, location = substr(location, 19) WHERE location LIKE 'not yet compared: %';
-- Whether all that refers to an object which is being removed (state 2) is being removed too.
ALTER TABLE publish_objects ADD COLUMN referrers_taken INTEGER NOT NULL DEFAULT 0;
-- The last of its referrers that was looked at, where they are too many for one step.
ALTER TABLE publish_objects ADD COLUMN referrers_after BLOB;
CREATE INDEX publish_objects_leaving ON publish_objects (target, cache, state, referrers_taken, hash, upstream) WHERE state = 2;
-- A listing of a target comes in the order of names, and a name shows the last byte of a hash
-- first. The first column is an expression, so that no other statement finds these indexes useful:
-- a plan that looks keys up by target and cache alone reads the whole cache.
CREATE INDEX publish_objects_by_name ON publish_objects ((target * 4294967296 + cache), substr(hash, 20, 1), hash);
CREATE INDEX publish_nars_by_name ON publish_nars ((target * 4294967296 + cache), substr(nar, 32, 1), nar, tag);
-- Without figures, SQLite expects ten rows of a cache, and prefers to read all of them to looking a
-- key up in an index. These figures say that target and cache name a million rows.
ANALYZE publish_objects;
DELETE FROM sqlite_stat1 WHERE tbl LIKE 'publish_%';
INSERT INTO sqlite_stat1 (tbl, idx, stat) VALUES
    ('publish_objects', 'publish_objects', '1000000 1000000 1000000 1'),
    ('publish_objects', 'publish_objects_by_nar', '1000000 1000000 1000000 2 2'),
    ('publish_refs', 'publish_refs', '10000000 10000000 10000000 100 1'),
    ('publish_refs', 'publish_refs_by_referrer', '10000000 10000000 10000000 100'),
    ('publish_nars', 'publish_nars', '1000000 1000000 1000000 2 1'),
    ('publish_nars', 'publish_nars_by_path', '1000000 1000000 1000000 2'),
    ('publish_pending', 'publish_pending', '1000000 1000000 1000000 1'),
    ('publish_pending', 'publish_pending_by_age', '1000000 1000000 1000000 1000 1'),
    ('publish_removed', 'publish_removed', '1000000 1000000 1000000 1'),
    ('publish_removed', 'publish_removed_by_age', '1000000 1000000 1000000 1000');
ANALYZE sqlite_schema;
