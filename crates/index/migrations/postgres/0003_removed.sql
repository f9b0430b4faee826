-- What a published cache had and has no more: it never counts as an upstream's path, so nothing that refers to it is published
-- without it. Kept for a while only; who waits for it by then knows by itself (publish_pending.lost).
CREATE TABLE publish_removed (
    target BIGINT NOT NULL,
    cache BIGINT NOT NULL,
    hash BYTEA NOT NULL,
    at BIGINT NOT NULL,
    PRIMARY KEY (target, cache, hash)
);
CREATE INDEX publish_removed_by_age ON publish_removed (target, cache, at);
