-- What compaction needs; the same as on SQLite.

-- Chunks in the pack's object, also those whose rows lie in another pack. NULL: an older Dormer
-- stored the pack while this one ran.
ALTER TABLE packs ADD COLUMN chunks BIGINT;
UPDATE packs SET chunks = (SELECT count(*) FROM chunks AS c WHERE c.pack = packs.number);
