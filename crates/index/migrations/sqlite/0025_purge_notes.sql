-- Each removal for cause notes what its path was made of; the same as on PostgreSQL.

-- 0: the bytes are in no hurry. A later removal of the same path may still ask for them.
ALTER TABLE purges ADD COLUMN is_asked INTEGER NOT NULL DEFAULT 1;
DROP INDEX purges_untried;
CREATE INDEX purges_untried ON purges (id) WHERE is_asked = 1 AND tried_at IS NULL;
CREATE INDEX purges_unasked ON purges (id) WHERE is_asked = 0;

-- 1: the pack had rows of chunks, and lost them at the time in not_before. Others never had any:
-- what a crash left, and what holds copies only.
ALTER TABLE doomed_packs ADD COLUMN had_row INTEGER NOT NULL DEFAULT 0;
