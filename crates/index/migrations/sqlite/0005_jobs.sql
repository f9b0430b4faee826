-- Work over a whole cache or target, done in steps of a few thousand rows. Each step moves the
-- cursor in its own transaction, so that any process can go on where another one stopped. The row
-- goes in the transaction of the job's last step.
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    kind TEXT NOT NULL,
    cache INTEGER,                              -- NULL: the job is about no single cache
    target INTEGER,                             -- NULL: the job is about no edge target
    cursor BLOB,                                -- where the next step begins; NULL: at the start
    done INTEGER NOT NULL,                      -- rows so far
    holder TEXT,                                -- NULL: released
    fence INTEGER NOT NULL,                     -- grows with every lease
    lease_ends_at INTEGER NOT NULL,             -- nobody else may take the lease before; after a failure, nobody at all
    failures INTEGER NOT NULL,                  -- failed steps since the last good one
    created_at INTEGER NOT NULL,
    stepped_at INTEGER,                         -- when the last good step ended
    error TEXT                                  -- why the last step failed; NULL after a good one
) STRICT;
CREATE UNIQUE INDEX jobs_by_subject ON jobs (kind, coalesce(cache, 0), coalesce(target, 0));
