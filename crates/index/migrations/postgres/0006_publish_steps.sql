-- Whether the rows of a target were compared with what is at its location: 0 from the moment that a
-- target moves until a run has compared all of them.
ALTER TABLE publish_targets ADD COLUMN compared BIGINT NOT NULL DEFAULT 1;
UPDATE publish_targets SET compared = 0, location = substr(location, 19) WHERE location LIKE 'not yet compared: %';
-- Whether all that refers to an object which is being removed (state 2) is being removed too.
ALTER TABLE publish_objects ADD COLUMN referrers_taken BIGINT NOT NULL DEFAULT 0;
-- The last of its referrers that was looked at, where they are too many for one step.
ALTER TABLE publish_objects ADD COLUMN referrers_after BYTEA;
CREATE INDEX publish_objects_leaving ON publish_objects (target, cache, state, referrers_taken, hash, upstream) WHERE state = 2;
-- A listing of a target comes in the order of names, and a name shows the last byte of a hash
-- first. The first column is an expression, so that no other statement finds these indexes useful:
-- a plan that looks keys up by target and cache alone reads the whole cache.
CREATE INDEX publish_objects_by_name ON publish_objects ((target * 4294967296 + cache), substr(hash, 20, 1), hash);
CREATE INDEX publish_nars_by_name ON publish_nars ((target * 4294967296 + cache), substr(nar, 32, 1), nar, tag);
