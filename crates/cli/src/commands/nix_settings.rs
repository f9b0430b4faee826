//! `nix.conf` and the netrc file before and after a change: shows the change and replaces the whole
//! files.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use dormer_client::{NixConfig, host_of, link_target, replace_file};
use serde_json::json;

use crate::context::Context;
use crate::error::{Error, Result};
use crate::nix_files::{Change, MarkedFile, changes, find_nix_setting, netrc_changes};
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
    /// Whether our lines in nix.conf must name the netrc file.
    netrc_needs_line: bool,
    /// Whether something else names the netrc file, which must then exist even if it is empty.
    netrc_is_set: bool,
    netrc_before: Option<String>,
    pub(super) netrc: Option<MarkedFile>,
}

impl NixFiles {
    /// Reads the files. `config` is what Nix says about itself; without it, the files alone count.
    pub(super) fn read(context: &Context, system: bool, config: Option<&NixConfig>) -> Result<Self> {
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
        let conf_path = match listed {
            Some(path) => PathBuf::from(path),
            None if system => conf_for_additions(&folder)?,
            None => folder.join("nix.conf"),
        };
        let conf_before = read_if_there(&conf_path)?;
        let conf = MarkedFile::new(conf_before.clone().unwrap_or_default());
        let place = netrc_place(&NetrcFacts {
            in_force: config.and_then(|config| config.text("netrc-file")).filter(|path| !path.is_empty()),
            of_conf: find_nix_setting(&conf, "netrc-file"),
            of_ours: conf
                .names()
                .into_iter()
                .flat_map(|name| conf.lines_of(name))
                .find_map(|line| line.strip_prefix("netrc-file = ")),
            of_machine: &system_folder.join("netrc"),
            beside_conf: &folder.join("netrc"),
            exists: &|path| fs::symlink_metadata(path).is_ok(),
        });
        Ok(Self {
            conf_path,
            conf_before,
            conf,
            netrc_path: place.path,
            netrc_needs_line: place.needs_line,
            netrc_is_set: place.is_set,
            netrc_before: None,
            netrc: None,
        })
    }

    pub(super) fn netrc_line(&self) -> Option<String> {
        self.netrc_needs_line.then(|| format!("netrc-file = {}", self.netrc_path.display()))
    }

    /// Whether the netrc file must exist although it is empty: a setting names it.
    fn netrc_must_exist(&self) -> bool {
        let line = format!("netrc-file = {}", self.netrc_path.display());
        self.netrc_is_set || self.conf.text().lines().any(|own| own == line)
    }

    pub(super) fn load_netrc(&mut self) -> Result<()> {
        self.netrc_before = read_if_there(&self.netrc_path).map_err(|error| self.not_ours(error))?;
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

    /// Shows the change and writes it. A netrc file with tokens comes first, because Nix must know
    /// the token before it uses the cache. An emptied one comes last, because some versions require
    /// the file as long as a setting names it.
    pub(super) fn finish(&self, context: &Context, dry_run: bool) -> Result<bool> {
        let (keep, drop) = (true, false);
        let netrc_end = if self.netrc_must_exist() { keep } else { drop };
        let netrc = self.netrc.as_ref();
        let netrc = netrc.map(|netrc| (&self.netrc_path, &self.netrc_before, netrc, 0o600, netrc_end));
        let conf = Some((&self.conf_path, &self.conf_before, &self.conf, 0o644, drop));
        let is_emptied = self.netrc.as_ref().is_some_and(|netrc| netrc.text().is_empty());
        let order = if is_emptied { [conf, netrc] } else { [netrc, conf] };
        let mut changed = false;
        for (path, before, after, mode, keeps_empty) in order.into_iter().flatten() {
            let before = before.as_deref().unwrap_or_default();
            if before == after.text() {
                continue;
            }
            changed = true;
            let shown = if path == &self.netrc_path { netrc_changes } else { changes };
            let shown = shown(before, after.text());
            show(context, path, &shown)?;
            if !dry_run {
                refuse_managed(path, shown)?;
                refuse_readable(context, path, before, after.text())?;
                let written = write_whole(path, after.text(), mode, keeps_empty);
                written
                    .map_err(Error::io("write", path))
                    .map_err(|error| if path == &self.netrc_path { self.not_ours(error) } else { error })?;
            }
        }
        Ok(changed)
    }

    /// The netrc file in force may be root's. Nix reads one netrc file only, so that a file of the
    /// user's own would hide it.
    fn not_ours(&self, error: Error) -> Error {
        match error {
            Error::Io { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                Error::NetrcOfOthers { path: self.netrc_path.clone(), source }
            }
            other => other,
        }
    }
}

/// The file of the machine for lines of ours. Where nix.conf includes `nix.custom.conf`, an
/// installer such as Determinate's replaces nix.conf at every start.
pub(super) fn conf_for_additions(folder: &Path) -> Result<PathBuf> {
    const ADDITIONS: &str = "nix.custom.conf";
    let conf = folder.join("nix.conf");
    let text = read_if_there(&conf)?.unwrap_or_default();
    let includes = text.lines().any(|line| {
        let mut words = line.split_whitespace();
        matches!(words.next(), Some("include" | "!include"))
            && words.next().is_some_and(|file| folder.join(file) == folder.join(ADDITIONS))
    });
    Ok(if includes { folder.join(ADDITIONS) } else { conf })
}

/// What is known about netrc files.
struct NetrcFacts<'a> {
    /// The setting in force, according to Nix.
    in_force: Option<&'a str>,
    /// The setting of nix.conf, outside of our lines.
    of_conf: Option<&'a str>,
    /// The setting in our lines.
    of_ours: Option<&'a str>,
    /// The file that Nix reads without a setting.
    of_machine: &'a Path,
    /// The file that we make.
    beside_conf: &'a Path,
    exists: &'a dyn Fn(&Path) -> bool,
}

/// Where a token goes.
#[derive(Debug, PartialEq, Eq)]
struct NetrcPlace {
    path: PathBuf,
    needs_line: bool,
    is_set: bool,
}

/// Determinate Nix writes this file again from the files that its own settings name.
pub(super) const DETERMINATE_NETRC: &str = "/nix/var/determinate/netrc";

/// The file that Nix reads. A file of our own comes into question only where Nix reads none yet: it
/// would hide the other.
fn netrc_place(facts: &NetrcFacts<'_>) -> NetrcPlace {
    let place = |path: &Path, needs_line, is_set| NetrcPlace { path: path.to_owned(), needs_line, is_set };
    let read = facts.in_force.or(facts.of_conf).or(facts.of_ours).map(Path::new);
    match read {
        Some(path) if path == Path::new(DETERMINATE_NETRC) => place(facts.of_machine, false, true),
        Some(path) if facts.of_ours.map(Path::new) == Some(path) && facts.of_conf.is_none() => {
            place(path, true, false)
        }
        Some(path) if path != facts.of_machine => place(path, false, true),
        Some(path) if facts.of_conf.is_some() || (facts.exists)(path) => {
            place(path, false, facts.of_conf.is_some())
        }
        _ => place(facts.beside_conf, facts.beside_conf != facts.of_machine, false),
    }
}

pub(super) fn read_if_there(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Io { attempt: format!("read {}", path.display()), source }),
    }
}

/// Prints changes that are fit to be shown.
pub(super) fn show(context: &Context, path: &Path, changes: &[Change]) -> Result<()> {
    let printer = &context.printer;
    if printer.json {
        let lines = |wanted: fn(&Change) -> bool| -> Vec<&str> {
            changes.iter().filter(|change| wanted(change)).map(Change::line).collect()
        };
        return printer.message(&json!({
            "message_type": "file_change", "path": path.display().to_string(),
            "removed": lines(|change| matches!(change, Change::Removed(_))),
            "added": lines(|change| matches!(change, Change::Added(_))),
        }));
    }
    printer.data(&format!("{}:", path.display()))?;
    for change in changes {
        let sign = if matches!(change, Change::Removed(_)) { '-' } else { '+' };
        printer.data(&format!("{sign} {}", change.line()))?;
    }
    Ok(())
}

/// NixOS and home-manager link these files into the store, where they are read-only.
pub(super) fn refuse_managed(path: &Path, shown: Vec<Change>) -> Result<()> {
    let Ok(target) = fs::canonicalize(path) else { return Ok(()) };
    if !target.starts_with("/nix/store") {
        return Ok(());
    }
    let lines = shown
        .into_iter()
        .filter_map(|change| match change {
            Change::Added(line) if !line.starts_with('#') => Some(line),
            _ => None,
        })
        .collect();
    Err(Error::ManagedFile { path: path.to_owned(), managed: "NixOS or home-manager", lines })
}

/// A token must not go into a file that every user of this machine can read, and not silently into
/// one that the users of a group can read.
fn refuse_readable(context: &Context, path: &Path, before: &str, after: &str) -> Result<()> {
    let is_token = |change: &Change| matches!(change, Change::Added(line) if line.starts_with("machine "));
    if !changes(before, after).iter().any(is_token) {
        return Ok(());
    }
    if secret_file::is_readable_by_group(path) && !secret_file::is_readable_by_all(path) {
        let path = path.display();
        context
            .printer
            .warn(&format!("the users of the group of {path} can read the token (chmod g-r {path})"));
    }
    if secret_file::is_readable_by_all(path) {
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

/// Replaces a whole file and keeps its mode, owner and group, or creates it. A link stays a link.
/// An empty result removes the file, unless it must exist.
pub(super) fn write_whole(path: &Path, text: &str, mode: u32, keeps_empty: bool) -> io::Result<()> {
    if text.is_empty() && !keeps_empty && !path.is_symlink() {
        return fs::remove_file(path);
    }
    let path = link_target(path)?;
    fs::create_dir_all(path.parent().ok_or(io::ErrorKind::InvalidInput)?)?;
    replace_file(&path, mode, |file| {
        if let Ok(model) = fs::metadata(&path) {
            #[cfg(unix)]
            keep_owner(file, &model)?;
            file.set_permissions(model.permissions())?;
        }
        file.write_all(text.as_bytes())
    })
}

/// Gives `file` the group and the owner of the file that it replaces, as far as this user may: root
/// edits files of others too, and they must stay readable for them.
#[cfg(unix)]
fn keep_owner(file: &fs::File, model: &fs::Metadata) -> io::Result<()> {
    use std::os::unix::fs::{MetadataExt as _, fchown};
    let own = file.metadata()?;
    let group = (own.gid() != model.gid()).then(|| fchown(file, None, Some(model.gid())));
    let owner = (own.uid() != model.uid()).then(|| fchown(file, Some(model.uid()), None));
    // Not permitted, unknown to this user namespace, or not a thing of this file system.
    let is_out_of_reach = |kind| {
        use io::ErrorKind::{InvalidInput, PermissionDenied, Unsupported};
        matches!(kind, InvalidInput | PermissionDenied | Unsupported)
    };
    for changed in [group, owner].into_iter().flatten() {
        if let Err(error) = changed
            && !is_out_of_reach(error.kind())
        {
            return Err(error);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every shape of a machine's settings, and where its token goes.
    #[test]
    fn the_token_goes_where_nix_reads() {
        let (etc, own) = (Path::new("/etc/nix/netrc"), Path::new("/h/.config/nix/netrc"));
        let own_text = own.to_str();
        // In force, of nix.conf, of our lines, whether /etc/nix/netrc exists; the file, our line,
        // whether something else names it.
        for (in_force, of_conf, of_ours, etc_exists, path, needs_line, is_set) in [
            // Nix cannot be asked.
            (None, None, None, false, own, true, false),
            (None, Some("/x"), None, false, Path::new("/x"), false, true),
            (None, None, own_text, true, own, true, false),
            // Nobody has set anything.
            (etc.to_str(), None, None, false, own, true, false),
            (etc.to_str(), None, None, true, etc, false, false),
            // An include, NIX_CONFIG or the machine's nix.conf.
            (Some("/x"), None, None, true, Path::new("/x"), false, true),
            (Some("/x"), None, None, false, Path::new("/x"), false, true),
            (Some("/x"), Some("/y"), None, true, Path::new("/x"), false, true),
            (Some("/x"), None, own_text, true, Path::new("/x"), false, true),
            (etc.to_str(), etc.to_str(), None, false, etc, false, true),
            // Our own lines of earlier: they stay.
            (own_text, None, own_text, false, own, true, false),
            (own_text, None, own_text, true, own, true, false),
            (own_text, own_text, None, false, own, false, true),
            // Determinate Nix.
            (Some(DETERMINATE_NETRC), None, None, false, etc, false, true),
        ] {
            let exists = |path: &Path| path == etc && etc_exists;
            let facts =
                NetrcFacts { in_force, of_conf, of_ours, of_machine: etc, beside_conf: own, exists: &exists };
            let expected = NetrcPlace { path: path.to_owned(), needs_line, is_set };
            assert_eq!(netrc_place(&facts), expected, "{in_force:?} {of_conf:?} {of_ours:?} {etc_exists}");
            // For the whole machine, nothing is hidden and no line is needed.
            let facts = NetrcFacts { beside_conf: etc, of_ours: None, ..facts };
            assert!(!netrc_place(&facts).needs_line);
        }
    }

    #[test]
    fn a_generated_nix_conf_is_left_to_its_generator() {
        for (conf, expected) in [
            ("", "nix.conf"),
            ("max-jobs = 4\n", "nix.conf"),
            ("!include nix.custom.conf\n", "nix.custom.conf"),
            ("a = 1\n  include   nix.custom.conf # ours\n", "nix.custom.conf"),
            ("!include other.conf\n", "nix.conf"),
            ("# !include nix.custom.conf\n", "nix.conf"),
        ] {
            let folder = tempfile::tempdir().unwrap();
            fs::write(folder.path().join("nix.conf"), conf).unwrap();
            assert_eq!(conf_for_additions(folder.path()).unwrap(), folder.path().join(expected), "{conf}");
        }
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(conf_for_additions(folder.path()).unwrap(), folder.path().join("nix.conf"));
    }

    #[cfg(unix)]
    #[test]
    fn a_replaced_file_keeps_its_owner_and_group() {
        use std::os::unix::fs::{MetadataExt as _, chown};
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("netrc");
        fs::write(&path, "a\n").unwrap();
        // Root only: others cannot give files away.
        if chown(&path, Some(1234), Some(5678)).is_ok() {
            write_whole(&path, "b\n", 0o600, false).unwrap();
            let metadata = fs::metadata(&path).unwrap();
            assert_eq!((metadata.uid(), metadata.gid()), (1234, 5678));
            assert_eq!(fs::read_to_string(&path).unwrap(), "b\n");
        }
    }

    #[test]
    fn files_are_replaced_whole_keep_their_mode_and_go_when_empty() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("nix/nix.conf");
        write_whole(&path, "a\n", 0o600, false).unwrap();
        write_whole(&path, "b\n", 0o644, false).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "b\n");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            let link = folder.path().join("link");
            std::os::unix::fs::symlink(&path, &link).unwrap();
            write_whole(&link, "c\n", 0o644, false).unwrap();
            assert!(link.is_symlink());
            assert_eq!(fs::read_to_string(&path).unwrap(), "c\n");
            let dangling = folder.path().join("dangling");
            std::os::unix::fs::symlink("later/nix.conf", &dangling).unwrap();
            write_whole(&dangling, "d\n", 0o644, false).unwrap();
            assert!(dangling.is_symlink());
            assert_eq!(fs::read_to_string(folder.path().join("later/nix.conf")).unwrap(), "d\n");
        }
        write_whole(&path, "", 0o644, true).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "");
        write_whole(&path, "", 0o644, false).unwrap();
        assert!(!path.exists());
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 0);
    }
}
