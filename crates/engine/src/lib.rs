//! Ingest and read: the only code that orders writes.
