//! How the settings shape the work over a store: its journal and its collections.

use std::sync::Arc;
use std::time::Duration;

use dormer_blobs::Blobs;
use dormer_engine::{CollectSettings, Collector, JournalSettings, SystemClock};
use dormer_index::CollectIndex;

use crate::settings::Settings;

/// How the journal is written over this store: a turn is stuck if it waits for twice as long as the
/// longest call.
pub(super) fn journal_settings(settings: &Settings) -> JournalSettings {
    let defaults = JournalSettings::default();
    JournalSettings { stuck_after: defaults.stuck_after.max(2 * longest_call(settings)), ..defaults }
}

/// The longest time that the store's client tries to make a call. A folder's calls have no bound.
fn longest_call(settings: &Settings) -> Duration {
    // The last try may begin when the time for tries is over.
    settings.remote_storage.as_ref().map_or(Duration::ZERO, |remote| {
        remote.retries.time_max + remote.store.connect_timeout + remote.store.request_timeout
    })
}

pub(super) fn collector(
    settings: &Settings,
    index: Arc<dyn CollectIndex>,
    blobs: Arc<dyn Blobs>,
) -> Collector {
    let seconds = |duration: Duration| i64::try_from(duration.as_secs()).unwrap_or(i64::MAX);
    let collect_settings = CollectSettings {
        put_seconds_max: seconds(longest_call(settings)),
        interval_seconds: Some(seconds(settings.collect_interval)).filter(|interval| *interval > 0),
        upload_seconds_max: seconds(settings.upload_timeout),
        alias_seconds: settings.engine.alias_seconds,
        expiry_defaults: settings.expiry_defaults,
        recompress_level: settings.recompress_level,
        ..CollectSettings::default()
    };
    Collector::new(index, blobs, Arc::new(SystemClock), collect_settings)
}
