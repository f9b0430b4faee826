//! `[push]` in the settings: what pushes leave out.

use std::collections::BTreeMap;

use dormer_api::CacheName;
use serde::{Deserialize, Serialize};

use super::names::ServerName;
use crate::push_filter::{ByteSize, NamePattern, PushFilter};

/// Filters for all caches and for single ones.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct PushSettings {
    /// Patterns of names that stay out.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub exclude: Vec<NamePattern>,
    /// NARs that are larger stay out.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub exclude_larger: Option<ByteSize>,
    /// Also push paths that refer to those that stay out.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub allow_incomplete: Option<bool>,
    /// Filters of single caches: `cache` on any server, or `server:cache`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub caches: BTreeMap<String, CacheFilterSettings>,
    #[serde(flatten)]
    other: toml::Table,
}

/// Filters of one cache.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct CacheFilterSettings {
    /// Patterns of names that stay out, in addition to those for all caches.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub exclude: Vec<NamePattern>,
    /// In place of the limit for all caches.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub exclude_larger: Option<ByteSize>,
    /// In place of the choice for all caches.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub allow_incomplete: Option<bool>,
    #[serde(flatten)]
    other: toml::Table,
}

impl PushSettings {
    /// The filter for one cache. Patterns add up; the most specific limit and choice count.
    pub fn filter_for(&self, server: &ServerName, cache: &CacheName) -> PushFilter {
        let mut filter = PushFilter {
            exclude: self.exclude.clone(),
            exclude_larger: self.exclude_larger.map(u64::from),
            allow_incomplete: self.allow_incomplete.unwrap_or(false),
        };
        for key in [cache.to_string(), format!("{server}:{cache}")] {
            let Some(of_cache) = self.caches.get(&key) else { continue };
            filter.exclude.extend(of_cache.exclude.iter().cloned());
            filter.exclude_larger = of_cache.exclude_larger.map(u64::from).or(filter.exclude_larger);
            filter.allow_incomplete = of_cache.allow_incomplete.unwrap_or(filter.allow_incomplete);
        }
        filter
    }
}
