-- How many rows of each cache a target has, so that nothing counts a whole cache. Triggers keep the
-- numbers. The holder of a target's lease alone changes its rows, so no transaction waits for
-- another one because of them.
CREATE TABLE publish_counts (
    target BIGINT NOT NULL,
    cache BIGINT NOT NULL,
    published BIGINT NOT NULL DEFAULT 0,       -- objects that are there
    pending BIGINT NOT NULL DEFAULT 0,
    nars BIGINT NOT NULL DEFAULT 0,            -- NARs that are there
    file_bytes BIGINT NOT NULL DEFAULT 0,      -- and their bytes
    PRIMARY KEY (target, cache)
);
INSERT INTO publish_counts (target, cache, published, pending, nars, file_bytes)
SELECT target, cache, sum(published), sum(pending), sum(nars), sum(file_bytes) FROM (
    SELECT target, cache, count(*) AS published, 0 AS pending, 0 AS nars, 0 AS file_bytes
    FROM publish_objects WHERE state = 1 GROUP BY target, cache
    UNION ALL SELECT target, cache, 0, count(*), 0, 0 FROM publish_pending GROUP BY target, cache
    UNION ALL SELECT target, cache, 0, 0, count(*), sum(file_size) FROM publish_nars
    WHERE uploaded = 1 GROUP BY target, cache
) AS counted GROUP BY target, cache;

-- By statement: a page of thousands of rows changes each number once.
CREATE FUNCTION count_publish_objects() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'DELETE' THEN
        INSERT INTO publish_counts (target, cache, published)
        SELECT target, cache, count(*) FROM added WHERE state = 1 GROUP BY target, cache
        ON CONFLICT (target, cache) DO UPDATE SET published = publish_counts.published + excluded.published;
    END IF;
    IF TG_OP <> 'INSERT' THEN
        INSERT INTO publish_counts (target, cache, published)
        SELECT target, cache, -count(*) FROM removed WHERE state = 1 GROUP BY target, cache
        ON CONFLICT (target, cache) DO UPDATE SET published = publish_counts.published + excluded.published;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER publish_objects_inserted AFTER INSERT ON publish_objects
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION count_publish_objects();
CREATE TRIGGER publish_objects_deleted AFTER DELETE ON publish_objects
    REFERENCING OLD TABLE AS removed FOR EACH STATEMENT EXECUTE FUNCTION count_publish_objects();
CREATE TRIGGER publish_objects_updated AFTER UPDATE ON publish_objects
    REFERENCING OLD TABLE AS removed NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION count_publish_objects();

CREATE FUNCTION count_publish_pending() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'DELETE' THEN
        INSERT INTO publish_counts (target, cache, pending)
        SELECT target, cache, count(*) FROM added GROUP BY target, cache
        ON CONFLICT (target, cache) DO UPDATE SET pending = publish_counts.pending + excluded.pending;
    END IF;
    IF TG_OP <> 'INSERT' THEN
        INSERT INTO publish_counts (target, cache, pending)
        SELECT target, cache, -count(*) FROM removed GROUP BY target, cache
        ON CONFLICT (target, cache) DO UPDATE SET pending = publish_counts.pending + excluded.pending;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER publish_pending_inserted AFTER INSERT ON publish_pending
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION count_publish_pending();
CREATE TRIGGER publish_pending_deleted AFTER DELETE ON publish_pending
    REFERENCING OLD TABLE AS removed FOR EACH STATEMENT EXECUTE FUNCTION count_publish_pending();

CREATE FUNCTION count_publish_nars() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP <> 'DELETE' THEN
        INSERT INTO publish_counts (target, cache, nars, file_bytes)
        SELECT target, cache, count(*), sum(file_size)::bigint FROM added WHERE uploaded = 1 GROUP BY target, cache
        ON CONFLICT (target, cache) DO UPDATE SET nars = publish_counts.nars + excluded.nars, file_bytes = publish_counts.file_bytes + excluded.file_bytes;
    END IF;
    IF TG_OP <> 'INSERT' THEN
        INSERT INTO publish_counts (target, cache, nars, file_bytes)
        SELECT target, cache, -count(*), -sum(file_size)::bigint FROM removed WHERE uploaded = 1 GROUP BY target, cache
        ON CONFLICT (target, cache) DO UPDATE SET nars = publish_counts.nars + excluded.nars, file_bytes = publish_counts.file_bytes + excluded.file_bytes;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER publish_nars_inserted AFTER INSERT ON publish_nars
    REFERENCING NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION count_publish_nars();
CREATE TRIGGER publish_nars_deleted AFTER DELETE ON publish_nars
    REFERENCING OLD TABLE AS removed FOR EACH STATEMENT EXECUTE FUNCTION count_publish_nars();
CREATE TRIGGER publish_nars_updated AFTER UPDATE ON publish_nars
    REFERENCING OLD TABLE AS removed NEW TABLE AS added FOR EACH STATEMENT EXECUTE FUNCTION count_publish_nars();
