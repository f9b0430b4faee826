//! Router, extractors, handlers, error-to-status table, auth. Decides nothing.
