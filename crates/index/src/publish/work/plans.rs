//! Publishing's statements, for tests of their plans.

use super::{caches, documents, look_ups, pending, removing, writing};
use crate::sql::Sql;

/// Statements that go on where the last page ended, with what shows that in the plans of SQLite and
/// of PostgreSQL.
pub(crate) const PAGES: &[(Sql, &str, &str)] = &[
    (
        pending::PENDING,
        "publish_pending_by_age (target=? AND cache=? AND (since,hash)>(?,?))",
        "(ROW(since, hash) > ROW($3, $4))",
    ),
    (pending::PENDING_ABSENT, "PRIMARY KEY (target=? AND cache=? AND hash>?)", "(hash > $3)"),
    (pending::LAST_OBJECT, "(cache=? AND hash>?)", "(hash > $2)"),
    (pending::LAST_PUBLISHED, "PRIMARY KEY (target=? AND cache=? AND hash>?)", "(hash > $3)"),
    (
        look_ups::LIST_PUBLISHED,
        "publish_objects_by_name (<expr>=? AND <expr>=? AND hash>?)",
        "publish_objects_by_name",
    ),
    (
        look_ups::LIST_NARS,
        "publish_nars_by_name (<expr>=? AND <expr>=? AND (nar,tag)>(?,?))",
        "publish_nars_by_name",
    ),
    (
        documents::LIST_DOCUMENTS,
        "publish_documents_by_name (target=? AND cache=? AND (name,hash)>(?,?) AND name<?)",
        "publish_documents_by_name",
    ),
    (
        removing::FIND_SPREADING,
        "publish_objects_leaving (target=? AND cache=? AND state=? AND referrers_taken=?)",
        "publish_objects_leaving",
    ),
    (
        removing::REMOVABLE,
        "publish_objects_leaving (target=? AND cache=? AND state=? AND referrers_taken=? AND hash>?)",
        "publish_objects_leaving",
    ),
];

/// All others that touch many rows.
pub(crate) const LOOK_UPS: &[Sql] = &[
    pending::NOTE_OBJECTS,
    pending::NOTE_PUBLISHED,
    pending::NOTE_PENDING,
    pending::NOTE_CHANGED,
    pending::NOTE_WAITING,
    pending::SET_LOST,
    pending::FIND_REMOVED,
    pending::OLD_REMOVED,
    look_ups::FIND_OBJECTS,
    look_ups::FIND_PUBLISHED,
    look_ups::FIND_NARS,
    look_ups::DUE_NARS,
    removing::FIND_REFERRERS,
    removing::FIND_REFERRERS_OF,
    removing::SET_AFTER,
    removing::NOTE_LOST,
    removing::BEGIN_REMOVING,
    removing::SET_TAKEN,
    removing::DELETE_OBJECTS,
    removing::DELETE_REFS,
    removing::LEAVE_NARS,
    removing::LEAVE_NARS_OF,
    removing::END_GRACES,
    removing::BEGIN_DELETING,
    removing::FORGET_NARS,
    removing::DRIFTED_OBJECTS,
    removing::NOTE_NAMING,
    removing::DRIFTED_NAMING,
    writing::BEGIN_OBJECTS,
    writing::BEGIN_NARS,
    writing::ADD_REFS,
    writing::NOTE_UPLOADED,
    writing::FINISH_OBJECTS,
    writing::FIND_REFS,
    writing::DROP_REFS,
    writing::LEAVE_NARS,
    caches::FORGET_ROWS[0].1,
    caches::FORGET_ROWS[1].1,
    caches::FORGET_ROWS[2].1,
    caches::FORGET_ROWS[3].1,
    caches::FORGET_ROWS[4].1,
    caches::FORGET_ROWS[5].1,
    documents::FIND_OWNED,
    documents::FIND_BUILD_IDS,
    documents::FIND_DOCUMENTS,
    documents::FIND_NEEDED,
    documents::WRITE_DOCUMENTS,
    documents::DRIFTED,
    documents::FORGET_DOCUMENTS,
];

/// Whether a statement takes any rows of a cache, as many as its limit allows.
pub(crate) fn takes_any_rows(sql: Sql) -> bool {
    caches::FORGET_ROWS.iter().any(|(_, forget)| *forget == sql)
}
