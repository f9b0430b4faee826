-- How many rows of each cache a target has, so that nothing counts a whole cache. Triggers keep the
-- numbers. The holder of a target's lease alone changes its rows, so no transaction waits for
-- another one because of them.
CREATE TABLE publish_counts (
    target INTEGER NOT NULL,
    cache INTEGER NOT NULL,
    published INTEGER NOT NULL DEFAULT 0,       -- objects that are there
    pending INTEGER NOT NULL DEFAULT 0,
    nars INTEGER NOT NULL DEFAULT 0,            -- NARs that are there
    file_bytes INTEGER NOT NULL DEFAULT 0,      -- and their bytes
    PRIMARY KEY (target, cache)
) STRICT, WITHOUT ROWID;
INSERT INTO publish_counts (target, cache, published, pending, nars, file_bytes)
SELECT target, cache, sum(published), sum(pending), sum(nars), sum(file_bytes) FROM (
    SELECT target, cache, count(*) AS published, 0 AS pending, 0 AS nars, 0 AS file_bytes
    FROM publish_objects WHERE state = 1 GROUP BY target, cache
    UNION ALL SELECT target, cache, 0, count(*), 0, 0 FROM publish_pending GROUP BY target, cache
    UNION ALL SELECT target, cache, 0, 0, count(*), sum(file_size) FROM publish_nars
    WHERE uploaded = 1 GROUP BY target, cache
) AS counted GROUP BY target, cache;

CREATE TRIGGER publish_objects_counted AFTER INSERT ON publish_objects WHEN new.state = 1 BEGIN
    INSERT INTO publish_counts (target, cache, published) VALUES (new.target, new.cache, 1)
    ON CONFLICT (target, cache) DO UPDATE SET published = published + excluded.published;
END;
CREATE TRIGGER publish_objects_uncounted AFTER DELETE ON publish_objects WHEN old.state = 1 BEGIN
    INSERT INTO publish_counts (target, cache, published) VALUES (old.target, old.cache, -1)
    ON CONFLICT (target, cache) DO UPDATE SET published = published + excluded.published;
END;
CREATE TRIGGER publish_objects_newly_counted AFTER UPDATE OF state ON publish_objects
WHEN new.state = 1 AND old.state <> 1 BEGIN
    INSERT INTO publish_counts (target, cache, published) VALUES (new.target, new.cache, 1)
    ON CONFLICT (target, cache) DO UPDATE SET published = published + excluded.published;
END;
CREATE TRIGGER publish_objects_no_longer_counted AFTER UPDATE OF state ON publish_objects
WHEN old.state = 1 AND new.state <> 1 BEGIN
    INSERT INTO publish_counts (target, cache, published) VALUES (old.target, old.cache, -1)
    ON CONFLICT (target, cache) DO UPDATE SET published = published + excluded.published;
END;

CREATE TRIGGER publish_pending_counted AFTER INSERT ON publish_pending BEGIN
    INSERT INTO publish_counts (target, cache, pending) VALUES (new.target, new.cache, 1)
    ON CONFLICT (target, cache) DO UPDATE SET pending = pending + excluded.pending;
END;
CREATE TRIGGER publish_pending_uncounted AFTER DELETE ON publish_pending BEGIN
    INSERT INTO publish_counts (target, cache, pending) VALUES (old.target, old.cache, -1)
    ON CONFLICT (target, cache) DO UPDATE SET pending = pending + excluded.pending;
END;

CREATE TRIGGER publish_nars_counted AFTER INSERT ON publish_nars WHEN new.uploaded = 1 BEGIN
    INSERT INTO publish_counts (target, cache, nars, file_bytes) VALUES (new.target, new.cache, 1, new.file_size)
    ON CONFLICT (target, cache) DO UPDATE SET nars = nars + excluded.nars, file_bytes = file_bytes + excluded.file_bytes;
END;
CREATE TRIGGER publish_nars_uncounted AFTER DELETE ON publish_nars WHEN old.uploaded = 1 BEGIN
    INSERT INTO publish_counts (target, cache, nars, file_bytes) VALUES (old.target, old.cache, -1, -old.file_size)
    ON CONFLICT (target, cache) DO UPDATE SET nars = nars + excluded.nars, file_bytes = file_bytes + excluded.file_bytes;
END;
CREATE TRIGGER publish_nars_newly_counted AFTER UPDATE OF uploaded, file_size ON publish_nars WHEN new.uploaded = 1 BEGIN
    INSERT INTO publish_counts (target, cache, nars, file_bytes) VALUES (new.target, new.cache, 1, new.file_size)
    ON CONFLICT (target, cache) DO UPDATE SET nars = nars + excluded.nars, file_bytes = file_bytes + excluded.file_bytes;
END;
CREATE TRIGGER publish_nars_no_longer_counted AFTER UPDATE OF uploaded, file_size ON publish_nars WHEN old.uploaded = 1 BEGIN
    INSERT INTO publish_counts (target, cache, nars, file_bytes) VALUES (old.target, old.cache, -1, -old.file_size)
    ON CONFLICT (target, cache) DO UPDATE SET nars = nars + excluded.nars, file_bytes = file_bytes + excluded.file_bytes;
END;
