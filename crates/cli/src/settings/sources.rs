//! Reads the settings from all sources, weakest first: defaults, Attic's variables, the file,
//! Dormer's variables, flags.
//!
//! Attic's variables come below the file, because `atticd` reads them only if its file has no
//! value.

use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::edge;
use super::error::{Error, Result};
use super::keys::{ATTIC_CONFIG_VARIABLE, CONFIG_VARIABLE, KEYS, Key, VARIABLE_PREFIX};
use super::nearest::nearest;
use super::origin::{Origin, place};
use super::raw::{Environment, Raw};

/// Variables with our prefix that something else sets or reads.
const OTHER_VARIABLES: &[&str] = &[
    // Kubernetes sets these in every container when a Service is named `dormer`.
    "DORMER_SERVICE_",
    "DORMER_PORT",
    // Variables of the client.
    "DORMER_TOKEN",
    "DORMER_SERVER",
    "DORMER_ENDPOINT",
    "DORMER_CLIENT_",
];

/// Settings from the command line.
#[derive(Debug, Clone, Default)]
pub(crate) struct Flags {
    pub(crate) config: Option<PathBuf>,
    pub(crate) values: Vec<(Key, String)>,
}

/// Reads all layers.
pub(crate) fn read_all(environment: &Environment, flags: &Flags) -> Result<Raw> {
    let mut raw = Raw::with_defaults(KEYS)?;
    raw.read_variables(environment, |key| key.attic_variable.map(str::to_owned))?;
    let file = flags.config.as_deref().or_else(|| environment.path(CONFIG_VARIABLE));
    if let Some(path) = file {
        let text = std::fs::read_to_string(path)
            .map_err(|source| Error::ReadFile { path: path.to_owned(), source })?;
        read_toml(&mut raw, &text, &Origin::File(path.to_owned()), environment)?;
    } else if let Some(encoded) = environment.text(ATTIC_CONFIG_VARIABLE)? {
        let origin = Origin::Variable(ATTIC_CONFIG_VARIABLE.to_owned());
        let bytes = STANDARD
            .decode(encoded.trim())
            .map_err(|source| Error::NotBase64 { variable: ATTIC_CONFIG_VARIABLE, source })?;
        let text = String::from_utf8(bytes)
            .map_err(|_| Error::NotText { variable: ATTIC_CONFIG_VARIABLE.to_owned() })?;
        read_toml(&mut raw, &text, &origin, environment)?;
    }
    raw.read_variables(environment, |key| Some(key.variable()))?;
    note_unknown_variables(&mut raw, environment);
    for (key, text) in &flags.values {
        let flag = key.flag.expect("only keys with a flag come from flags");
        raw.set_text(key, text, &Origin::Flag(flag))?;
    }
    raw.note_ignored_keys();
    Ok(raw)
}

fn read_toml(raw: &mut Raw, text: &str, origin: &Origin, environment: &Environment) -> Result<()> {
    let mut table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        let start = error.span().map_or(0, |span| span.start.min(text.len()));
        Error::Syntax {
            place: place(origin),
            line: text.get(..start).unwrap_or_default().matches('\n').count() + 1,
            message: error.message().to_owned(),
        }
    })?;
    if let Some(targets) = table.remove("edge") {
        raw.edges = edge::read_targets(&targets, origin, environment)?;
    }
    raw.read_section("", &table, origin, KEYS)
}

/// Only a note, because anybody may set a variable with our prefix.
fn note_unknown_variables(raw: &mut Raw, environment: &Environment) {
    let ours = KEYS.iter().map(Key::variable).chain([CONFIG_VARIABLE.to_owned()]);
    let known: Vec<String> = ours.chain(edge::variables(&raw.edges)).collect();
    for name in environment.names().filter(|name| name.starts_with(VARIABLE_PREFIX)) {
        if known.contains(name) || OTHER_VARIABLES.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        let hint = nearest(name, known.iter().map(String::as_str))
            .map_or(String::new(), |nearest| format!(", did you mean {nearest}?"));
        raw.notes.push(format!("unknown variable {name}{hint}"));
    }
}
