-- What caches and the whole installation hold, in numbers: so nothing has to be counted when
-- somebody asks. Triggers keep them, in the transaction of each change. docs/STORAGE.md,
-- "Counters".
--
-- The triggers only add rows to counter_changes, which wait for no lock: pushes to one cache run
-- beside each other. A job folds these rows into counters.

-- The generation in which a row was counted; 0: not yet. The counters of a generation are the sum
-- over the rows of this generation. A recount begins a new generation and moves every row to it.
ALTER TABLE objects ADD COLUMN counted BIGINT NOT NULL DEFAULT 0;
ALTER TABLE nars ADD COLUMN counted BIGINT NOT NULL DEFAULT 0;
ALTER TABLE packs ADD COLUMN counted BIGINT NOT NULL DEFAULT 0;
ALTER TABLE nars ADD COLUMN holed_bytes BIGINT;          -- in chunks with holes; NULL: not known yet
ALTER TABLE packs ADD COLUMN raw_bytes BIGINT;           -- of its chunks, uncompressed; NULL: not known yet
ALTER TABLE packs ADD COLUMN holed_bytes BIGINT;         -- those in chunks with holes

CREATE TABLE counter_state (
    one BIGINT NOT NULL PRIMARY KEY CHECK (one = 1),
    generation BIGINT NOT NULL,
    counted_at BIGINT                           -- when the last recount ended; NULL: rows are missing
);
-- The generation that new rows belong to, until the transaction ends: a recount that begins another
-- one waits for all that know the old one. The lock is of no table, because pg_dump holds those.
CREATE FUNCTION counter_generation() RETURNS bigint VOLATILE LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(1146049095, 0);
    RETURN (SELECT s.generation FROM counter_state AS s);
END $$;
CREATE VIEW counting AS SELECT counter_generation() AS generation;
INSERT INTO counter_state (one, generation, counted_at)
SELECT 1, 1, CASE WHEN EXISTS (SELECT 1 FROM packs) OR EXISTS (SELECT 1 FROM objects) THEN NULL
    ELSE extract(epoch FROM now())::bigint END;
INSERT INTO jobs (kind, cache, target, done, fence, lease_ends_at, failures, created_at)
SELECT 'recount', NULL, NULL, 0, 0, 0, 0, extract(epoch FROM now())::bigint FROM counter_state WHERE counted_at IS NULL
ON CONFLICT (kind, coalesce(cache, 0), coalesce(target, 0)) DO NOTHING;

-- Cache 0 counts NARs and packs, which belong to all caches.
CREATE TABLE counters (
    cache BIGINT NOT NULL,
    generation BIGINT NOT NULL,
    paths BIGINT NOT NULL DEFAULT 0,
    path_bytes BIGINT NOT NULL DEFAULT 0,
    nars BIGINT NOT NULL DEFAULT 0,
    nar_bytes BIGINT NOT NULL DEFAULT 0,
    nar_holed_bytes BIGINT NOT NULL DEFAULT 0,
    packs BIGINT NOT NULL DEFAULT 0,
    pack_bytes BIGINT NOT NULL DEFAULT 0,
    pack_raw_bytes BIGINT NOT NULL DEFAULT 0,
    pack_holed_bytes BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (cache, generation)
);
CREATE TABLE counter_changes (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    cache BIGINT NOT NULL,
    generation BIGINT NOT NULL,
    paths BIGINT NOT NULL DEFAULT 0,
    path_bytes BIGINT NOT NULL DEFAULT 0,
    nars BIGINT NOT NULL DEFAULT 0,
    nar_bytes BIGINT NOT NULL DEFAULT 0,
    nar_holed_bytes BIGINT NOT NULL DEFAULT 0,
    packs BIGINT NOT NULL DEFAULT 0,
    pack_bytes BIGINT NOT NULL DEFAULT 0,
    pack_raw_bytes BIGINT NOT NULL DEFAULT 0,
    pack_holed_bytes BIGINT NOT NULL DEFAULT 0
);
CREATE INDEX counter_changes_by_cache ON counter_changes (cache);

CREATE FUNCTION count_objects_written() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND OLD.counted > 0 THEN
        INSERT INTO counter_changes (cache, generation, paths, path_bytes)
        VALUES (OLD.cache, OLD.counted, -1, -coalesce(OLD.nar_size, 0));
    END IF;
    INSERT INTO counter_changes (cache, generation, paths, path_bytes)
    VALUES (NEW.cache, NEW.counted, 1, coalesce(NEW.nar_size, 0));
    RETURN NULL;
END $$;
CREATE FUNCTION count_objects_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO counter_changes (cache, generation, paths, path_bytes)
    SELECT cache, counted, -count(*), -coalesce(sum(nar_size), 0) FROM gone WHERE counted > 0 GROUP BY cache, counted;
    RETURN NULL;
END $$;
CREATE TRIGGER objects_inserted AFTER INSERT ON objects FOR EACH ROW WHEN (NEW.counted > 0)
    EXECUTE FUNCTION count_objects_written();
CREATE TRIGGER objects_updated AFTER UPDATE OF nar_size, counted ON objects FOR EACH ROW
    WHEN (NEW.counted > 0 AND (NEW.counted, NEW.nar_size) IS DISTINCT FROM (OLD.counted, OLD.nar_size))
    EXECUTE FUNCTION count_objects_written();
CREATE TRIGGER objects_deleted AFTER DELETE ON objects REFERENCING OLD TABLE AS gone FOR EACH STATEMENT
    EXECUTE FUNCTION count_objects_deleted();

CREATE FUNCTION count_nars_written() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND OLD.counted > 0 THEN
        INSERT INTO counter_changes (cache, generation, nars, nar_bytes, nar_holed_bytes)
        VALUES (0, OLD.counted, -1, -coalesce(OLD.size, 0), -coalesce(OLD.holed_bytes, 0));
    END IF;
    INSERT INTO counter_changes (cache, generation, nars, nar_bytes, nar_holed_bytes)
    VALUES (0, NEW.counted, 1, coalesce(NEW.size, 0), coalesce(NEW.holed_bytes, 0));
    RETURN NULL;
END $$;
CREATE FUNCTION count_nars_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO counter_changes (cache, generation, nars, nar_bytes, nar_holed_bytes)
    SELECT 0, counted, -count(*), -coalesce(sum(size), 0), -coalesce(sum(holed_bytes), 0) FROM gone WHERE counted > 0 GROUP BY counted;
    RETURN NULL;
END $$;
CREATE TRIGGER nars_inserted AFTER INSERT ON nars FOR EACH ROW WHEN (NEW.counted > 0)
    EXECUTE FUNCTION count_nars_written();
CREATE TRIGGER nars_updated AFTER UPDATE OF size, holed_bytes, counted ON nars FOR EACH ROW
    WHEN (NEW.counted > 0 AND (NEW.counted, NEW.size, NEW.holed_bytes) IS DISTINCT FROM (OLD.counted, OLD.size, OLD.holed_bytes))
    EXECUTE FUNCTION count_nars_written();
CREATE TRIGGER nars_deleted AFTER DELETE ON nars REFERENCING OLD TABLE AS gone FOR EACH STATEMENT
    EXECUTE FUNCTION count_nars_deleted();

CREATE FUNCTION count_packs_written() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'UPDATE' AND OLD.counted > 0 THEN
        INSERT INTO counter_changes (cache, generation, packs, pack_bytes, pack_raw_bytes, pack_holed_bytes)
        VALUES (0, OLD.counted, -1, -coalesce(OLD.size, 0), -coalesce(OLD.raw_bytes, 0), -coalesce(OLD.holed_bytes, 0));
    END IF;
    INSERT INTO counter_changes (cache, generation, packs, pack_bytes, pack_raw_bytes, pack_holed_bytes)
    VALUES (0, NEW.counted, 1, coalesce(NEW.size, 0), coalesce(NEW.raw_bytes, 0), coalesce(NEW.holed_bytes, 0));
    RETURN NULL;
END $$;
CREATE FUNCTION count_packs_deleted() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO counter_changes (cache, generation, packs, pack_bytes, pack_raw_bytes, pack_holed_bytes)
    SELECT 0, counted, -count(*), -coalesce(sum(size), 0), -coalesce(sum(raw_bytes), 0), -coalesce(sum(holed_bytes), 0) FROM gone WHERE counted > 0 GROUP BY counted;
    RETURN NULL;
END $$;
CREATE TRIGGER packs_inserted AFTER INSERT ON packs FOR EACH ROW WHEN (NEW.counted > 0)
    EXECUTE FUNCTION count_packs_written();
CREATE TRIGGER packs_updated AFTER UPDATE OF size, raw_bytes, holed_bytes, counted ON packs FOR EACH ROW
    WHEN (NEW.counted > 0 AND (NEW.counted, NEW.size, NEW.raw_bytes, NEW.holed_bytes) IS DISTINCT FROM (OLD.counted, OLD.size, OLD.raw_bytes, OLD.holed_bytes))
    EXECUTE FUNCTION count_packs_written();
CREATE TRIGGER packs_deleted AFTER DELETE ON packs REFERENCING OLD TABLE AS gone FOR EACH STATEMENT
    EXECUTE FUNCTION count_packs_deleted();
