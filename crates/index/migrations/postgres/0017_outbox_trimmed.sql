-- Whether outbox rows were deleted that the target had not followed: it has to compare its caches
-- as a whole then. docs/STORAGE.md, "Outbox".
ALTER TABLE publish_targets ADD COLUMN missed_changes BIGINT NOT NULL DEFAULT 0;
