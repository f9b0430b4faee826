//! docs/SETTINGS.md, generated from the table of keys. A test compares it with the file.

use std::fmt::Write as _;

use super::keys::{EDGE_KEYS, KEYS, Key, KeyEffect, Kind};
use super::{raw, units};

const INTRODUCTION: &str = include_str!("reference_introduction.md");

/// The whole page.
pub(crate) fn to_markdown() -> String {
    let mut page = INTRODUCTION.to_owned();
    let mut section = None;
    for key in KEYS {
        let (table, _) = key.section_and_name();
        if section != Some(table) {
            section = Some(table);
            let title = if table.is_empty() { "Top level".to_owned() } else { format!("`[{table}]`") };
            let _ = writeln!(page, "\n## {title}\n");
        }
        write_key(&mut page, key, &key.variable());
    }
    page.push_str(EDGE_INTRODUCTION);
    for key in EDGE_KEYS {
        let rest = key.path.trim_start_matches("edge.").replace(['.', '-'], "_").to_ascii_uppercase();
        write_key(&mut page, key, &format!("DORMER_EDGE_<NAME>_{rest}"));
    }
    page
}

const EDGE_INTRODUCTION: &str = "
## `[[edge]]`

The targets of `dormer publish` ([EDGE.md](EDGE.md)). There may be any number of targets, each in its
own table. Only the file names targets. Variables can set the keys of a target too, with the target's
name in capitals in the middle.

";

fn write_key(page: &mut String, key: &Key, variable: &str) {
    let _ = write!(page, "- **`{}`** — {}", key.path, key.docs);
    match key.effect {
        KeyEffect::Used => {}
        KeyEffect::Ignored(why) => {
            let _ = write!(page, " *Accepted and ignored: {why}.*");
        }
    }
    let mut facts = vec![format!("`{variable}`")];
    facts.extend(key.flag.map(|flag| format!("`{flag}`")));
    facts.extend(key.attic_variable.map(|name| format!("`{name}`")));
    facts.push(match key.kind {
        Kind::Size(0, u64::MAX) => raw::wanted(key.kind),
        Kind::Size(min, max) => {
            format!("{}, {} to {}", raw::wanted(key.kind), units::write_size(min), units::write_size(max))
        }
        Kind::Duration(min, max) => {
            let [min, max] =
                [min, max].map(|seconds| units::write_duration(std::time::Duration::from_secs(seconds)));
            format!("{}, {min} to {max}", raw::wanted(key.kind))
        }
        Kind::Integer(min, max) => format!("a number, {min} to {max}"),
        kind => raw::wanted(kind),
    });
    match key.default {
        Some("") => facts.push("default: none".to_owned()),
        Some(text) => facts.push(format!("default: `{text}`")),
        None if key.default_note.is_empty() => {}
        None => facts.push(format!("default: {}", key.default_note)),
    }
    if key.secret {
        facts.push("secret".to_owned());
    }
    if key.attic {
        facts.push("Attic's too".to_owned());
    }
    let _ = writeln!(page, "\n  <br>{}", facts.join(" · "));
}
