-- Damaged chunks by pack: a commit asks whether one of those that it reuses was found damaged meanwhile. Nearly always empty.
CREATE INDEX chunks_damaged ON chunks (pack) WHERE damaged_at IS NOT NULL;
