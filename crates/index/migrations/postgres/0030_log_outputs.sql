-- `documents.name` has the collation "C", which beats that of `objects.deriver` where the two are
-- compared. The index of derivers has the default collation, so each write of a log read all
-- objects of the cache. SQLite has one collation and needs no such step.
CREATE OR REPLACE FUNCTION note_document_written() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO journal_notes (cache, kind, name, changes) VALUES (NEW.cache, 3, NEW.name, 1)
    ON CONFLICT (cache, kind, name) DO UPDATE SET changes = journal_notes.changes + 1;
    IF NEW.kind = 1 THEN
        INSERT INTO outbox (transaction, cache, hash, at)
        SELECT b.base + pg_current_xact_id()::text::bigint, o.cache, o.hash, NEW.written_at
        FROM objects AS o CROSS JOIN outbox_base AS b
        WHERE o.cache = NEW.cache AND o.deriver = substr(NEW.name, 5) COLLATE "default" LIMIT 256;
    ELSE
        INSERT INTO outbox (transaction, cache, hash, at)
        SELECT b.base + pg_current_xact_id()::text::bigint, o.cache, o.hash, NEW.written_at
        FROM objects AS o CROSS JOIN outbox_base AS b
        WHERE o.cache = NEW.cache AND o.hash = NEW.owner;
    END IF;
    RETURN NULL;
END $$;
