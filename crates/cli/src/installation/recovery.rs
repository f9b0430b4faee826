//! Opens what `dormer recover` needs, and knows whether it ended.

use std::sync::Arc;

use dormer_engine::RecoveryIndex;
use dormer_index::{Index, OpenIndex};
use dormer_stores::Store;

use super::folders::make_private_folder;
use super::index::open_index;
use super::store::open_unproven_store;
use crate::error::Result;
use crate::settings::Settings;

/// The database notes under this name that `dormer recover` began.
pub(crate) const RECOVERY_BEGUN: &str = "recovery-begun";
/// The database notes under this name that `dormer recover` ended.
pub(crate) const RECOVERY_ENDED: &str = "recovery-ended";

/// The contracts that a recovery needs.
pub(crate) fn for_recovery(opened: &OpenIndex) -> RecoveryIndex {
    RecoveryIndex {
        index: Arc::clone(&opened.index),
        journal: Arc::clone(&opened.journal),
        collect: Arc::clone(&opened.collect),
    }
}

/// Whether `dormer recover` was interrupted.
pub(crate) async fn is_recovery_unfinished(index: &dyn Index) -> Result<bool> {
    Ok(index.find_setting(RECOVERY_BEGUN).await?.is_some()
        && index.find_setting(RECOVERY_ENDED).await?.is_none())
}

/// Opens an index and the store that it is recovered from. An index that is not there is made. The
/// store may belong to any database.
pub(crate) async fn open_for_recovery(settings: &Settings) -> Result<(OpenIndex, Store)> {
    if settings.postgres.is_none()
        && let Some(folder) = settings.database_path.parent().filter(|folder| !folder.as_os_str().is_empty())
    {
        make_private_folder(folder)?;
    }
    let store = open_unproven_store(settings)?;
    Ok((open_index(settings).await?, store))
}
