//! `nix.conf` and the netrc file before and after a change: shows the change and replaces the whole
//! files.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::nix_files::{Change, MarkedFile, changes, find_nix_setting, host_of};
use crate::secret_file;

/// Begins the names of netrc entries for edges; the host follows. The name of a server never
/// contains a blank.
pub(super) const EDGE_NETRC: &str = "edge ";

/// The files of a user or of the machine, before and after the change.
pub(super) struct NixFiles {
    pub(super) conf_path: PathBuf,
    conf_before: Option<String>,
    pub(super) conf: MarkedFile,
    pub(super) netrc_path: PathBuf,
    /// Whether Nix reads `netrc_path` without a setting.
    netrc_is_default: bool,
    netrc_before: Option<String>,
    pub(super) netrc: Option<MarkedFile>,
}

impl NixFiles {
    pub(super) fn read(context: &Context, system: bool) -> Result<Self> {
        let environment = &context.environment;
        let system_folder = environment.path("NIX_CONF_DIR").unwrap_or(Path::new("/etc/nix")).to_owned();
        let folder = if system {
            system_folder.clone()
        } else {
            let home = || environment.path("HOME").map(|home| home.join(".config"));
            let base =
                environment.path("XDG_CONFIG_HOME").filter(|path| path.is_absolute()).map(Path::to_owned);
            let hint = "set HOME, or use --system";
            base.or_else(home)
                .ok_or_else(|| Error::usage("no folder for nix.conf: HOME is not set", hint))?
                .join("nix")
        };
        // The first of them has precedence.
        let listed = environment.text("NIX_USER_CONF_FILES")?.filter(|_| !system);
        let listed = listed.and_then(|files| files.split(':').find(|file| !file.is_empty()));
        let conf_path = listed.map_or_else(|| folder.join("nix.conf"), PathBuf::from);
        let conf_before = read_if_there(&conf_path)?;
        let conf = MarkedFile::new(conf_before.clone().unwrap_or_default());
        let netrc_default = system_folder.join("netrc");
        let netrc_path = match find_nix_setting(&conf, "netrc-file") {
            Some(path) => PathBuf::from(path),
            None => folder.join("netrc"),
        };
        let netrc_is_default = netrc_path == netrc_default || find_nix_setting(&conf, "netrc-file").is_some();
        Ok(Self {
            conf_path,
            conf_before,
            conf,
            netrc_path,
            netrc_is_default,
            netrc_before: None,
            netrc: None,
        })
    }

    pub(super) fn netrc_line(&self) -> Option<String> {
        (!self.netrc_is_default).then(|| format!("netrc-file = {}", self.netrc_path.display()))
    }

    pub(super) fn load_netrc(&mut self) -> Result<()> {
        self.netrc_before = read_if_there(&self.netrc_path)?;
        self.netrc = Some(MarkedFile::new(self.netrc_before.clone().unwrap_or_default()));
        Ok(())
    }

    /// Removes edges from the netrc file that nix.conf no longer names.
    pub(super) fn forget_edges(&mut self) -> Result<()> {
        if self.netrc.is_none() {
            self.load_netrc()?;
        }
        let blocks = self.conf.names();
        let used: Vec<&str> = blocks
            .iter()
            .flat_map(|name| self.conf.lines_of(name))
            .filter_map(|line| line.strip_prefix("extra-substituters = "))
            .map(host_of)
            .collect();
        let Some(netrc) = &mut self.netrc else { return Ok(()) };
        let names: Vec<String> = netrc.names().into_iter().map(str::to_owned).collect();
        for name in names {
            if name.strip_prefix(EDGE_NETRC).is_some_and(|host| !used.contains(&host)) {
                netrc.remove(&name);
            }
        }
        Ok(())
    }

    /// Shows the change and writes it. The netrc file comes first: Nix must know the token before
    /// it uses the cache.
    pub(super) fn finish(&self, context: &Context, dry_run: bool) -> Result<bool> {
        let netrc = self.netrc.as_ref().map(|netrc| (&self.netrc_path, &self.netrc_before, netrc, 0o600));
        let conf = Some((&self.conf_path, &self.conf_before, &self.conf, 0o644));
        let mut changed = false;
        for (path, before, after, mode) in [netrc, conf].into_iter().flatten() {
            let before = before.as_deref().unwrap_or_default();
            if before == after.text() {
                continue;
            }
            changed = true;
            show(context, path, before, after.text())?;
            if !dry_run {
                refuse_managed(path, before, after.text())?;
                refuse_readable(path, before, after.text())?;
                write_whole(path, after.text(), mode).map_err(Error::io("write", path))?;
            }
        }
        Ok(changed)
    }
}

fn read_if_there(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Io { attempt: format!("read {}", path.display()), source }),
    }
}

fn show(context: &Context, path: &Path, before: &str, after: &str) -> Result<()> {
    let changes = changes(before, after);
    let printer = &context.printer;
    if printer.json {
        let lines = |wanted: fn(&Change<'_>) -> bool| -> Vec<String> {
            changes
                .iter()
                .filter(|change| wanted(change))
                .map(|change| without_password(line_of(change)))
                .collect()
        };
        return printer.message(&json!({
            "message_type": "file_change", "path": path.display().to_string(),
            "removed": lines(|change| matches!(change, Change::Removed(_))),
            "added": lines(|change| matches!(change, Change::Added(_))),
        }));
    }
    printer.data(&format!("{}:", path.display()))?;
    for change in &changes {
        let sign = if matches!(change, Change::Removed(_)) { '-' } else { '+' };
        printer.data(&format!("{sign} {}", without_password(line_of(change))))?;
    }
    Ok(())
}

fn line_of<'a>(change: &Change<'a>) -> &'a str {
    match change {
        Change::Removed(line) | Change::Added(line) => line,
    }
}

/// A line of a netrc file without its password, fit to be shown.
fn without_password(line: &str) -> String {
    match line.split_once(" password ") {
        Some((before, _)) if line.starts_with("machine ") => format!("{before} password [redacted]"),
        _ => line.to_owned(),
    }
}

/// NixOS and home-manager link these files into the store, where they are read-only.
fn refuse_managed(path: &Path, before: &str, after: &str) -> Result<()> {
    let Ok(target) = fs::canonicalize(path) else { return Ok(()) };
    if !target.starts_with("/nix/store") {
        return Ok(());
    }
    let lines = changes(before, after)
        .into_iter()
        .filter_map(|change| match change {
            Change::Added(line) if !line.starts_with('#') => Some(without_password(line)),
            _ => None,
        })
        .collect();
    Err(Error::ManagedFile { path: path.to_owned(), managed: "NixOS or home-manager", lines })
}

/// A token must not go into a file that every user of this machine can read.
fn refuse_readable(path: &Path, before: &str, after: &str) -> Result<()> {
    let is_token =
        |change: &Change<'_>| matches!(change, Change::Added(line) if line.starts_with("machine "));
    if changes(before, after).iter().any(is_token) && secret_file::is_readable_by_all(path) {
        return Err(Error::usage(
            format!(
                "{} is readable by every user of this machine, and the token would be too",
                path.display()
            ),
            format!("make it private first: chmod o-rwx {}", path.display()),
        ));
    }
    Ok(())
}

/// Replaces a whole file and keeps its mode, or creates it. A link stays a link. An empty result
/// removes the file.
fn write_whole(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    if text.is_empty() && !path.is_symlink() {
        return fs::remove_file(path);
    }
    let path = match fs::canonicalize(path) {
        Ok(target) => target,
        Err(error) if error.kind() == io::ErrorKind::NotFound => path.to_owned(),
        Err(error) => return Err(error),
    };
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(folder)?;
    let temporary = folder.join(format!(".dormer.{:016x}", rand::random::<u64>()));
    let written = write_new(&temporary, text, &path, mode).and_then(|()| fs::rename(&temporary, &path));
    if written.is_err() {
        // Best effort, because the first error matters.
        let _ = fs::remove_file(&temporary);
    }
    written
}

fn write_new(temporary: &Path, text: &str, model: &Path, mode: u32) -> io::Result<()> {
    let mut options = fs::OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    let mut file = options.open(temporary)?;
    if let Ok(metadata) = fs::metadata(model) {
        file.set_permissions(metadata.permissions())?;
    }
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords_are_not_shown() {
        assert_eq!(
            without_password("machine h login dormer password eyJ"),
            "machine h login dormer password [redacted]"
        );
        assert_eq!(without_password("extra-substituters = x"), "extra-substituters = x");
    }

    #[test]
    fn files_are_replaced_whole_keep_their_mode_and_go_when_empty() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nix/nix.conf");
        write_whole(&path, "a\n", 0o600).unwrap();
        write_whole(&path, "b\n", 0o644).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "b\n");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            let link = folder.path().join("link");
            std::os::unix::fs::symlink(&path, &link).unwrap();
            write_whole(&link, "c\n", 0o644).unwrap();
            assert!(link.is_symlink());
            assert_eq!(fs::read_to_string(&path).unwrap(), "c\n");
        }
        write_whole(&path, "", 0o644).unwrap();
        assert!(!path.exists());
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
    }
}
