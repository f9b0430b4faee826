//! An open index, as each of its contracts.

use std::sync::Arc;

use crate::{CollectIndex, Index, JobIndex, JournalIndex, PublishIndex, ScrubIndex, SqlIndex};

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

impl std::fmt::Debug for OpenIndex {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("OpenIndex").field("index", &self.index).finish_non_exhaustive()
    }
}

impl From<SqlIndex> for OpenIndex {
    // Made here: made by callers, all statements would be compiled again in each program that opens
    // an index.
    #[inline(never)]
    fn from(index: SqlIndex) -> Self {
        let index = Arc::new(index);
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
