-- What the collector needs; the same as on PostgreSQL.

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
    id BLOB NOT NULL PRIMARY KEY CHECK (length(id) = 16),
    not_before INTEGER NOT NULL                 -- 2^63 - 1: never, the object is another database's
) STRICT, WITHOUT ROWID;
CREATE INDEX doomed_packs_by_time ON doomed_packs (not_before);

-- One row: the last collection.
CREATE TABLE last_collection (
    one INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    opened_at INTEGER NOT NULL,
    ended_at INTEGER,
    listed_at INTEGER,                          -- the last listing of the store
    report TEXT NOT NULL                        -- JSON
) STRICT;
INSERT INTO last_collection (one, opened_at, report) VALUES (1, 0, '{}');
