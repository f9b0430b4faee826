//! Publishing's statements, for tests of their plans.

use super::{bringing, caches, comparing, documents, pending, published, removing};
use crate::sql::Sql;

/// A statement and its name.
pub(crate) type Named = (&'static str, Sql);

macro_rules! named {
    ($module:ident::$name:ident) => {
        (concat!(stringify!($module), "::", stringify!($name)), $module::$name)
    };
}

/// Statements that go on where the last page ended, with what shows that in the plans of SQLite and
/// of PostgreSQL.
pub(crate) const PAGES: &[(Named, &str, &str)] = &[
    (
        named!(pending::PENDING),
        "publish_pending_by_age (target=? AND cache=? AND (since,hash)>(?,?))",
        "(ROW(since, hash) > ROW($3, $4))",
    ),
    (named!(pending::PENDING_ABSENT), "PRIMARY KEY (target=? AND cache=? AND hash>?)", "(hash > $3)"),
    (named!(pending::LAST_OBJECT), "(cache=? AND hash>?)", "(hash > $2)"),
    (named!(pending::LAST_PUBLISHED), "PRIMARY KEY (target=? AND cache=? AND hash>?)", "(hash > $3)"),
    (
        named!(published::LIST_PUBLISHED),
        "publish_objects_by_name (<expr>=? AND <expr>=? AND hash>?)",
        "publish_objects_by_name",
    ),
    (
        named!(published::LIST_NARS),
        "publish_nars_by_name (<expr>=? AND <expr>=? AND (nar,tag)>(?,?))",
        "publish_nars_by_name",
    ),
    (
        named!(documents::LIST_DOCUMENTS),
        "publish_documents_by_name (target=? AND cache=? AND (name,hash)>(?,?) AND name<?)",
        "publish_documents_by_name",
    ),
    (
        named!(removing::FIND_SPREADING),
        "publish_objects_leaving (target=? AND cache=? AND state=? AND referrers_taken=?)",
        "publish_objects_leaving",
    ),
    (
        named!(removing::REMOVABLE),
        "publish_objects_leaving (target=? AND cache=? AND state=? AND referrers_taken=? AND hash>?)",
        "publish_objects_leaving",
    ),
];

/// All others that touch many rows, but those of [`FORGET_ROWS`](caches::FORGET_ROWS).
pub(crate) const LOOK_UPS: &[Named] = &[
    named!(pending::NOTE_OBJECTS),
    named!(pending::NOTE_PUBLISHED),
    named!(pending::NOTE_PENDING),
    named!(pending::NOTE_CHANGED),
    named!(pending::NOTE_WAITING),
    named!(pending::SET_LOST),
    named!(pending::FIND_REMOVED),
    named!(caches::OLD_REMOVED),
    named!(pending::NOTE_REMOVED),
    named!(caches::FORGET_REMOVED),
    named!(pending::DROP_PENDING),
    named!(published::FIND_NARS_OF),
    named!(published::FIND_OBJECTS),
    named!(published::FIND_PUBLISHED),
    named!(published::FIND_NARS),
    named!(published::DUE_NARS),
    named!(published::FIND_SERVED),
    named!(published::FIND_ABSENT),
    named!(removing::FIND_REFERRERS),
    named!(removing::FIND_REFERRERS_OF),
    named!(removing::SET_AFTER),
    named!(removing::NOTE_LOST),
    named!(removing::BEGIN_REMOVING),
    named!(removing::SET_TAKEN),
    named!(removing::DELETE_OBJECTS),
    named!(removing::DELETE_REFS),
    named!(removing::DELETE_DOCUMENTS),
    named!(removing::LEAVE_NARS),
    named!(removing::LEAVE_NARS_OF),
    named!(removing::END_GRACES),
    named!(removing::BEGIN_DELETING),
    named!(removing::FORGET_NARS),
    named!(comparing::DRIFTED_OBJECTS),
    named!(comparing::NOTE_NAMING),
    named!(comparing::DRIFTED_NAMING),
    named!(comparing::OUTDATED_NAMING),
    named!(bringing::BEGIN_OBJECTS),
    named!(bringing::BEGIN_NARS),
    named!(comparing::NOTE_FOUND_NARS),
    named!(bringing::ADD_REFS),
    named!(bringing::NOTE_UPLOADED),
    named!(bringing::FINISH_OBJECTS),
    named!(bringing::FIND_REFS),
    named!(bringing::DROP_REFS),
    named!(bringing::LEAVE_NARS),
    named!(bringing::DROP_REMOVED),
    named!(caches::COUNTS),
    named!(caches::LIST_BACKLOG),
    named!(documents::FIND_OWNED),
    named!(documents::FIND_BUILD_IDS),
    named!(documents::FIND_DOCUMENTS),
    named!(documents::FIND_NEEDED),
    named!(documents::WRITE_DOCUMENTS),
    named!(documents::DRIFTED),
    named!(documents::FORGET_DOCUMENTS),
];

/// Statements that touch one row by its key, or rows of a table that has one row for each target or
/// published cache.
pub(crate) const FEW_ROWS: &[&str] = &[
    "targets::HOLD",
    "pending::MOVE_CURSOR",
    "caches::LIST_CACHES",
    "caches::WRITE_CACHE",
    "caches::FORGET_CACHE",
    "caches::OPEN_SCAN",
    "caches::MOVE_SCAN",
    "caches::END_SCAN",
    "caches::FORGET_COUNTS",
    "targets::FIND_TARGET",
    "targets::LIST_TARGETS",
    "targets::LIST_FOLLOWERS",
    "targets::CREATE_TARGET",
    "targets::FIND_HOLDER",
    "targets::ACQUIRE",
    "targets::RELEASE",
    "targets::MOVE",
    "targets::CLEAR_MISSED",
    "targets::FIND_LOCATION",
    "targets::FORGET_SCANS",
];

/// All statements that touch many rows.
pub(crate) fn many_rows() -> Vec<Named> {
    let pages = PAGES.iter().map(|(named, ..)| *named);
    let forget = caches::FORGET_ROWS
        .into_iter()
        .flat_map(|(find_last, delete)| ["caches::FORGET_ROWS"; 2].into_iter().zip([find_last, delete]));
    pages.chain(LOOK_UPS.iter().copied()).chain(forget).collect()
}

/// The source of each module that has statements.
pub(crate) const SOURCES: &[(&str, &str)] = &[
    ("bringing", include_str!("bringing.rs")),
    ("caches", include_str!("caches.rs")),
    ("comparing", include_str!("comparing.rs")),
    ("documents", include_str!("documents.rs")),
    ("pending", include_str!("pending.rs")),
    ("published", include_str!("published.rs")),
    ("removing", include_str!("removing.rs")),
    ("targets", include_str!("targets.rs")),
];

/// Whether a statement takes any rows of a cache, as many as its limit allows, or the first one.
pub(crate) fn takes_any_rows(sql: Sql) -> bool {
    let ends = [caches::COUNTS, caches::LIST_BACKLOG].contains(&sql);
    ends || caches::FORGET_ROWS.iter().any(|(find_last, delete)| [*find_last, *delete].contains(&sql))
}
