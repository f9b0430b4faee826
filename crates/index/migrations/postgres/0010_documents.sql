-- Documents: what belongs to a cache beside its objects. Words: docs/ARCHITECTURE.md; when they go:
-- docs/STORAGE.md, "Documents". The same tables as on SQLite.
CREATE TABLE documents (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    cache BIGINT NOT NULL,
    kind BIGINT NOT NULL,                       -- 1: build log; 2: build trace
    owner BYTEA NOT NULL,                       -- hash of a store path: of a log's derivation; of what a trace's output became
    written_at BIGINT NOT NULL,
    size BIGINT NOT NULL,                       -- bytes of the document
    encoding TEXT,                              -- how the body is compressed; NULL: not at all
    digest BYTEA NOT NULL,                      -- SHA-256 of the body
    name TEXT COLLATE "C" NOT NULL,             -- address below the cache
    body BYTEA NOT NULL
);
-- A body is compressed already, or short.
ALTER TABLE documents ALTER COLUMN body SET STORAGE EXTERNAL;
CREATE UNIQUE INDEX documents_by_name ON documents (cache, name);
CREATE INDEX documents_by_number ON documents (cache, id);
CREATE INDEX documents_by_owner ON documents (cache, owner);
-- Whether an object still names the derivation of a log.
CREATE INDEX objects_by_deriver ON objects (cache, deriver) WHERE deriver IS NOT NULL;
