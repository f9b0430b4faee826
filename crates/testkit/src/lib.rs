//! Fault-injecting stores, NAR strategies, in-process server, helpers for real services.
