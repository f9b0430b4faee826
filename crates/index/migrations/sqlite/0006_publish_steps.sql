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
-- first.
CREATE INDEX publish_objects_by_name ON publish_objects (target, cache, substr(hash, 20, 1), hash);
CREATE INDEX publish_nars_by_name ON publish_nars (target, cache, substr(nar, 32, 1), nar, tag);
