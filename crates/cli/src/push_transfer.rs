//! How pushes transfer: the flags, and which arguments are caches.

use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::{Args, ValueEnum};
use dormer_client::{CacheRef, PushApi, RateLimit, TransferOptions, process_variables, session_folder};

use crate::error::{Error, Result};
use crate::settings::units::parse_size;

/// The smallest part that is worth a request.
const PART_BYTES_MIN: u64 = 1024 * 1024;

/// How a push transfers.
#[derive(Debug, Args)]
pub(crate) struct TransferArgs {
    /// Send only the chunks that the cache lacks (v2), or every NAR whole (attic) [default: v2 if
    /// the server has it]
    #[arg(long, value_name = "API")]
    api: Option<Api>,
    /// Send at most so many bytes a second, such as 20M
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    limit_rate: Option<NonZeroU64>,
    /// zstd level for chunks [default: the server's own]
    #[arg(long, value_name = "LEVEL", value_parser = clap::value_parser!(i32).range(1..=19))]
    compression_level: Option<i32>,
    /// Threads that read, and as many that compress [default: one for each processor, at most 4]
    #[arg(long, value_name = "NUMBER", value_parser = clap::value_parser!(u16).range(1..=256))]
    threads: Option<u16>,
    /// Most bytes of one request with chunks, for proxies that limit them [default: the server's
    /// limit, 8 MiB]
    #[arg(long, value_name = "SIZE", value_parser = parse_part_size)]
    part_size: Option<u64>,
}

/// An API of the server.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Api {
    Attic,
    V2,
}

impl TransferArgs {
    /// The limit that all connections of the push share.
    pub(crate) fn rate_limit(&self) -> Option<Arc<RateLimit>> {
        self.limit_rate.map(|rate| Arc::new(RateLimit::new(rate)))
    }

    pub(crate) fn options(&self) -> TransferOptions {
        let default = TransferOptions::default();
        TransferOptions {
            api: match self.api {
                None => PushApi::Best,
                Some(Api::Attic) => PushApi::Attic,
                Some(Api::V2) => PushApi::Chunks,
            },
            compression_level: self.compression_level,
            threads: self.threads.map_or(default.threads, usize::from),
            part_bytes_max: self.part_size,
            session_folder: session_folder(&process_variables),
        }
    }
}

/// Reads `20M`, `512K`, `1G` (multiples of 1,024), or a size as the settings have it.
fn parse_bytes(text: &str) -> Option<u64> {
    let with_unit = |unit| parse_size(&format!("{} {unit}", &text[..text.len() - 1]));
    match text.bytes().last()? {
        b'K' | b'k' => with_unit("KiB"),
        b'M' | b'm' => with_unit("MiB"),
        b'G' | b'g' => with_unit("GiB"),
        _ => parse_size(text),
    }
}

fn parse_rate(text: &str) -> Result<NonZeroU64, String> {
    parse_bytes(text)
        .and_then(NonZeroU64::new)
        .ok_or_else(|| "expected bytes a second, such as 20M or 512K".to_owned())
}

fn parse_part_size(text: &str) -> Result<u64, String> {
    let bytes = parse_bytes(text).ok_or_else(|| "expected a size, such as 4M".to_owned())?;
    if bytes >= PART_BYTES_MIN { Ok(bytes) } else { Err("expected at least 1M".to_owned()) }
}

/// Splits the arguments after the first cache into further caches and paths. An argument with a `/`
/// is a path, and so is one that begins with a `.` or names a file here. Nothing behind the first
/// path is a cache.
pub(crate) fn split_targets(first: CacheRef, arguments: Vec<PathBuf>) -> (Vec<CacheRef>, Vec<PathBuf>) {
    split_with(first, arguments, |path| path.symlink_metadata().is_ok())
}

fn split_with(
    first: CacheRef,
    arguments: Vec<PathBuf>,
    exists: impl Fn(&Path) -> bool,
) -> (Vec<CacheRef>, Vec<PathBuf>) {
    let mut caches = vec![first];
    let mut arguments = arguments.into_iter().peekable();
    while let Some(argument) = arguments.peek() {
        let text = argument.to_str().filter(|text| !text.contains('/') && !text.starts_with('.'));
        let Some(cache) = text.and_then(|text| text.parse::<CacheRef>().ok()) else { break };
        if exists(argument) {
            break;
        }
        if !caches.contains(&cache) {
            caches.push(cache);
        }
        arguments.next();
    }
    (caches, arguments.collect())
}

/// The error of a push without a path: most likely a path was taken for a cache.
pub(crate) fn no_path(caches: &[CacheRef]) -> Error {
    let hint = caches.get(1).map(|cache| {
        format!(
            "{cache} is taken for a cache, because no file here has this name; write ./{cache} for a path"
        )
    });
    Error::Usage { problem: "there is no path to push".to_owned(), hint }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_and_sizes_are_read_as_people_write_them() {
        let rate = |text| parse_rate(text).ok().map(NonZeroU64::get);
        assert_eq!(rate("20M"), Some(20 << 20));
        assert_eq!(
            (rate("512K"), rate("1g"), rate("3 MB")),
            (Some(512 << 10), Some(1 << 30), Some(3_000_000))
        );
        assert_eq!(rate("1500"), Some(1500));
        for text in ["", "0", "M", "-1M", "fast", "1.5M", "é"] {
            assert_eq!(rate(text), None, "{text:?}");
        }
        assert_eq!(parse_part_size("4M"), Ok(4 << 20));
        assert!(parse_part_size("64K").is_err());
    }

    #[test]
    fn caches_come_before_paths() {
        let split = |arguments: &[&str], files: &[&str]| {
            let arguments = arguments.iter().map(PathBuf::from).collect();
            let exists = |path: &Path| files.iter().any(|file| Path::new(file) == path);
            let (caches, paths) = split_with("main".parse().unwrap(), arguments, exists);
            let caches: Vec<String> = caches.iter().map(ToString::to_string).collect();
            let paths: Vec<String> = paths.iter().map(|path| path.display().to_string()).collect();
            (caches.join(" "), paths.join(" "))
        };
        let pair = |caches: &str, paths: &str| (caches.to_owned(), paths.to_owned());
        assert_eq!(split(&["lab2:team", "./result"], &[]), pair("main lab2:team", "./result"));
        assert_eq!(split(&["/nix/store/x"], &[]), pair("main", "/nix/store/x"));
        assert_eq!(split(&["result"], &["result"]), pair("main", "result"));
        assert_eq!(split(&["."], &[]), pair("main", "."));
        assert_eq!(split(&["team", "main", "result", "team"], &["result"]), pair("main team", "result team"));
        assert_eq!(split(&["team"], &[]), pair("main team", ""));
    }
}
