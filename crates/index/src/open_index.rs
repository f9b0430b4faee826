//! An open index, as each of its contracts.
//!
//! The compiler makes the code of a generic contract where a `dyn` is made of it. [`OpenIndex`] is
//! therefore made here, once for each dialect: made by callers, all statements of both dialects
//! would be compiled again in each program that opens an index (`docs/adr/0012-build-time.md`).

use std::sync::Arc;

use crate::sql_index::{Dialect, SqlIndex};
use crate::{
    CollectIndex, Index, JobIndex, JournalIndex, PostgresIndex, PublishIndex, ScrubIndex, SqliteIndex,
};

/// One index: what the layers above hold of it, whatever its dialect.
#[derive(Clone)]
pub struct OpenIndex {
    /// What reads and pushes use.
    pub index: Arc<dyn Index>,
    /// What publishing keeps of its targets.
    pub publish: Arc<dyn PublishIndex>,
    /// Jobs over whole caches.
    pub jobs: Arc<dyn JobIndex>,
    /// What the garbage collector reads and frees.
    pub collect: Arc<dyn CollectIndex>,
    /// What a scrub reads and notes.
    pub scrub: Arc<dyn ScrubIndex>,
    /// What the journal writes down, and what a recovery restores.
    pub journal: Arc<dyn JournalIndex>,
}

impl OpenIndex {
    fn over<D: Dialect>(index: Arc<SqlIndex<D>>) -> Self {
        Self {
            index: index.clone(),
            publish: index.clone(),
            jobs: index.clone(),
            collect: index.clone(),
            scrub: index.clone(),
            journal: index,
        }
    }
}

impl std::fmt::Debug for OpenIndex {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("OpenIndex").field("index", &self.index).finish_non_exhaustive()
    }
}

impl From<SqliteIndex> for OpenIndex {
    #[inline(never)]
    fn from(index: SqliteIndex) -> Self {
        Self::over(Arc::new(index))
    }
}

impl From<PostgresIndex> for OpenIndex {
    #[inline(never)]
    fn from(index: PostgresIndex) -> Self {
        Self::over(Arc::new(index))
    }
}
