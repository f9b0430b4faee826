//! What a session is for: the locks that a transaction holds, and what a failed try may have left.

use dormer_nix::NarHash;

use crate::statement::Sql;

/// What a session is for.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Access<'a> {
    /// Look-ups.
    Read,
    /// A transaction that holds these locks from its first statement until it ends. What it looks
    /// up was committed before the locks were granted, and nothing that takes the same locks
    /// changes it meanwhile.
    Write(&'a [Lock]),
}

/// What a failed try may have left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Effect {
    /// Nothing, and another try may work.
    None,
    /// All or nothing: the answer to the commit was lost.
    Unknown,
    /// Another try would fail in the same way.
    Refused,
}

/// What a transaction holds until it ends, so that two of them agree on what they found. A
/// transaction takes its locks in the order of this list. SQLite has one writer at a time and needs
/// none of them.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Lock {
    /// The cache stays. Many transactions may hold this lock.
    CacheShared(i64),
    /// The cache changes or goes.
    Cache(i64),
    /// The row of a NAR, present or not: the first bytes of its hash. Two NARs may share a lock,
    /// which costs a wait.
    Nar(i64),
    /// The row of an object, present or not: the first bytes of its hash, mixed with its cache.
    Object(i64),
    /// The log of a derivation stays: an object that names the derivation is written. Many
    /// transactions may hold this lock. A removal takes it alone ([`LOCK_LOG`]) before it looks
    /// whether an object is left that names the derivation.
    LogShared(i64),
}

/// Takes the lock of a log alone. A removal knows the derivation only when it has the object, so it
/// takes this lock within its transaction. `$1` is the [`log_key`].
pub(crate) const LOCK_LOG: Sql = Sql { sqlite: Sql::NOTHING, postgres: "SELECT pg_advisory_xact_lock($1)" };

/// Sets the locks of logs apart from those of NARs and objects, which are numbers too.
const LOG_LOCKS: i64 = i64::from_be_bytes(*b"dormelog");

/// The key of the lock of a log, by the cache and the derivation as objects name it.
pub(crate) fn log_key(cache: i64, deriver: &str) -> i64 {
    first_number(NarHash::digest(deriver.as_bytes()).as_bytes()) ^ cache.rotate_right(16) ^ LOG_LOCKS
}

impl Lock {
    pub(crate) fn nar(hash: &[u8; 32]) -> Self {
        Self::Nar(first_number(hash))
    }

    pub(crate) fn object(cache: i64, hash: &[u8; 20]) -> Self {
        Self::Object(first_number(hash) ^ cache.rotate_right(16))
    }
}

fn first_number(hash: &[u8]) -> i64 {
    i64::from_le_bytes(*hash.first_chunk().expect("hashes are long enough"))
}
