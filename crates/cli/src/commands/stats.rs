//! `dormer stats`.

use clap::Args;
use dormer_api::v2::{CacheStatsResponse, HistoryEntry, ObjectEntry, StatsResponse};
use dormer_client::{CacheRef, ServerName};
use dormer_engine::{Clock as _, SystemClock};
use serde_json::json;

use crate::chart::{Bar, columns_of};
use crate::context::{Context, EXIT_CODES_OF_CLIENT, EndpointArgs};
use crate::error::Result;
use crate::settings::units::{ago, counted, human_size};

/// Days of the history that are asked for: a column of text for each.
const HISTORY_DAYS: u32 = 30;

/// Show what a cache or the whole server holds
///
/// Of a cache: its paths, their bytes, and, for a token that may list the cache, the largest and
/// the longest unused ones. Without a cache: what all caches hold, what the store takes for it, and
/// what deduplication, holes and compression save. That needs a token that may read every cache.
///
/// Examples:
///   dormer stats main
///   dormer stats
///   dormer stats --server lab --json
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, after_long_help = EXIT_CODES_OF_CLIENT)]
pub(crate) struct StatsArgs {
    /// [SERVER:]CACHE; without it, the whole server
    cache: Option<CacheRef>,
    /// The server; without it, the default one
    #[arg(long, conflicts_with = "cache")]
    server: Option<ServerName>,
    #[command(flatten)]
    pub(super) endpoint: EndpointArgs,
}

pub(super) async fn run(args: &StatsArgs, context: &Context) -> Result<()> {
    let printer = &context.printer;
    if let Some(cache) = &args.cache {
        let (server, api) = context.connect_to_cache(cache)?;
        let stats = api.cache_stats(&cache.cache, HISTORY_DAYS).await?;
        let mut message = json!(stats);
        message["message_type"] = "cache_stats".into();
        message["server"] = server.name.as_str().into();
        message["cache"] = cache.cache.as_str().into();
        printer.message(&message)?;
        if !printer.json {
            cache_lines(&stats, SystemClock.now()).iter().try_for_each(|line| printer.data(line))?;
        }
        printer.chart(&cache_bars(&stats))?;
        return printer.chart_lines(&growth(stats.history.as_deref().unwrap_or_default()));
    }
    let (server, api) = context.connect(args.server.as_ref())?;
    let stats = api.stats(HISTORY_DAYS).await?;
    let mut message = json!(stats);
    message["message_type"] = "stats".into();
    message["server"] = server.name.as_str().into();
    printer.message(&message)?;
    if !printer.json {
        lines(&stats).iter().try_for_each(|line| printer.data(line))?;
    }
    printer.chart(&bars(&stats))?;
    printer.chart_lines(&growth(stats.history.as_deref().unwrap_or_default()))
}

/// How the bytes of the paths grew, and the pushes and pulls of each day, if the answer has them.
fn growth(history: &[HistoryEntry]) -> Vec<String> {
    let [first, .., last] = history else { return Vec::new() };
    let sum = |counts: &[u64]| counts.iter().fold(0_u64, |sum, count| sum.saturating_add(*count));
    let sizes: Vec<u64> = history.iter().map(|day| day.nar_bytes).collect();
    let mut lines = vec![format!(
        "{} days  {}  {} → {}",
        history.len(),
        columns_of(&sizes),
        human_size(first.nar_bytes),
        human_size(last.nar_bytes)
    )];
    let pushes: Option<Vec<u64>> = history.iter().map(|day| day.pushes).collect();
    let pulls: Option<Vec<u64>> = history.iter().map(|day| day.pulls).collect();
    for (name, counts) in [("pushes", pushes), ("pulls", pulls)] {
        if let Some(counts) = counts {
            let width = lines[0].find("  ").unwrap_or(0);
            lines.push(format!("{name:<width$}  {}  {}", columns_of(&counts), sum(&counts)));
        }
    }
    lines
}

/// The largest paths, for a token that may list them.
fn cache_bars(stats: &CacheStatsResponse) -> Vec<Bar> {
    let name = |object: &ObjectEntry| {
        object.store_path.split_once('-').map_or_else(String::new, |(_, name)| name.to_owned())
    };
    let largest = stats.largest.iter().flatten();
    largest.map(|object| Bar::new(name(object), object.nar_size)).collect()
}

/// What the store holds and what it saves: together what all paths would take.
fn bars(stats: &StatsResponse) -> Vec<Bar> {
    let saved = |bytes: i64| u64::try_from(bytes).unwrap_or(0);
    vec![
        Bar::new("stored", stats.stored_bytes),
        Bar::new("saved by compression", saved(stats.saved_by_compression)),
        Bar::new("saved by holes", saved(stats.saved_by_holes)),
        Bar::new("saved by equal chunks", saved(stats.saved_by_chunks)),
        Bar::new("saved by same NARs", saved(stats.saved_by_same_nars)),
    ]
}

const INCOMPLETE: &str = "what an older version stored is still being counted: the figures grow";

fn cache_lines(stats: &CacheStatsResponse, now: i64) -> Vec<String> {
    let mut lines = vec![format!(
        "{}, {} uncompressed",
        counted(stats.paths, "path", "paths"),
        human_size(stats.nar_bytes)
    )];
    let entry = |object: &ObjectEntry| {
        let (size, used) = (human_size(object.nar_size), ago(now, object.last_used_at));
        format!("  {}  {size}, used {used}", object.store_path)
    };
    for (title, objects) in [("largest:", &stats.largest), ("longest unused:", &stats.longest_unused)] {
        if let Some(objects) = objects.as_ref().filter(|objects| !objects.is_empty()) {
            lines.push(title.to_owned());
            lines.extend(objects.iter().map(entry));
        }
    }
    if !stats.complete {
        lines.push(INCOMPLETE.to_owned());
    }
    lines
}

fn lines(stats: &StatsResponse) -> Vec<String> {
    // Negative while more is stored than paths name: in grace, or not collected yet.
    let saved = |bytes: i64| {
        let size = human_size(bytes.unsigned_abs());
        if bytes < 0 { format!("-{size}") } else { size }
    };
    let mut lines = vec![
        format!(
            "{} in all caches, {} uncompressed",
            counted(stats.paths, "path", "paths"),
            human_size(stats.path_bytes)
        ),
        format!(
            "{}, in {} of {}",
            counted(stats.nars, "NAR", "NARs"),
            counted(stats.packs, "pack", "packs"),
            human_size(stats.stored_bytes)
        ),
        format!("saved by NARs that several paths have: {}", saved(stats.saved_by_same_nars)),
        format!("saved by equal chunks: {}", saved(stats.saved_by_chunks)),
        format!("saved by holes: {}", saved(stats.saved_by_holes)),
        format!("saved by compression: {}", saved(stats.saved_by_compression)),
    ];
    if !stats.complete {
        lines.push(INCOMPLETE.to_owned());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_lines_for_people() {
        let stats = StatsResponse {
            paths: 3,
            path_bytes: 3 << 20,
            nars: 2,
            packs: 1,
            stored_bytes: 1 << 20,
            saved_by_same_nars: -(1 << 20),
            saved_by_chunks: 0,
            saved_by_holes: 1 << 20,
            saved_by_compression: 2 << 20,
            complete: false,
            history: None,
        };
        let shown = lines(&stats);
        assert_eq!(shown[0], "3 paths in all caches, 3.0 MiB uncompressed");
        assert_eq!(shown[1], "2 NARs, in 1 pack of 1.0 MiB");
        assert_eq!(shown[2], "saved by NARs that several paths have: -1.0 MiB");
        assert_eq!(shown.last().map(String::as_str), Some(INCOMPLETE));
        assert_eq!(lines(&StatsResponse { complete: true, ..stats.clone() }).len(), shown.len() - 1);
        insta::assert_snapshot!(crate::chart::lines(&bars(&stats), 60).join("\n"), @r"
        stored                    1.0 MiB  ████████████▌
        saved by compression      2.0 MiB  █████████████████████████
        saved by holes            1.0 MiB  ████████████▌
        saved by equal chunks         0 B
        saved by same NARs            0 B
        ");
    }

    #[test]
    fn growth_is_a_column_for_each_day() {
        let day = |day: u64| HistoryEntry {
            begins_at: 0,
            paths: day,
            nar_bytes: day << 20,
            stored_bytes: None,
            pushes: Some(day % 2),
            pulls: Some(0),
        };
        let days: Vec<HistoryEntry> = (0..8).map(day).collect();
        insta::assert_snapshot!(growth(&days).join("\n"), @r"
        8 days  ▁▂▃▄▅▆▇█  0 B → 7.0 MiB
        pushes  ▁█▁█▁█▁█  4
        pulls   ▁▁▁▁▁▁▁▁  0
        ");
        let hidden: Vec<HistoryEntry> =
            days.iter().map(|day| HistoryEntry { pushes: None, pulls: None, ..*day }).collect();
        assert_eq!(growth(&hidden).len(), 1);
        assert_eq!(growth(&days[..1]), Vec::<String>::new(), "one day is no growth");
    }

    #[test]
    fn paths_are_shown_to_those_who_may_list_them() {
        let object = ObjectEntry {
            store_path: "x-hello".to_owned(),
            nar_size: 1 << 20,
            created_at: 0,
            last_used_at: 940,
        };
        let stats = CacheStatsResponse {
            paths: 1,
            nar_bytes: 1 << 20,
            complete: true,
            largest: Some(vec![object]),
            longest_unused: None,
            history: None,
        };
        assert_eq!(
            cache_lines(&stats, 1_000),
            ["1 path, 1.0 MiB uncompressed", "largest:", "  x-hello  1.0 MiB, used 60 seconds ago"]
        );
        assert_eq!(cache_bars(&stats), [Bar::new("hello", 1 << 20)]);
        assert_eq!(cache_bars(&CacheStatsResponse { largest: None, ..stats }), []);
    }
}
