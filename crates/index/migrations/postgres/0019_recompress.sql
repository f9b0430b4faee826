-- The least zstd level that the chunks of a pack were recompressed at, or would hardly be smaller
-- at; 0: none. docs/STORAGE.md, "Compaction".
ALTER TABLE packs ADD COLUMN recompressed_level BIGINT NOT NULL DEFAULT 0;
