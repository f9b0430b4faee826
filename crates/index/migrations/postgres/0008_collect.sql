-- What the collector needs; the same as on SQLite.

-- Removing a pack's row removes its chunk rows, and the reference from chunks to packs is checked.
CREATE INDEX chunks_by_pack ON chunks (pack);
-- Chunks that lie in another pack than the one that brought them: few. All others name their pack
-- with their number.
CREATE INDEX chunks_moved ON chunks (number, pack) WHERE pack <> number / 65536;
-- For the collector alone: with plain columns, PostgreSQL would look up an alias by its age.
CREATE INDEX graces_to_expire ON graces ((ends_at + 0));
CREATE INDEX aliases_to_expire ON aliases ((used_at + 0));

-- Objects of the store that are to be deleted. The transaction that removes a pack's row adds its
-- id, so a crash before the deletion forgets nothing.
CREATE TABLE doomed_packs (
    id BYTEA NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    not_before BIGINT NOT NULL                  -- 2^63 - 1: never, the object is another database's
);
CREATE INDEX doomed_packs_by_time ON doomed_packs (not_before);

-- One row: the last collection.
CREATE TABLE last_collection (
    one BIGINT NOT NULL PRIMARY KEY CHECK (one = 1),
    opened_at BIGINT NOT NULL,
    ended_at BIGINT,
    listed_at BIGINT,                           -- the last listing of the store
    report TEXT NOT NULL                        -- JSON
);
INSERT INTO last_collection (one, opened_at, report) VALUES (1, 0, '{}');
