//! Publishing: from the outbox to edge targets.
