-- Writing a document is one statement. Triggers write what followers must learn of it, in the same
-- transaction: a note for the journal, and an outbox row for each object that the document belongs
-- to. docs/STORAGE.md, "Documents".
--
-- A log belongs to the objects that name its derivation (its name is "log/" and that). A derivation
-- has a handful of outputs; no more than 256 are noted. A trace belongs to the object that its
-- output became.
CREATE FUNCTION note_document_written() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO journal_notes (cache, kind, name, changes) VALUES (NEW.cache, 3, NEW.name, 1)
    ON CONFLICT (cache, kind, name) DO UPDATE SET changes = journal_notes.changes + 1;
    IF NEW.kind = 1 THEN
        INSERT INTO outbox (transaction, cache, hash, at)
        SELECT b.base + pg_current_xact_id()::text::bigint, o.cache, o.hash, NEW.written_at
        FROM objects AS o CROSS JOIN outbox_base AS b
        WHERE o.cache = NEW.cache AND o.deriver = substr(NEW.name, 5) LIMIT 256;
    ELSE
        INSERT INTO outbox (transaction, cache, hash, at)
        SELECT b.base + pg_current_xact_id()::text::bigint, o.cache, o.hash, NEW.written_at
        FROM objects AS o CROSS JOIN outbox_base AS b
        WHERE o.cache = NEW.cache AND o.hash = NEW.owner;
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER documents_written AFTER INSERT OR UPDATE ON documents FOR EACH ROW
    EXECUTE FUNCTION note_document_written();
