-- Writing a document is one statement. Triggers write what followers must learn of it, in the same
-- transaction: a note for the journal, and an outbox row for each object that the document belongs
-- to. docs/STORAGE.md, "Documents".
--
-- A log belongs to the objects that name its derivation (its name is "log/" and that). A derivation
-- has a handful of outputs; no more than 256 are noted. A trace belongs to the object that its
-- output became.
CREATE TRIGGER documents_inserted AFTER INSERT ON documents BEGIN
    INSERT INTO journal_notes (cache, kind, name, changes) VALUES (new.cache, 3, new.name, 1)
    ON CONFLICT (cache, kind, name) DO UPDATE SET changes = changes + 1;
    INSERT INTO outbox (cache, hash, at)
    SELECT o.cache, o.hash, new.written_at FROM objects AS o
    WHERE new.kind = 1 AND o.cache = new.cache AND o.deriver = substr(new.name, 5) LIMIT 256;
    INSERT INTO outbox (cache, hash, at)
    SELECT o.cache, o.hash, new.written_at FROM objects AS o
    WHERE new.kind = 2 AND o.cache = new.cache AND o.hash = new.owner;
END;
CREATE TRIGGER documents_updated AFTER UPDATE ON documents BEGIN
    INSERT INTO journal_notes (cache, kind, name, changes) VALUES (new.cache, 3, new.name, 1)
    ON CONFLICT (cache, kind, name) DO UPDATE SET changes = changes + 1;
    INSERT INTO outbox (cache, hash, at)
    SELECT o.cache, o.hash, new.written_at FROM objects AS o
    WHERE new.kind = 1 AND o.cache = new.cache AND o.deriver = substr(new.name, 5) LIMIT 256;
    INSERT INTO outbox (cache, hash, at)
    SELECT o.cache, o.hash, new.written_at FROM objects AS o
    WHERE new.kind = 2 AND o.cache = new.cache AND o.hash = new.owner;
END;
