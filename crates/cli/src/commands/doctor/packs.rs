//! Checks whether the store has every pack that the database names. A store that is older than its
//! database lacks some, and the paths that need them are named.

use std::time::{Duration, Instant};

use dormer_engine::{Missing, find_missing};
use dormer_index::CacheId;

use super::finding::Finding;
use crate::error::Result;
use crate::installation;
use crate::settings::Settings;
use crate::settings::units::human_size;

const SUBJECT: &str = "packs";

/// How long objects are looked at, once packs are missing.
const LOOK_MAX: Duration = Duration::from_secs(10);

/// Paths that one line names.
const NAMED_MAX: usize = 5;

/// Says nothing where database or store cannot be read, which other checks report.
pub(super) async fn check(settings: &Settings) -> Vec<Finding> {
    compare(settings).await.into_iter().collect()
}

async fn compare(settings: &Settings) -> Result<Finding> {
    let opened = installation::open_index_beside(settings).await?;
    let store = installation::open_files(settings)?;
    let missing =
        find_missing(&installation::for_recovery(&opened), &store, Instant::now() + LOOK_MAX).await?;
    let mut names = Vec::new();
    for (cache, path) in missing.first_paths.iter().take(NAMED_MAX) {
        let found = opened.journal.find_cache_by_id(*cache).await?;
        names.push(name_of(*cache, found.map(|cache| cache.name), &path.to_string()));
    }
    opened.index.close().await?;
    Ok(describe(&missing, &names))
}

fn name_of(id: CacheId, cache: Option<String>, path: &str) -> String {
    format!("{}/{path}", cache.unwrap_or_else(|| format!("(deleted cache {})", id.0)))
}

fn describe(missing: &Missing, names: &[String]) -> Finding {
    let known = missing.packs_known;
    if missing.packs.is_empty() {
        return Finding::ok(SUBJECT, format!("the store has all {known} packs of the database"));
    }
    let (lost, size) = (missing.packs.len(), human_size(missing.bytes));
    let message = format!("the store lacks {lost} of {known} packs of the database, {size}");
    if missing.paths == 0 && missing.is_whole {
        return Finding::warn(
            SUBJECT,
            format!("{message}; no path needs them"),
            ["the next collections forget them: dormer gc"],
        );
    }
    let least = if missing.is_whole { "" } else { "at least " };
    let dots = if missing.paths > names.len() as u64 { ", \u{2026}" } else { "" };
    let names = names.join(", ");
    Finding::fail(
        SUBJECT,
        format!("{message}; {least}{} paths cannot be read: {names}{dots}", missing.paths),
        [
            "if the missing packs are in a backup of the store, copy them back: nothing else has to change",
            "if not, dormer scrub --full finds the paths, and the next push of each brings it back",
            "is the store older than the database? Then docs/OPERATING.md, \"A lost store\", has the steps",
        ],
    )
}

#[cfg(test)]
mod tests {
    use dormer_format::PackId;

    use super::*;
    use crate::commands::doctor::finding::Status;

    #[test]
    fn what_is_lost_is_named() {
        let whole = Missing { packs_known: 3, is_whole: true, ..Missing::default() };
        assert_eq!(describe(&whole, &[]).status, Status::Ok);
        let packs = vec![PackId::from_bytes([1; 16])];
        let unneeded = Missing { packs, bytes: 2_000_000, ..whole.clone() };
        assert_eq!(describe(&unneeded, &[]).status, Status::Warn);
        let lost = Missing { paths: 2, is_whole: false, ..unneeded };
        let finding = describe(&lost, &["main/a".to_owned()]);
        assert_eq!(finding.status, Status::Fail);
        let expected = "the store lacks 1 of 3 packs of the database, 1.9 MiB; at least 2 paths cannot be read: main/a, \u{2026}";
        assert_eq!(finding.message, expected);
        assert_eq!(name_of(CacheId(3), None, "x"), "(deleted cache 3)/x");
    }
}
