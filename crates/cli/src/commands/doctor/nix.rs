//! Checks this machine's Nix: the program, its files, and whether its daemon obeys them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use dormer_client::{NETRC_LINE_BYTES_MAX, NixConfig, netrc_hidden_hosts, nix_program, process_variables};

use super::finding::Finding;
use crate::commands::nix_settings::NixFiles;
use crate::commands::use_cache::{has_daemon, is_root};
use crate::context::Context;
use crate::error::{Error, Result};
use crate::nix_version::parse_version;
use crate::secret_file;

const NIX: &str = "nix";
const NETRC: &str = "netrc";

/// The oldest version of Nix that Dormer is tested with.
const OLDEST: (u32, u32) = (2, 8);

/// Asks `nix` for its version and settings, and keeps them for the next checks.
pub(super) async fn check(context: &Context, config: &mut Option<NixConfig>) -> Vec<Finding> {
    let read = match NixConfig::read(nix_program(&process_variables)).await {
        Ok(read) => read,
        Err(error) => return vec![Finding::error(NIX, &Error::from(error))],
    };
    let version = read.version().to_owned();
    let finding = match parse_version(&version) {
        Some(number) if number < OLDEST => Finding::warn(
            NIX,
            format!("{version} is older than {}.{}, the oldest tested version", OLDEST.0, OLDEST.1),
            ["upgrade it"],
        ),
        _ => Finding::ok(NIX, format!("{version}{}", if has_daemon() { ", with a daemon" } else { "" })),
    };
    let mut findings = vec![finding];
    if let Some(user) = ignored_user(&read)
        && NixFiles::read(context, false, Some(&read)).is_ok_and(|files| !files.conf.names().is_empty())
    {
        findings.push(Finding::fail(
            NIX,
            format!(
                "the daemon ignores the caches in this user's nix.conf: {user} is not among trusted-users"
            ),
            ["set them up for the whole machine, as root: dormer use CACHE --system"],
        ));
    }
    *config = Some(read);
    findings
}

/// This user's name, if there is a daemon that ignores this user's settings.
fn ignored_user(config: &NixConfig) -> Option<String> {
    if !has_daemon() || is_root() {
        return None;
    }
    let words = |option: &str| -> Vec<String> {
        let output = Command::new("id").arg(option).output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        text.unwrap_or_default().split_whitespace().map(str::to_owned).collect()
    };
    let user = words("-un").pop()?;
    (!is_trusted(&config.list("trusted-users"), &user, &words("-Gn"))).then_some(user)
}

fn is_trusted(trusted: &[&str], user: &str, groups: &[String]) -> bool {
    trusted.iter().any(|entry| match entry.strip_prefix('@') {
        Some(group) => groups.iter().any(|own| own == group),
        None => *entry == "*" || *entry == user,
    })
}

/// The files that `dormer use` writes: those of the user, if there is a home, and those of the
/// machine.
pub(super) struct ClientFiles {
    pub(super) all: Vec<NixFiles>,
}

impl ClientFiles {
    pub(super) fn read(context: &Context, config: Option<&NixConfig>) -> Result<Self> {
        let user = NixFiles::read(context, false, config).ok();
        let system = NixFiles::read(context, true, None)?;
        // With NIX_USER_CONF_FILES, both may be the same file.
        let user = user.filter(|user| user.conf_path != system.conf_path);
        Ok(Self { all: user.into_iter().chain([system]).collect() })
    }

    /// The netrc file of Nix, according to Nix, else according to its files.
    pub(super) fn netrc_path(&self, config: Option<&NixConfig>) -> PathBuf {
        match config.and_then(|config| config.text("netrc-file")) {
            Some(path) if !path.is_empty() => PathBuf::from(path),
            _ => self.all[0].netrc_path.clone(),
        }
    }

    /// Checks which users can read the tokens in the netrc file.
    pub(super) fn check_netrc(&self, config: Option<&NixConfig>) -> Vec<Finding> {
        let path = self.netrc_path(config);
        let is_wanted = self.all.iter().any(|files| {
            let lines = files.conf.names().into_iter().flat_map(|name| files.conf.lines_of(name));
            lines.into_iter().any(|line| line.starts_with("netrc-file = "))
        });
        let name = path.display();
        match fs::File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && !is_wanted => {
                vec![Finding::ok(NETRC, "there is no netrc file; public caches need none")]
            }
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && has_daemon() => {
                vec![Finding::ok(NETRC, format!("{name} is for the daemon alone"))]
            }
            Err(error) => vec![Finding::fail(
                NETRC,
                format!("{name} cannot be read: {error}"),
                ["run `dormer use` again for each private cache, as the user that fetches"],
            )],
            Ok(_) => {
                let mut findings = vec![self.describe_netrc(&path, config)];
                findings.extend(unread_entries(&path));
                findings
            }
        }
    }

    fn describe_netrc(&self, path: &Path, config: Option<&NixConfig>) -> Finding {
        let name = path.display();
        if secret_file::is_readable_by_all(path) {
            return Finding::fail(
                NETRC,
                format!("{name}: every user of this machine can read the tokens in it"),
                ["chmod o-rwx it"],
            );
        }
        let system = &self.all[self.all.len() - 1].netrc_path;
        if path != system && config.and_then(ignored_user).is_some() {
            return Finding::fail(
                NETRC,
                format!("the daemon reads {}, not {name}", system.display()),
                ["set up private caches for the whole machine, as root: dormer use CACHE --system"],
            );
        }
        Finding::ok(
            NETRC,
            format!(
                "{name} can be read by this user{}, and by {}",
                if has_daemon() { " and the daemon" } else { "" },
                if secret_file::is_readable_by_others(path) { "its group only" } else { "nobody else" }
            ),
        )
    }
}

/// Entries of the netrc file that curl, and so Nix, does not read.
fn unread_entries(path: &Path) -> Vec<Finding> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let name = path.display();
    let mut findings = Vec::new();
    let hidden = netrc_hidden_hosts(&text);
    if !hidden.is_empty() {
        findings.push(Finding::warn(
            NETRC,
            format!(
                "{name}: the entry `default` fits every host and hides those behind it: {}",
                hidden.join(", ")
            ),
            ["move `default` to the end"],
        ));
    }
    let long = text.lines().filter(|line| line.len() > NETRC_LINE_BYTES_MAX).count();
    if long > 0 {
        findings.push(Finding::warn(
            NETRC,
            format!("{name}: some versions of Nix drop the lines over {NETRC_LINE_BYTES_MAX} bytes; there are {long}"),
            ["ask for tokens with fewer patterns"],
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_trusted_by_name_by_group_or_all() {
        let groups = ["users".to_owned(), "wheel".to_owned()];
        assert!(is_trusted(&["root", "ada"], "ada", &groups));
        assert!(is_trusted(&["root", "@wheel"], "ada", &groups));
        assert!(is_trusted(&["*"], "ada", &groups));
        assert!(!is_trusted(&["root", "@admin", "wheel"], "ada", &groups));
    }
}
