//! `dormer cache ls` and `dormer cache show`: what is in a cache.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use dormer_api::v2::{ListObjectsRequest, ObjectResponse, SortObjects, name_fits};
use dormer_client::{CacheRef, NixStore, PageGuard};
use dormer_engine::{Clock as _, SystemClock};
use serde_json::json;

use crate::chart::Bar;
use crate::commands::path_argument::hash_of;
use crate::commands::token_create::parse_period;
use crate::context::{Context, EXIT_CODES_OF_CLIENT};
use crate::error::Result;
use crate::settings::units::{self, ago};

/// List what is in a cache
///
/// Needs the permission to configure the cache's retention, or to delete.
///
/// Examples:
///   dormer cache ls main --sort size
///   dormer cache ls main --name 'linux-*' --unused-for 30d
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, after_long_help = EXIT_CODES_OF_CLIENT)]
pub(super) struct LsArgs {
    /// [SERVER:]CACHE
    cache: CacheRef,
    /// Only paths whose name fits; `*` stands for any text
    #[arg(long, value_name = "PATTERN")]
    name: Option<String>,
    /// Only paths that nobody has used for so long: `30d`
    #[arg(long, value_name = "PERIOD", value_parser = parse_period)]
    unused_for: Option<Duration>,
    /// The largest, the oldest or the longest unused first
    #[arg(long, value_name = "ORDER", value_enum, default_value = "used")]
    sort: LsSort,
}

/// Show what a cache has of a path, and how large its closure is there
///
/// Examples:
///   dormer cache show main ./result
///   dormer cache show main 3n58xw4373jp0ljirf06d8077j15pc4j --referrers
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, after_long_help = EXIT_CODES_OF_CLIENT)]
pub(super) struct ShowArgs {
    /// [SERVER:]CACHE
    cache: CacheRef,
    /// A store path, a link to one, or its hash
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// Also list what refers to it; needs the permission to configure the cache's retention, or to
    /// delete
    #[arg(long)]
    referrers: bool,
}

/// An order of paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum LsSort {
    Size,
    Age,
    Used,
}

pub(super) async fn ls(args: &LsArgs, context: &Context) -> Result<()> {
    let (server, api) = context.connect_to_cache(&args.cache)?;
    let (now, printer) = (SystemClock.now(), &context.printer);
    let unused_before = args.unused_for.map(|period| now.saturating_sub_unsigned(period.as_secs()));
    let sort = match args.sort {
        LsSort::Size => SortObjects::Size,
        LsSort::Age => SortObjects::Age,
        LsSort::Used => SortObjects::Used,
    };
    let mut request = ListObjectsRequest { sort, after: None };
    let mut pages = PageGuard::new(format!("listing cache {}", args.cache.cache));
    let mut sizes = SizeClasses::default();
    'pages: loop {
        let page = api.list_objects(&args.cache.cache, &request).await?;
        for object in &page.objects {
            if unused_before.is_some_and(|before| object.last_used_at > before) {
                if args.sort == LsSort::Used {
                    break 'pages;
                }
                continue;
            }
            let name = object.store_path.split_once('-').map_or("", |(_, name)| name);
            if args.name.as_ref().is_some_and(|pattern| !name_fits(pattern, name)) {
                continue;
            }
            printer.message(&json!({
                "message_type": "object", "server": server.name.as_str(), "cache": args.cache.cache.as_str(),
                "path": object.store_path, "nar_size": object.nar_size, "created_at": object.created_at,
                "last_used_at": object.last_used_at,
            }))?;
            sizes.add(object.nar_size);
            if !printer.json {
                let size = units::human_size(object.nar_size);
                let used = ago(now, object.last_used_at);
                printer.data(&format!("{size:>10}  used {used:<16}  {}", object.store_path))?;
            }
        }
        match page.next {
            Some(next) => {
                pages.follow(&next)?;
                request.after = Some(next);
            }
            None => break,
        }
    }
    printer.chart(&sizes.bars())
}

/// What was listed, by size: where the bytes of a cache are.
#[derive(Debug, Default)]
struct SizeClasses {
    /// Paths and bytes of each class.
    classes: [(u64, u64); Self::NAMES.len()],
}

impl SizeClasses {
    const NAMES: [&str; 5] = ["up to 1 MiB", "up to 10 MiB", "up to 100 MiB", "up to 1 GiB", "over 1 GiB"];

    fn add(&mut self, bytes: u64) {
        let limits = [1 << 20, 10 << 20, 100 << 20, 1 << 30];
        let class = limits.iter().position(|limit| bytes <= *limit).unwrap_or(limits.len());
        let (paths, sum) = &mut self.classes[class];
        *paths += 1;
        *sum = sum.saturating_add(bytes);
    }

    fn bars(&self) -> Vec<Bar> {
        let rows = Self::NAMES.iter().zip(&self.classes);
        rows.map(|(name, (paths, bytes))| {
            Bar::new(format!("{} {name}", units::counted(*paths, "path", "paths")), *bytes)
        })
        .collect()
    }
}

pub(super) async fn show(args: &ShowArgs, context: &Context) -> Result<()> {
    let store = NixStore::open_for_names(&dormer_client::process_variables).await?;
    let hash = hash_of(&store, &args.path)?;
    let (server, api) = context.connect_to_cache(&args.cache)?;
    let (cache, printer) = (&args.cache.cache, &context.printer);
    let object = api.get_object(cache, &hash).await?;
    if printer.json {
        let mut message = serde_json::to_value(&object).expect("an object has text keys only");
        message["message_type"] = "object_details".into();
        message["server"] = server.name.as_str().into();
        message["cache"] = cache.as_str().into();
        printer.message(&message)?;
    } else {
        for (label, value) in lines_of(&object) {
            printer.data(format!("{label:<14} {value}").trim_end())?;
        }
    }
    if !args.referrers {
        return printer.chart(&object_bars(&object));
    }
    let mut pages = PageGuard::new(format!("listing what refers to {hash}"));
    let mut after = None;
    loop {
        let page = api.list_referrers(cache, &hash, after.as_ref()).await?;
        for path in &page.referrers {
            printer.message(&json!({
                "message_type": "referrer", "server": server.name.as_str(), "cache": cache.as_str(), "path": path,
            }))?;
            if !printer.json {
                printer.data(&format!("{:<14} {path}", "referrer"))?;
            }
        }
        let Some(next) = page.next else { return printer.chart(&object_bars(&object)) };
        pages.follow(next)?;
        after = Some(next);
    }
}

/// What a client fetches and unpacks for the path, and for all that it drags along.
fn object_bars(object: &ObjectResponse) -> Vec<Bar> {
    let download = object.file_size.map(|bytes| Bar::new("download", bytes));
    let sizes = [Bar::new("NAR", object.nar_size), Bar::new("NARs of the closure", object.closure.nar_size)];
    download.into_iter().chain(sizes).collect()
}

fn lines_of(object: &ObjectResponse) -> Vec<(&str, String)> {
    let size = units::human_size;
    let mut lines = vec![("path", object.store_path.clone())];
    lines.push(("NAR", format!("{}, {}", size(object.nar_size), object.nar_hash)));
    let download = object.file_size.map_or_else(String::new, |bytes| format!("{}, ", size(bytes)));
    lines.push(("download", format!("{download}{}", object.url)));
    let closure = &object.closure;
    let more = if closure.complete { "" } else { "more than " };
    let lacking = match closure.missing {
        0 => String::new(),
        count => format!("; {count} not in this cache"),
    };
    let paths = crate::error::paths(usize::try_from(closure.paths).unwrap_or(usize::MAX));
    lines.push(("closure", format!("{more}{paths}, {}{lacking}", size(closure.nar_size))));
    lines.extend(object.deriver.clone().map(|deriver| ("deriver", deriver)));
    lines.extend(object.system.clone().map(|system| ("system", system)));
    lines.extend(object.ca.clone().map(|ca| ("CA", ca)));
    lines.extend(object.references.iter().map(|reference| ("reference", reference.clone())));
    lines.extend(object.signatures.iter().map(|signature| ("signature", signature.clone())));
    lines.extend(object.extra.iter().map(|(name, value)| (name.as_str(), value.clone())));
    lines
}

#[cfg(test)]
mod tests {
    use dormer_api::v2::{ClosureEntry, ObjectResponse};

    use super::{SizeClasses, name_fits, object_bars};
    use crate::chart::lines;

    #[test]
    fn a_list_ends_with_its_bytes_by_size_and_a_path_with_its_closure() {
        let mut sizes = SizeClasses::default();
        for bytes in [1, 1 << 20, (1 << 20) + 1, 80 << 20, 3 << 30, 1 << 30] {
            sizes.add(bytes);
        }
        insta::assert_snapshot!(lines(&sizes.bars(), 60).join("\n"), @r"
        2 paths up to 1 MiB      1.0 MiB  ▏
        1 path up to 10 MiB      1.0 MiB  ▏
        1 path up to 100 MiB    80.0 MiB  ▊
        1 path up to 1 GiB       1.0 GiB  ████████▊
        1 path over 1 GiB        3.0 GiB  ██████████████████████████
        ");
        let object = ObjectResponse {
            store_path: "x-hello".to_owned(),
            url: "nar/x".to_owned(),
            compression: "zstd".to_owned(),
            file_size: Some(1 << 20),
            nar_hash: "sha256:x".to_owned(),
            nar_size: 3 << 20,
            references: Vec::new(),
            deriver: None,
            system: None,
            ca: None,
            signatures: Vec::new(),
            extra: std::collections::BTreeMap::new(),
            closure: ClosureEntry { paths: 4, nar_size: 12 << 20, missing: 0, complete: true },
            referrers: None,
            next_referrers: None,
        };
        insta::assert_snapshot!(lines(&object_bars(&object), 60).join("\n"), @r"
        download                1.0 MiB  ██▎
        NAR                     3.0 MiB  ██████▊
        NARs of the closure    12.0 MiB  ███████████████████████████
        ");
    }

    #[test]
    fn a_star_stands_for_any_text() {
        for (pattern, name, is_fit) in [
            ("hello", "hello", true),
            ("hello", "hello-2", false),
            ("hello*", "hello-2", true),
            ("*", "", true),
            ("*-2", "hello-2", true),
            ("h*l*o", "hello", true),
            ("h*lo*o", "hello", false),
            ("*ab", "ab-ab", true),
            ("a*a", "a", false),
        ] {
            assert_eq!(name_fits(pattern, name), is_fit, "{pattern} and {name}");
        }
    }
}
