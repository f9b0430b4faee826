-- Documents that may be in a target, with each object that they were published with. A row is
-- written before its document, and removed after it.
CREATE TABLE publish_documents (
    target INTEGER NOT NULL,
    cache INTEGER NOT NULL,
    hash BLOB NOT NULL,
    name TEXT NOT NULL,
    digest BLOB NOT NULL,                       -- of what it depended on when it was written last; empty before
    content BLOB,                               -- SHA-256 of the file as it was written last; NULL before
    etag TEXT,                                  -- what the target said of it
    PRIMARY KEY (target, cache, hash, name)
) STRICT, WITHOUT ROWID;
CREATE INDEX publish_documents_by_name ON publish_documents (target, cache, name, hash);

-- Fields of a path's narinfo that no part of Dormer knows, one a line; NULL: none.
ALTER TABLE objects ADD COLUMN extra TEXT;
