-- Build ids of the debug files in a NAR: `lib/debug/.build-id/<2 digits>/<other digits>.debug`.
-- docs/STORAGE.md, "Debug info".
CREATE TABLE build_ids (
    build_id BLOB NOT NULL,
    nar INTEGER NOT NULL REFERENCES nars (id) ON DELETE CASCADE,
    PRIMARY KEY (build_id, nar)
) STRICT, WITHOUT ROWID;
CREATE INDEX build_ids_by_nar ON build_ids (nar);
