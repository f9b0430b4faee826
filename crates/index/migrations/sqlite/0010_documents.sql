-- Documents: what belongs to a cache beside its objects. Words: docs/ARCHITECTURE.md; when they go:
-- docs/STORAGE.md, "Documents".
CREATE TABLE documents (
    id INTEGER PRIMARY KEY,
    cache INTEGER NOT NULL,
    kind INTEGER NOT NULL,                      -- 1: build log; 2: build trace
    owner BLOB NOT NULL,                        -- hash of a store path: of a log's derivation; of what a trace's output became
    written_at INTEGER NOT NULL,
    size INTEGER NOT NULL,                      -- bytes of the document
    encoding TEXT,                              -- how the body is compressed; NULL: not at all
    digest BLOB NOT NULL,                       -- SHA-256 of the body
    name TEXT NOT NULL,                         -- address below the cache
    body BLOB NOT NULL
) STRICT;
CREATE UNIQUE INDEX documents_by_name ON documents (cache, name);
CREATE INDEX documents_by_number ON documents (cache, id);
CREATE INDEX documents_by_owner ON documents (cache, owner);
-- Whether an object still names the derivation of a log.
CREATE INDEX objects_by_deriver ON objects (cache, deriver) WHERE deriver IS NOT NULL;
