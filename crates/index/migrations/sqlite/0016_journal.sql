-- The journal beside the packs: how far it is, and what besides objects changed since. The same
-- tables as on PostgreSQL.

-- One row.
CREATE TABLE journal (
    one INTEGER NOT NULL PRIMARY KEY CHECK (one = 1),
    lineage INTEGER NOT NULL,                    -- random; 0: nothing was written yet
    generation INTEGER NOT NULL,                 -- where files are written
    fence INTEGER NOT NULL,                      -- grows with every lease
    sequence INTEGER NOT NULL,                   -- grows with every file
    cursor_transaction INTEGER NOT NULL,         -- outbox rows up to here are written
    cursor_number INTEGER NOT NULL,
    snapshot BLOB,                             -- where the snapshot goes on; NULL: it is whole
    base_fence INTEGER NOT NULL,                 -- files up to here are older than the snapshot
    base_sequence INTEGER NOT NULL,
    snapshot_bytes INTEGER NOT NULL,
    segment_bytes INTEGER NOT NULL,              -- since the snapshot began
    holder TEXT,                                -- NULL: released
    lease_ends_at INTEGER NOT NULL,
    written_at INTEGER NOT NULL
) STRICT;
INSERT INTO journal (one, lineage, generation, fence, sequence, cursor_transaction, cursor_number, base_fence,
    base_sequence, snapshot_bytes, segment_bytes, lease_ends_at, written_at)
VALUES (1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);

-- What changed besides objects since it was written to the journal. A row goes when the state that
-- it stands for was written and did not change meanwhile.
CREATE TABLE journal_notes (
    cache INTEGER NOT NULL,                      -- 0: the settings
    kind INTEGER NOT NULL,                       -- 0: the settings; 1: the cache and its pins; 2: an upload alias; 3: a document
    name TEXT NOT NULL,                    -- of the alias or document; empty for the others
    changes INTEGER NOT NULL,
    PRIMARY KEY (cache, kind, name)
) STRICT, WITHOUT ROWID;
