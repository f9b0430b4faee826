//! First step: the values and their origins, each value checked by itself. [`super::sources`] reads
//! them from all sources.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use dormer_api::RedactedUrl;
use dormer_http_host::ListenAddress;

use super::error::{Error, Result};
use super::keys::{KEYS, Key, KeyEffect, Kind, SIGNING_KEYS};
use super::nearest::nearest;
use super::origin::{Origin, place};
use super::units;

/// A checked value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Value {
    Text(String),
    Size(u64),
    Duration(Duration),
    Integer(i64),
    Bool(bool),
    List(Vec<String>),
}

/// A value and its origin.
#[derive(Debug, Clone)]
pub(crate) struct Setting {
    pub(crate) value: Value,
    pub(crate) origin: Origin,
}

/// The process's environment as a value, so that tests can make one.
#[derive(Debug, Clone, Default)]
pub(crate) struct Environment(BTreeMap<String, std::ffi::OsString>);

impl Environment {
    /// The environment of this process.
    pub(crate) fn of_process() -> Self {
        let all = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value)));
        // The home of a process without HOME is what the system says about its user.
        let home = dormer_client::process_variables("HOME").map(|home| ("HOME".to_owned(), home.into()));
        Self(all.chain(home).collect())
    }

    /// The text of a variable. An empty variable counts as unset, as in most container tools.
    pub(crate) fn text(&self, name: &str) -> Result<Option<&str>> {
        match self.0.get(name) {
            Some(value) => match value.to_str() {
                Some(text) => Ok(Some(text).filter(|text| !text.is_empty())),
                None => Err(Error::NotText { variable: name.to_owned() }),
            },
            None => Ok(None),
        }
    }

    /// The names of all variables.
    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.0.keys()
    }

    /// A variable with a path.
    pub(crate) fn path(&self, name: &str) -> Option<&Path> {
        self.0.get(name).map(Path::new).filter(|path| !path.as_os_str().is_empty())
    }
}

#[cfg(test)]
impl From<&[(&str, &str)]> for Environment {
    fn from(variables: &[(&str, &str)]) -> Self {
        Self(variables.iter().map(|(name, value)| ((*name).to_owned(), value.into())).collect())
    }
}

#[cfg(test)]
impl<const N: usize> From<[(&str, &str); N]> for Environment {
    fn from(variables: [(&str, &str); N]) -> Self {
        Self::from(variables.as_slice())
    }
}

/// All values, by key.
#[derive(Debug, Clone, Default)]
pub(crate) struct Raw {
    settings: BTreeMap<&'static str, Setting>,
    /// Targets under `[[edge]]`, each with its own settings.
    pub(crate) edges: Vec<Raw>,
    /// Notes for the user that do not stop the start; one line each.
    pub(crate) notes: Vec<String>,
}

impl Raw {
    /// Starts with the defaults of these keys.
    pub(super) fn with_defaults(keys: &[Key]) -> Result<Self> {
        let mut raw = Self::default();
        for key in keys {
            if let Some(text) = key.default {
                raw.set_text(key, text, &Origin::Default)?;
            }
        }
        Ok(raw)
    }

    /// Reads a table with keys below `section`.
    pub(super) fn read_section(
        &mut self,
        section: &str,
        table: &toml::Table,
        origin: &Origin,
        keys: &[Key],
    ) -> Result<()> {
        let mut layer = Vec::new();
        read_table(section, table, origin, keys, &mut layer)?;
        self.set_layer(layer)
    }

    /// The setting of a key.
    pub(crate) fn find(&self, key: &Key) -> Option<&Setting> {
        self.settings.get(key.path)
    }

    /// Sets a default that was computed.
    pub(crate) fn set_default(&mut self, key: &Key, value: Value) {
        self.settings.entry(key.path).or_insert(Setting { value, origin: Origin::Default });
    }

    pub(super) fn read_variables(
        &mut self,
        environment: &Environment,
        name: impl Fn(&Key) -> Option<String>,
    ) -> Result<()> {
        let mut layer = Vec::new();
        for key in KEYS {
            let Some(name) = name(key) else { continue };
            if let Some(text) = environment.text(&name)? {
                let origin = Origin::Variable(name);
                layer.push((*key, parse_text(key, text, &origin)?, origin));
            }
        }
        self.set_layer(layer)
    }

    pub(super) fn set_text(&mut self, key: &Key, text: &str, origin: &Origin) -> Result<()> {
        let value = parse_text(key, text, origin)?;
        self.set_layer(vec![(*key, value, origin.clone())])
    }

    /// A layer overrides the layers below it, key by key. The `jwt.signing` keys exclude each
    /// other, so a layer overrides all of them together.
    fn set_layer(&mut self, layer: Vec<(Key, Value, Origin)>) -> Result<()> {
        let signs = |key: &Key| SIGNING_KEYS.iter().any(|signing| signing.path == key.path);
        let mut signing = layer.iter().filter(|(key, ..)| signs(key));
        if let Some((first, ..)) = signing.next() {
            if let Some((second, _, origin)) = signing.next() {
                let (first, second) = (first.path, second.path);
                return Err(Error::SeveralSigningKeys { first, second, origin: origin.clone() });
            }
            for key in &SIGNING_KEYS {
                self.settings.remove(key.path);
            }
        }
        for (key, value, origin) in layer {
            self.settings.insert(key.path, Setting { value, origin });
        }
        Ok(())
    }

    /// Adds one note per reason for Attic's keys that have no effect.
    pub(super) fn note_ignored_keys(&mut self) {
        let mut ignored: Vec<(&'static str, Vec<&'static str>)> = Vec::new();
        for key in KEYS.iter().filter(|key| self.settings.contains_key(key.path)) {
            let KeyEffect::Ignored(why) = key.effect else { continue };
            match ignored.iter_mut().find(|(other, _)| *other == why) {
                Some((_, paths)) => paths.push(key.path),
                None => ignored.push((why, vec![key.path])),
            }
        }
        self.notes
            .extend(ignored.into_iter().map(|(why, paths)| format!("ignored: {} ({why})", paths.join(", "))));
    }
}

fn read_table(
    prefix: &str,
    table: &toml::Table,
    origin: &Origin,
    keys: &[Key],
    layer: &mut Vec<(Key, Value, Origin)>,
) -> Result<()> {
    for (name, value) in table {
        let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
        if let Some(key) = keys.iter().find(|key| key.path == path) {
            layer.push((*key, parse_toml(key, value, origin)?, origin.clone()));
            continue;
        }
        let is_section =
            keys.iter().any(|key| key.path.strip_prefix(&path).is_some_and(|rest| rest.starts_with('.')));
        match value {
            toml::Value::Table(inner) if is_section => read_table(&path, inner, origin, keys, layer)?,
            // The first key of a mistyped section gives the best explanation.
            toml::Value::Table(inner) if !inner.is_empty() => read_table(&path, inner, origin, keys, layer)?,
            _ => {
                let nearest = nearest(&path, keys.iter().map(|key| key.path)).map(str::to_owned);
                return Err(Error::UnknownKey { path, place: place(origin), nearest });
            }
        }
    }
    Ok(())
}

fn parse_toml(key: &Key, value: &toml::Value, origin: &Origin) -> Result<Value> {
    let wrong = |problem: String| Error::Value { key: key.path, origin: origin.clone(), problem };
    match (key.kind, value) {
        (Kind::List, toml::Value::Array(items)) => {
            let texts: Option<Vec<String>> =
                items.iter().map(|item| item.as_str().map(str::to_owned)).collect();
            texts.map(Value::List).ok_or_else(|| wrong("expects a list of texts".to_owned()))
        }
        (Kind::List, _) => Err(wrong("expects a list of texts, such as [\"a\", \"b\"]".to_owned())),
        (Kind::Integer(..) | Kind::Size(..) | Kind::Duration(..), toml::Value::Integer(number)) => {
            parse_text(key, &number.to_string(), origin)
        }
        (Kind::Bool, toml::Value::Boolean(flag)) => Ok(Value::Bool(*flag)),
        (Kind::Integer(..) | Kind::Bool, toml::Value::String(_)) => {
            Err(wrong(format!("expects {}, without quotes", wanted(key.kind))))
        }
        (_, toml::Value::String(text)) => parse_text(key, text, origin),
        (kind, other) => Err(wrong(format!("expects {}, not a {}", wanted(kind), other.type_str()))),
    }
}

fn parse_text(key: &Key, text: &str, origin: &Origin) -> Result<Value> {
    let wrong = |problem: String| Error::Value { key: key.path, origin: origin.clone(), problem };
    // Never shows the value of a secret, however wrong.
    let not = || {
        if key.secret {
            format!("is not {}", wanted(key.kind))
        } else {
            format!("'{}' is not {}", RedactedUrl::new(text), wanted(key.kind))
        }
    };
    let trimmed = text.trim();
    match key.kind {
        Kind::Text => Ok(Value::Text(trimmed.to_owned())),
        Kind::Path if trimmed.is_empty() => Err(wrong(not())),
        Kind::Path => Ok(Value::Text(text.to_owned())),
        Kind::AddressOrOff if trimmed == OFF => Ok(Value::Text(trimmed.to_owned())),
        Kind::Address | Kind::AddressOrOff => match parse_address(trimmed) {
            Some(address) => Ok(Value::Text(address.to_string())),
            None => Err(wrong(not())),
        },
        Kind::HttpUrl => {
            let host = trimmed.strip_prefix("http://").or_else(|| trimmed.strip_prefix("https://"));
            match host {
                Some(rest)
                    if !rest.is_empty() && !rest.starts_with('/') && !rest.contains(char::is_whitespace) =>
                {
                    Ok(Value::Text(trimmed.to_owned()))
                }
                _ => Err(wrong(not())),
            }
        }
        Kind::Size(min, max) => {
            let bytes = units::parse_size(trimmed).ok_or_else(|| wrong(not()))?;
            if !(min..=max).contains(&bytes) {
                let (min, max) = (units::write_size(min), units::write_size(max));
                return Err(wrong(format!("{trimmed} is out of range, {min} to {max}")));
            }
            Ok(Value::Size(bytes))
        }
        Kind::Duration(min, max) => {
            let duration = units::parse_duration(trimmed).ok_or_else(|| wrong(not()))?;
            if duration < Duration::from_secs(min) || duration > Duration::from_secs(max) {
                let [min, max] =
                    [min, max].map(|seconds| units::write_duration(Duration::from_secs(seconds)));
                return Err(wrong(format!("{trimmed} is out of range, {min} to {max}")));
            }
            Ok(Value::Duration(duration))
        }
        Kind::Integer(min, max) => match trimmed.parse() {
            Ok(number) if (min..=max).contains(&number) => Ok(Value::Integer(number)),
            Ok(number) => Err(wrong(format!("{number} is out of range, {min} to {max}"))),
            Err(_) => Err(wrong(not())),
        },
        Kind::Bool => match trimmed {
            "true" | "1" => Ok(Value::Bool(true)),
            "false" | "0" => Ok(Value::Bool(false)),
            _ => Err(wrong(not())),
        },
        Kind::Choice(choices) => {
            if choices.contains(&trimmed) {
                Ok(Value::Text(trimmed.to_owned()))
            } else {
                Err(wrong(not()))
            }
        }
        Kind::List => Ok(Value::List(
            trimmed.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect(),
        )),
    }
}

/// The value for "no address".
const OFF: &str = "off";

fn parse_address(text: &str) -> Option<ListenAddress> {
    let numeric = text.strip_prefix("localhost:").map(|port| format!("127.0.0.1:{port}"));
    numeric.as_deref().unwrap_or(text).parse().ok()
}

/// What a kind expects, for messages and for the reference.
pub(crate) fn wanted(kind: Kind) -> String {
    match kind {
        Kind::Text => "a text".to_owned(),
        Kind::Address => {
            "an address such as \"127.0.0.1:8080\", \"[::]:8080\" or \"unix:/run/dormer/socket\"".to_owned()
        }
        Kind::AddressOrOff => "an address such as \"127.0.0.1:9464\", or \"off\"".to_owned(),
        Kind::HttpUrl => "an address such as \"https://cache.example.org/\"".to_owned(),
        Kind::Path => "a path".to_owned(),
        Kind::Size(..) => "a size such as \"64 MiB\"".to_owned(),
        Kind::Duration(..) => "a time such as \"30s\" or \"3 months\"".to_owned(),
        Kind::Integer(..) => "a number".to_owned(),
        Kind::Bool => "true or false".to_owned(),
        Kind::Choice(choices) => {
            choices.iter().map(|choice| format!("\"{choice}\"")).collect::<Vec<_>>().join(" or ")
        }
        Kind::List => "a list of texts".to_owned(),
    }
}
