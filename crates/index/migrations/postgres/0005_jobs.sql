-- Work over a whole cache or target, done in steps of a few thousand rows. Each step moves the
-- cursor in its own transaction, so that any process can go on where another one stopped. The row
-- goes in the transaction of the job's last step. The same table as on SQLite.
CREATE TABLE jobs (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kind TEXT NOT NULL,
    cache BIGINT,                              -- NULL: the job is about no single cache
    target BIGINT,                             -- NULL: the job is about no edge target
    cursor BYTEA,                                -- where the next step begins; NULL: at the start
    done BIGINT NOT NULL,                      -- rows so far
    holder TEXT,                                -- NULL: released
    fence BIGINT NOT NULL,                     -- grows with every lease
    lease_ends_at BIGINT NOT NULL,             -- nobody else may take the lease before; after a failure, nobody at all
    failures BIGINT NOT NULL,                  -- failed steps since the last good one
    created_at BIGINT NOT NULL,
    stepped_at BIGINT,                         -- when the last good step ended
    error TEXT                                  -- why the last step failed; NULL after a good one
);
CREATE UNIQUE INDEX jobs_by_subject ON jobs (kind, coalesce(cache, 0), coalesce(target, 0));
