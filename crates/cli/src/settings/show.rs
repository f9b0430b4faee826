//! `dormer config show`: the current settings, as a TOML file with the origin of each value, or as
//! JSON.

use std::fmt::Write as _;

use dormer_api::RedactedUrl;

use super::keys::{EDGE_KEYS, KEYS, Key, KeyEffect, Kind};
use super::raw::{Raw, Value};
use super::units;

const REDACTED: &str = "[redacted]";

/// Settings as TOML. Keys without a value are comments, so that the output is a template too.
pub(crate) fn to_toml(raw: &Raw) -> String {
    let mut lines: Vec<(String, String)> = Vec::new();
    let mut section = "";
    for key in KEYS {
        let (table, name) = key.section_and_name();
        let setting = raw.find(key);
        // Shows a key without effect only if the user set it.
        if setting.is_none() && key.effect != KeyEffect::Used {
            continue;
        }
        if table != section {
            section = table;
            lines.push((String::new(), String::new()));
            lines.push((format!("[{table}]"), String::new()));
        }
        match setting {
            Some(setting) => {
                let mut origin = setting.origin.to_string();
                if let KeyEffect::Ignored(why) = key.effect {
                    let _ = write!(origin, "; ignored: {why}");
                }
                lines.push((format!("{name} = {}", literal(key, &setting.value)), origin));
            }
            None => lines.push((format!("# {name} is not set"), String::new())),
        }
    }
    for target in &raw.edges {
        lines.push((String::new(), String::new()));
        lines.push(("[[edge]]".to_owned(), String::new()));
        for key in EDGE_KEYS {
            let name = key.path.trim_start_matches("edge.");
            if let Some(setting) = target.find(key) {
                lines
                    .push((format!("{name} = {}", literal(key, &setting.value)), setting.origin.to_string()));
            }
        }
    }
    let width =
        lines.iter().filter(|(_, origin)| !origin.is_empty()).map(|(line, _)| line.chars().count()).max();
    // One long path must not push every comment to the right edge.
    let width = width.unwrap_or(0).min(56);
    let mut out = String::new();
    for (line, origin) in lines {
        let _ = if origin.is_empty() {
            writeln!(out, "{line}")
        } else {
            writeln!(out, "{line:<width$}  # {origin}")
        };
    }
    out
}

/// One JSON object: each key with its value and origin.
pub(crate) fn to_json(raw: &Raw) -> serde_json::Value {
    let mut all = to_json_of(raw, KEYS);
    if let (Some(all), false) = (all.as_object_mut(), raw.edges.is_empty()) {
        let targets: Vec<serde_json::Value> =
            raw.edges.iter().map(|target| to_json_of(target, EDGE_KEYS)).collect();
        all.insert("edge".to_owned(), targets.into());
    }
    all
}

fn to_json_of(raw: &Raw, keys: &[Key]) -> serde_json::Value {
    let entries = keys.iter().filter_map(|key| {
        let setting = raw.find(key)?;
        let value: serde_json::Value = match redacted(key, &setting.value) {
            Value::Text(text) => text.into(),
            Value::Size(bytes) => bytes.into(),
            Value::Duration(duration) => duration.as_secs_f64().into(),
            Value::Integer(number) => number.into(),
            Value::Bool(flag) => flag.into(),
            Value::List(items) => items.into(),
        };
        let ignored = matches!(key.effect, KeyEffect::Ignored(_));
        let entry =
            serde_json::json!({ "value": value, "origin": setting.origin.to_string(), "ignored": ignored });
        Some((key.path.to_owned(), entry))
    });
    serde_json::Value::Object(entries.collect())
}

fn redacted(key: &Key, value: &Value) -> Value {
    match value {
        Value::Text(_) if key.secret => Value::Text(REDACTED.to_owned()),
        // A path may have any sign in it, and is no address.
        Value::Text(text) if key.kind != Kind::Path => Value::Text(RedactedUrl::new(text).to_string()),
        Value::List(items) => {
            Value::List(items.iter().map(|item| RedactedUrl::new(item).to_string()).collect())
        }
        other => other.clone(),
    }
}

/// A value as TOML; the reference uses this form too.
pub(crate) fn literal(key: &Key, value: &Value) -> String {
    let quoted = |text: &str| toml::Value::String(text.to_owned()).to_string();
    match redacted(key, value) {
        Value::Text(text) => quoted(&text),
        Value::Size(bytes) => quoted(&units::write_size(bytes)),
        Value::Duration(duration) => quoted(&units::write_duration(duration)),
        Value::Integer(number) => number.to_string(),
        Value::Bool(flag) => flag.to_string(),
        Value::List(items) => {
            format!("[{}]", items.iter().map(|item| quoted(item)).collect::<Vec<_>>().join(", "))
        }
    }
}
