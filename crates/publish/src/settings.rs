//! What a target is and how it is published to.

use std::time::Duration;

use dormer_api::{CacheName, CacheNamePattern};
use dormer_format::EncodingTag;

use crate::recompress::recompressed_tag;

/// Most bytes of the ids of revoked tokens: half of what an edge reads of a document, which holds
/// keys and more besides.
pub const REVOKED_BYTES_MAX: usize = dormer_edge::STATE_BYTES_MAX / 2;

/// A target without its location.
#[derive(Debug, Clone)]
#[expect(clippy::struct_excessive_bools, reason = "each is a setting of the target by itself")]
pub struct TargetSettings {
    /// Its name.
    pub name: String,
    /// Which caches: names or patterns. A private cache is published only if it is named exactly.
    pub caches: Vec<CacheNamePattern>,
    /// Whether listings (`.ls`) are published, at one more request for each path.
    pub listings: bool,
    /// Whether build logs are published, at one more request for each.
    pub logs: bool,
    /// Whether build traces are published, at one more request for each.
    pub traces: bool,
    /// Whether debug info is published, at one more request for each debug file.
    pub debug_info: bool,
    /// zstd level (1 to 19) that NARs are recompressed at; `None` sends them as the lab has them.
    pub recompress_level: Option<i32>,
    /// How long a NAR stays after its last narinfo is removed, for clients that remember the
    /// narinfo.
    pub nar_grace: Duration,
    /// How long a path waits for a reference that the cache lacks, before the reference counts as
    /// upstream.
    pub settle: Duration,
    /// Ids (`jti`) of revoked tokens, for the state documents: at most [`REVOKED_BYTES_MAX`].
    pub revoked_tokens: Vec<String>,
    /// Most requests at once.
    pub concurrency: usize,
    /// Most bytes sent per second; 0 sets no limit.
    pub bandwidth: u64,
    /// Memory for files that are being sent, in bytes.
    pub memory_bytes: u64,
    /// Longest that a request may be under way, without its retries. After a failure, and after a
    /// run that was killed, this is how long requests are waited for.
    pub request_timeout: Duration,
    /// How long a lease lasts unless it is renewed.
    pub lease: Duration,
    /// How long a run works on one cache before it looks after the others.
    pub turn: Duration,
}

impl Default for TargetSettings {
    fn default() -> Self {
        Self {
            name: String::new(),
            caches: Vec::new(),
            listings: false,
            logs: false,
            traces: true,
            debug_info: false,
            recompress_level: None,
            nar_grace: Duration::from_hours(30 * 24),
            settle: Duration::from_mins(5),
            revoked_tokens: Vec::new(),
            concurrency: 8,
            bandwidth: 0,
            memory_bytes: 64 * 1024 * 1024,
            request_timeout: Duration::from_mins(1),
            lease: Duration::from_secs(30),
            turn: Duration::from_secs(30),
        }
    }
}

impl TargetSettings {
    /// The published tag of a NAR with this tag in the lab.
    pub(crate) fn published_tag(&self, tag: EncodingTag) -> EncodingTag {
        self.recompress_level.map_or(tag, |level| recompressed_tag(tag, level))
    }

    /// Whether a cache is published. Any pattern selects a public cache; only its exact name
    /// selects a private one.
    pub fn selects(&self, cache: &CacheName, is_public: bool) -> bool {
        self.caches.iter().any(|pattern| (is_public || pattern.is_exact()) && pattern.matches(cache))
    }
}

/// Seconds of a duration that is set to seconds.
pub(crate) fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_caches_are_published_only_when_they_are_named() {
        let settings = TargetSettings {
            caches: vec!["team-*".parse().unwrap(), "secret".parse().unwrap()],
            ..TargetSettings::default()
        };
        let selects = |name: &str, public| settings.selects(&name.parse().unwrap(), public);
        assert!(selects("team-a", true) && selects("secret", true) && selects("secret", false));
        assert!(!selects("team-a", false) && !selects("other", true));
    }
}
