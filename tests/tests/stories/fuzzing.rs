//! Every parser of foreign bytes has a fuzz target, or a reason why it needs none; and every target
//! has a corpus and runs in the tests.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use dormer_tests::workspace_root;

/// Fewest inputs of a corpus.
const CORPUS_MIN: usize = 5;

/// Crates that read bytes of others.
const CRATES: [&str; 13] = [
    "api",
    "blobs",
    "cli",
    "client",
    "edge",
    "edge-host",
    "format",
    "http-host",
    "nix",
    "pages",
    "publish",
    "server",
    "stores",
];

/// The rest: they read rows of the database and what those have read, or are for tests.
const OTHER_CRATES: [&str; 3] = ["engine", "index", "testkit"];

const OF_USER: &str = "its user's own argument, setting or file";
const OF_OPERATOR: &str = "from the operator's own store, compared as a whole";
const IN_TARGET: &str = "a part of what another target reads";
const NUMBERS: &str = "one or two numbers, which the standard library reads";
const WORD: &str = "compares whole words";
const HEADERS: &str = "hands a header on to a parser that has a target";
const SPLITS: &str = "splits a header at fixed signs and bounds the length of what it copies";
const HANDS_ON: &str = "takes a name, and hands bytes on unread";

/// Parsers that no target names, and why.
const WITHOUT_TARGET: [(&str, &str, &str); 32] = [
    ("blobs", "BlobKey", OF_OPERATOR),
    ("blobs", "InstallationId", OF_OPERATOR),
    ("cli", "Raw", OF_USER),
    ("cli", "StaticPlace", OF_USER),
    ("cli", "parse_duration", OF_USER),
    ("cli", "parse_period", OF_USER),
    ("cli", "parse_time", OF_USER),
    ("cli", "parse_version", NUMBERS),
    ("cli", "read_id", OF_OPERATOR),
    ("client", "ByteSize", OF_USER),
    ("client", "CacheRef", OF_USER),
    ("client", "NamePattern", OF_USER),
    ("client", "ServerName", OF_USER),
    ("client", "parse_size", OF_USER),
    ("client", "retry_after", HEADERS),
    ("edge", "Query", IN_TARGET),
    ("edge-host", "Source", HANDS_ON),
    ("edge-host", "joined", HEADERS),
    ("format", "decode_fills", IN_TARGET),
    ("http-host", "ListenAddress", OF_USER),
    ("http-host", "Probe", WORD),
    ("nix", "TraceKey", IN_TARGET),
    ("server", "RequestBody", HEADERS),
    ("server", "RequestId", WORD),
    ("server", "adopt", HEADERS),
    ("server", "has_it_already", HEADERS),
    ("server", "header_token", HEADERS),
    ("server", "read_cookie", SPLITS),
    ("server", "read_place", NUMBERS),
    ("server", "read_text", HANDS_ON),
    ("server", "wanted", HEADERS),
    ("server", "wants_new_place", HEADERS),
];

fn files_below(folder: &Path, files: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files_below(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            files.push((name, fs::read_to_string(&path).unwrap()));
        }
    }
}

fn sources(folder: &str) -> Vec<(String, String)> {
    let mut files = Vec::new();
    let folder = workspace_root().join(folder);
    if folder.is_dir() {
        files_below(&folder, &mut files);
    }
    files
}

fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

/// The first word behind `before`.
fn word_behind<'a>(line: &'a str, before: &str) -> Option<&'a str> {
    words(line.split_once(before)?.1).next()
}

/// The type of an `impl` block, and whether the block implements `FromStr`.
fn impl_of(line: &str) -> Option<(&str, bool)> {
    let rest = line.strip_prefix("impl")?;
    let rest = if rest.starts_with('<') { rest.split_once("> ")?.1 } else { rest };
    let of = rest.split_once(" for ").map_or(rest, |(_, of)| of);
    Some((words(of).next()?, rest.contains("FromStr for ")))
}

/// Whether a line declares a function of the crate or of its users that reads a text or bytes.
fn is_parser(declaration: &str) -> bool {
    let name = word_behind(declaration, "fn ").unwrap_or_default();
    let is_named = ["parse", "decode", "read_", "from_str", "from_nix32", "from_hex", "of_address"]
        .iter()
        .any(|start| name.starts_with(start))
        || matches!(name, "read" | "feed");
    let is_shared = declaration.trim_start().starts_with("pub");
    let arguments = declaration.split("->").next().unwrap_or_default();
    // Headers are foreign, whatever the function is called and wherever it is used.
    if arguments.contains("&HeaderMap") {
        return true;
    }
    let takes = arguments.split('&').skip(1).any(|of| {
        let of = if of.starts_with('\'') { of.split_once(' ').map_or(of, |(_, of)| of) } else { of };
        ["str", "[u8", "mut &'a [u8]"].iter().any(|kind| of.starts_with(kind))
    });
    is_named && is_shared && takes
}

/// The types and functions of a crate that read a text or bytes.
fn parsers(name: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (file, text) in sources(&format!("crates/{name}/src")) {
        if file == "fuzz_targets.rs" || file.ends_with("tests.rs") {
            continue;
        }
        let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let mut of = None;
        let mut lines = text.lines();
        while let Some(line) = lines.next() {
            if let Some((named, is_from_str)) = impl_of(line) {
                of = Some(named);
                if is_from_str {
                    found.insert(named.to_owned());
                }
            } else if line == "}" {
                of = None;
            } else if line.contains("fn ") {
                let mut declaration = line.to_owned();
                while !declaration.contains(['{', ';']) {
                    declaration.push_str(lines.next().unwrap_or("{"));
                }
                if is_parser(&declaration) {
                    let function = word_behind(&declaration, "fn ").unwrap();
                    found.insert(of.unwrap_or(function).to_owned());
                }
            }
        }
    }
    found
}

#[test]
fn every_parser_of_foreign_bytes_has_a_fuzz_target() {
    let known: BTreeSet<&str> = CRATES.into_iter().chain(OTHER_CRATES).collect();
    let folders = fs::read_dir(workspace_root().join("crates")).unwrap();
    let folders: Vec<String> =
        folders.map(|folder| folder.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(
        folders.iter().map(String::as_str).collect::<BTreeSet<_>>(),
        known,
        "a new crate is in neither"
    );
    let targets: Vec<String> = CRATES
        .iter()
        .flat_map(|name| sources(&format!("crates/{name}/src")))
        .filter(|(file, _)| file == "fuzz_targets.rs")
        .map(|(_, text)| text)
        .collect();
    let named: BTreeSet<&str> = targets.iter().flat_map(|text| words(text)).collect();
    let mut excused: BTreeSet<(&str, &str)> =
        WITHOUT_TARGET.iter().map(|(of, parser, _)| (*of, *parser)).collect();
    let mut seen = 0;
    for name in CRATES {
        for parser in parsers(name) {
            seen += 1;
            let count = excused.len();
            excused.retain(|excused| *excused != (name, &*parser));
            assert!(
                named.contains(&*parser) || excused.len() < count,
                "{parser} in crates/{name} reads foreign bytes, and no fuzz target names it (fuzz/README.md)"
            );
        }
    }
    assert!(seen >= 60, "only {seen} parsers were found");
    assert!(excused.is_empty(), "no longer parsers: {excused:?}");
}

#[test]
fn every_fuzz_target_has_a_corpus_and_runs_in_the_tests() {
    let root = workspace_root();
    let manifest: toml::Table = fs::read_to_string(root.join("fuzz/Cargo.toml")).unwrap().parse().unwrap();
    let bins = manifest["bin"].as_array().unwrap();
    let bins: BTreeSet<&str> = bins.iter().map(|bin| bin["name"].as_str().unwrap()).collect();
    let corpora: BTreeMap<String, usize> = fs::read_dir(root.join("fuzz/corpus"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            (path.file_name().unwrap().to_str().unwrap().to_owned(), path.read_dir().unwrap().count())
        })
        .collect();
    let mut functions: BTreeSet<String> = CRATES
        .iter()
        .flat_map(|name| sources(&format!("crates/{name}/src")))
        .filter(|(file, _)| file == "fuzz_targets.rs")
        .flat_map(|(_, text)| {
            let declared = text.lines().filter(|line| line.starts_with("pub fn fuzz_"));
            declared.map(|line| word_behind(line, "fn ").unwrap().to_owned()).collect::<Vec<_>>()
        })
        .collect();
    let tests: String = CRATES
        .iter()
        .flat_map(|name| sources(&format!("crates/{name}/tests")))
        .map(|(_, text)| text)
        .collect();
    let targets = sources("fuzz/fuzz_targets");
    assert_eq!(targets.len(), bins.len(), "a target is one [[bin]]");
    for (file, text) in &targets {
        let name = file.trim_end_matches(".rs");
        assert!(bins.contains(name), "no [[bin]] {name}");
        let inputs = corpora.get(name).copied().unwrap_or_default();
        assert!(inputs >= CORPUS_MIN, "the corpus of {name} has {inputs} inputs");
        let function = word_behind(text, "fuzz_targets::").unwrap();
        assert!(functions.remove(function), "{name}: no function {function} of its own");
        // The tests of some crates leave out the crate's name.
        let short = name.split_once('_').map_or(name, |(_, short)| short);
        let runs = |statement: &str| {
            statement.contains(&format!("::{function})"))
                && [name, short].iter().any(|name| statement.contains(&format!("(\"{name}\"")))
        };
        assert!(tests.split(';').any(runs), "no test runs {function} over the corpus {name}");
    }
    assert!(functions.is_empty(), "no target runs {functions:?}");
    assert_eq!(corpora.len(), bins.len(), "a corpus is for a target");
}
