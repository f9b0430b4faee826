-- The journal beside the packs: how far it is, and what besides objects changed since. The same
-- tables as on SQLite.

-- One row.
CREATE TABLE journal (
    one BIGINT NOT NULL PRIMARY KEY CHECK (one = 1),
    lineage BIGINT NOT NULL,                    -- random; 0: nothing was written yet
    generation BIGINT NOT NULL,                 -- where files are written
    fence BIGINT NOT NULL,                      -- grows with every lease
    sequence BIGINT NOT NULL,                   -- grows with every file
    cursor_transaction BIGINT NOT NULL,         -- outbox rows up to here are written
    cursor_number BIGINT NOT NULL,
    snapshot BYTEA,                             -- where the snapshot goes on; NULL: it is whole
    base_fence BIGINT NOT NULL,                 -- files up to here are older than the snapshot
    base_sequence BIGINT NOT NULL,
    snapshot_bytes BIGINT NOT NULL,
    segment_bytes BIGINT NOT NULL,              -- since the snapshot began
    holder TEXT,                                -- NULL: released
    lease_ends_at BIGINT NOT NULL,
    written_at BIGINT NOT NULL
);
INSERT INTO journal (one, lineage, generation, fence, sequence, cursor_transaction, cursor_number, base_fence,
    base_sequence, snapshot_bytes, segment_bytes, lease_ends_at, written_at)
VALUES (1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);

-- What changed besides objects since it was written to the journal. A row goes when the state that
-- it stands for was written and did not change meanwhile.
CREATE TABLE journal_notes (
    cache BIGINT NOT NULL,                      -- 0: the settings
    kind BIGINT NOT NULL,                       -- 0: the settings; 1: the cache and its pins; 2: an upload alias; 3: a document
    name TEXT COLLATE "C" NOT NULL,                    -- of the alias or document; empty for the others
    changes BIGINT NOT NULL,
    PRIMARY KEY (cache, kind, name)
);
