//! What `nix` on this machine says about itself: its version and its settings.

use std::ffi::OsStr;
use std::io;
use std::process::{Output, Stdio};

use serde_json::Value;

use crate::error::{Error, Result};

/// Longest kept end of the error output of `nix`. The last words give the reason.
const STDERR_BYTES_MAX: usize = 4096;

/// The settings of Nix that apply to the current user.
#[derive(Debug, Clone, PartialEq)]
pub struct NixConfig {
    version: String,
    settings: Value,
}

impl NixConfig {
    /// Asks `program`, usually `nix`.
    pub async fn read(program: impl AsRef<OsStr>) -> Result<Self> {
        let program = program.as_ref();
        let version = read_version(program, Whose::User).await?;
        Ok(Self { version, settings: read_settings(program, Whose::User).await? })
    }

    /// Asks `program` for the settings of the machine, without this user's files and variables.
    pub async fn read_of_machine(program: impl AsRef<OsStr>) -> Result<Self> {
        let program = program.as_ref();
        let version = read_version(program, Whose::Machine).await?;
        Ok(Self { version, settings: read_settings(program, Whose::Machine).await? })
    }

    /// Reads what `nix config show --json` printed. The version is empty.
    #[cfg(any(test, feature = "fuzz"))]
    pub(crate) fn parse(output: &[u8]) -> Result<Self> {
        Ok(Self { version: String::new(), settings: parse_settings(output)? })
    }

    /// The names of all settings.
    #[cfg(any(test, feature = "fuzz"))]
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.settings.as_object().into_iter().flat_map(|settings| settings.keys().map(String::as_str))
    }

    /// Asks `program` for its settings only. The version is empty.
    pub(crate) async fn read_settings(program: &OsStr) -> Result<Self> {
        Ok(Self { version: String::new(), settings: read_settings(program, Whose::User).await? })
    }

    /// The version as Nix prints it: `nix (Nix) 2.26.3`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The words of a list setting, such as `substituters`. Empty if there is no such setting.
    pub fn list(&self, name: &str) -> Vec<&str> {
        match self.value(name) {
            Some(Value::Array(items)) => items.iter().filter_map(Value::as_str).collect(),
            Some(Value::String(text)) => text.split_whitespace().collect(),
            _ => Vec::new(),
        }
    }

    /// Whether Nix builds content-addressed derivations: the experimental feature `ca-derivations`.
    pub(crate) fn allows_content_addressed(&self) -> bool {
        // Old versions print places in their list of features. It begins with this one.
        let is_it = |item: &Value| item == "ca-derivations" || item == 0;
        match self.value("experimental-features") {
            Some(Value::Array(items)) => items.iter().any(is_it),
            _ => self.list("experimental-features").contains(&"ca-derivations"),
        }
    }

    /// A text setting, such as `netrc-file`.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.value(name).and_then(Value::as_str)
    }

    /// A setting that is on or off, such as `use-case-hack`.
    pub fn flag(&self, name: &str) -> Option<bool> {
        self.value(name).and_then(Value::as_bool)
    }

    fn value(&self, name: &str) -> Option<&Value> {
        self.settings.get(name)?.get("value")
    }
}

/// Whose settings are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    User,
    Machine,
}

async fn read_version(program: &OsStr, whose: Whose) -> Result<String> {
    let output = checked("nix --version", run(program, whose, &["--version"]).await?)?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// `config show` exists since 2.20. Older versions have `show-config`, which newer ones will drop.
async fn read_settings(program: &OsStr, whose: Whose) -> Result<Value> {
    let mut output = run(program, whose, &["config", "show", "--json"]).await?;
    if !output.status.success() {
        output = run(program, whose, &["show-config", "--json"]).await?;
    }
    let output = checked("nix config show", output)?;
    parse_settings(&output.stdout)
}

fn parse_settings(output: &[u8]) -> Result<Value> {
    serde_json::from_slice(output).map_err(Error::NixConfigJson)
}

async fn run(program: &OsStr, whose: Whose, arguments: &[&str]) -> Result<Output> {
    let mut command = tokio::process::Command::new(program);
    if whose == Whose::Machine {
        // An empty list of files differs from no list.
        command.env("NIX_USER_CONF_FILES", "").env_remove("NIX_CONFIG");
    }
    command.args(["--extra-experimental-features", "nix-command"]).args(arguments);
    command.stdin(Stdio::null()).kill_on_drop(true);
    command.output().await.map_err(|source| {
        let program = program.to_string_lossy().into_owned();
        match source.kind() {
            io::ErrorKind::NotFound => Error::NixMissing { program },
            _ => Error::NixRun { program, source },
        }
    })
}

fn checked(command: &'static str, output: Output) -> Result<Output> {
    if output.status.success() {
        return Ok(output);
    }
    let start = output.stderr.len().saturating_sub(STDERR_BYTES_MAX);
    let stderr = String::from_utf8_lossy(&output.stderr[start..]).trim().to_owned();
    Err(Error::NixFailed { command, status: output.status.to_string(), stderr })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_in_the_form_that_nix_prints() {
        let settings = serde_json::json!({
            "substituters": {"aliases": [], "value": ["https://a", "https://b"]},
            "netrc-file": {"value": "/etc/nix/netrc"},
            "trusted-users": {"value": "root @wheel"},
            "use-case-hack": {"value": true},
        });
        let config = NixConfig { version: "nix (Nix) 2.8.0".to_owned(), settings };
        assert_eq!(config.list("substituters"), ["https://a", "https://b"]);
        assert_eq!(config.list("trusted-users"), ["root", "@wheel"]);
        assert_eq!(config.text("netrc-file"), Some("/etc/nix/netrc"));
        assert!(config.list("nothing").is_empty());
        assert_eq!(config.flag("use-case-hack"), Some(true));
        assert_eq!(config.flag("netrc-file"), None);
    }

    #[test]
    fn every_nix_says_whether_it_builds_content_addressed_derivations() {
        for (value, expected) in [
            (serde_json::json!(["nix-command", "ca-derivations"]), true),
            (serde_json::json!([3, 0]), true),
            (serde_json::json!("nix-command ca-derivations"), true),
            (serde_json::json!(["nix-command"]), false),
            (serde_json::json!([3]), false),
            (serde_json::json!([]), false),
        ] {
            let settings = serde_json::json!({"experimental-features": {"value": value}});
            let config = NixConfig { version: String::new(), settings };
            assert_eq!(config.allows_content_addressed(), expected, "{value}");
        }
    }
}
