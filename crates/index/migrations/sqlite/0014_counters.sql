-- What caches and the whole installation hold, in numbers: so nothing has to be counted when
-- somebody asks. Triggers keep them, in the transaction of each change. docs/STORAGE.md,
-- "Counters".

-- The generation in which a row was counted; 0: not yet. The counters of a generation are the sum
-- over the rows of this generation. A recount begins a new generation and moves every row to it.
ALTER TABLE objects ADD COLUMN counted INTEGER NOT NULL DEFAULT 0;
ALTER TABLE nars ADD COLUMN counted INTEGER NOT NULL DEFAULT 0;
ALTER TABLE packs ADD COLUMN counted INTEGER NOT NULL DEFAULT 0;
ALTER TABLE nars ADD COLUMN holed_bytes INTEGER;         -- in chunks with holes; NULL: not known yet
ALTER TABLE packs ADD COLUMN raw_bytes INTEGER;          -- of its chunks, uncompressed; NULL: not known yet
ALTER TABLE packs ADD COLUMN holed_bytes INTEGER;        -- those in chunks with holes

CREATE TABLE counter_state (
    one INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    generation INTEGER NOT NULL,
    counted_at INTEGER                          -- when the last recount ended; NULL: rows are missing
) STRICT;
-- The generation that new rows belong to.
CREATE VIEW counting AS SELECT generation FROM counter_state;
INSERT INTO counter_state (one, generation, counted_at)
SELECT 1, 1, CASE WHEN EXISTS (SELECT 1 FROM packs) OR EXISTS (SELECT 1 FROM objects) THEN NULL ELSE unixepoch() END;
INSERT INTO jobs (kind, cache, target, done, fence, lease_ends_at, failures, created_at)
SELECT 'recount', NULL, NULL, 0, 0, 0, 0, unixepoch() FROM counter_state WHERE counted_at IS NULL
ON CONFLICT (kind, coalesce(cache, 0), coalesce(target, 0)) DO NOTHING;

-- Cache 0 counts NARs and packs, which belong to all caches.
CREATE TABLE counters (
    cache INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    paths INTEGER NOT NULL DEFAULT 0,
    path_bytes INTEGER NOT NULL DEFAULT 0,
    nars INTEGER NOT NULL DEFAULT 0,
    nar_bytes INTEGER NOT NULL DEFAULT 0,
    nar_holed_bytes INTEGER NOT NULL DEFAULT 0,
    packs INTEGER NOT NULL DEFAULT 0,
    pack_bytes INTEGER NOT NULL DEFAULT 0,
    pack_raw_bytes INTEGER NOT NULL DEFAULT 0,
    pack_holed_bytes INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (cache, generation)
) STRICT, WITHOUT ROWID;

CREATE TRIGGER objects_inserted AFTER INSERT ON objects WHEN new.counted > 0 BEGIN
    INSERT INTO counters (cache, generation, paths, path_bytes) VALUES (new.cache, new.counted, 1, new.nar_size)
    ON CONFLICT (cache, generation) DO UPDATE SET paths = paths + 1, path_bytes = path_bytes + excluded.path_bytes;
END;
CREATE TRIGGER objects_deleted AFTER DELETE ON objects WHEN old.counted > 0 BEGIN
    UPDATE counters SET paths = paths - 1, path_bytes = path_bytes - old.nar_size
    WHERE cache = old.cache AND generation = old.counted;
END;
CREATE TRIGGER objects_updated AFTER UPDATE OF nar_size, counted ON objects
WHEN new.counted > 0 AND (new.counted, new.nar_size) IS NOT (old.counted, old.nar_size) BEGIN
    UPDATE counters SET paths = paths - 1, path_bytes = path_bytes - old.nar_size
    WHERE cache = old.cache AND generation = old.counted;
    INSERT INTO counters (cache, generation, paths, path_bytes) VALUES (new.cache, new.counted, 1, new.nar_size)
    ON CONFLICT (cache, generation) DO UPDATE SET paths = paths + 1, path_bytes = path_bytes + excluded.path_bytes;
END;

CREATE TRIGGER nars_inserted AFTER INSERT ON nars WHEN new.counted > 0 BEGIN
    INSERT INTO counters (cache, generation, nars, nar_bytes, nar_holed_bytes)
    VALUES (0, new.counted, 1, new.size, coalesce(new.holed_bytes, 0))
    ON CONFLICT (cache, generation) DO UPDATE SET nars = nars + 1, nar_bytes = nar_bytes + excluded.nar_bytes,
        nar_holed_bytes = nar_holed_bytes + excluded.nar_holed_bytes;
END;
CREATE TRIGGER nars_deleted AFTER DELETE ON nars WHEN old.counted > 0 BEGIN
    UPDATE counters SET nars = nars - 1, nar_bytes = nar_bytes - old.size,
        nar_holed_bytes = nar_holed_bytes - coalesce(old.holed_bytes, 0)
    WHERE cache = 0 AND generation = old.counted;
END;
CREATE TRIGGER nars_updated AFTER UPDATE OF size, holed_bytes, counted ON nars
WHEN new.counted > 0
    AND (new.counted, new.size, new.holed_bytes) IS NOT (old.counted, old.size, old.holed_bytes) BEGIN
    UPDATE counters SET nars = nars - 1, nar_bytes = nar_bytes - old.size,
        nar_holed_bytes = nar_holed_bytes - coalesce(old.holed_bytes, 0)
    WHERE cache = 0 AND generation = old.counted;
    INSERT INTO counters (cache, generation, nars, nar_bytes, nar_holed_bytes)
    VALUES (0, new.counted, 1, new.size, coalesce(new.holed_bytes, 0))
    ON CONFLICT (cache, generation) DO UPDATE SET nars = nars + 1, nar_bytes = nar_bytes + excluded.nar_bytes,
        nar_holed_bytes = nar_holed_bytes + excluded.nar_holed_bytes;
END;

CREATE TRIGGER packs_inserted AFTER INSERT ON packs WHEN new.counted > 0 BEGIN
    INSERT INTO counters (cache, generation, packs, pack_bytes, pack_raw_bytes, pack_holed_bytes)
    VALUES (0, new.counted, 1, new.size, coalesce(new.raw_bytes, 0), coalesce(new.holed_bytes, 0))
    ON CONFLICT (cache, generation) DO UPDATE SET packs = packs + 1, pack_bytes = pack_bytes + excluded.pack_bytes,
        pack_raw_bytes = pack_raw_bytes + excluded.pack_raw_bytes,
        pack_holed_bytes = pack_holed_bytes + excluded.pack_holed_bytes;
END;
CREATE TRIGGER packs_deleted AFTER DELETE ON packs WHEN old.counted > 0 BEGIN
    UPDATE counters SET packs = packs - 1, pack_bytes = pack_bytes - old.size,
        pack_raw_bytes = pack_raw_bytes - coalesce(old.raw_bytes, 0),
        pack_holed_bytes = pack_holed_bytes - coalesce(old.holed_bytes, 0)
    WHERE cache = 0 AND generation = old.counted;
END;
CREATE TRIGGER packs_updated AFTER UPDATE OF size, raw_bytes, holed_bytes, counted ON packs
WHEN new.counted > 0 AND (new.counted, new.size, new.raw_bytes, new.holed_bytes)
    IS NOT (old.counted, old.size, old.raw_bytes, old.holed_bytes) BEGIN
    UPDATE counters SET packs = packs - 1, pack_bytes = pack_bytes - old.size,
        pack_raw_bytes = pack_raw_bytes - coalesce(old.raw_bytes, 0),
        pack_holed_bytes = pack_holed_bytes - coalesce(old.holed_bytes, 0)
    WHERE cache = 0 AND generation = old.counted;
    INSERT INTO counters (cache, generation, packs, pack_bytes, pack_raw_bytes, pack_holed_bytes)
    VALUES (0, new.counted, 1, new.size, coalesce(new.raw_bytes, 0), coalesce(new.holed_bytes, 0))
    ON CONFLICT (cache, generation) DO UPDATE SET packs = packs + 1, pack_bytes = pack_bytes + excluded.pack_bytes,
        pack_raw_bytes = pack_raw_bytes + excluded.pack_raw_bytes,
        pack_holed_bytes = pack_holed_bytes + excluded.pack_holed_bytes;
END;
