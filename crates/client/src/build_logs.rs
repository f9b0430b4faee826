//! The logs that Nix keeps of builds on this machine.
//!
//! Nix writes the log of `<hash>-<name>.drv` to `drvs/<two characters>/<rest>` below its folder of
//! logs, compressed with bzip2 unless the setting `compress-build-log` is off. Very old logs are in
//! `drvs` itself. Where several are left, Nix shows the first of a fixed order, and so does this.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::PathBuf;

use dormer_nix::StorePath;

use crate::settings::Variables;

/// Where Nix keeps logs unless `NIX_LOG_DIR` says otherwise.
const FOLDER_DEFAULT: &str = "/nix/var/log/nix";

/// Longest log that is read, as it lies on disk. A server takes far shorter ones by default.
const LOG_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A log as it lies on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BuildLog {
    /// The bytes.
    pub bytes: Vec<u8>,
    /// How they are compressed, as `Content-Encoding` says it.
    pub encoding: Option<&'static str>,
}

/// The folder of logs.
#[derive(Debug, Clone)]
pub struct BuildLogs {
    folder: PathBuf,
}

impl BuildLogs {
    /// The folder that these variables name.
    pub fn from_variables(variables: Variables<'_>) -> Self {
        let named = variables("NIX_LOG_DIR").filter(|folder| !folder.is_empty());
        Self { folder: named.map_or_else(|| PathBuf::from(FOLDER_DEFAULT), PathBuf::from) }
    }

    /// The log of a derivation's build that `nix log` shows; `None` if this machine keeps none.
    pub fn find(&self, derivation: &StorePath) -> io::Result<Option<BuildLog>> {
        let name = derivation.base_name();
        let (start, rest) = name.split_at(2);
        let drvs = self.folder.join("drvs");
        let places = [(drvs.join(start), rest), (drvs, name)].into_iter().flat_map(|(folder, name)| {
            [(folder.join(name), None), (folder.join(format!("{name}.bz2")), Some("bzip2"))]
        });
        for (path, encoding) in places {
            let file = match File::open(&path) {
                Ok(file) => file,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let mut bytes = Vec::new();
            file.take(LOG_BYTES_MAX + 1).read_to_end(&mut bytes)?;
            if bytes.len() as u64 > LOG_BYTES_MAX {
                return Err(io::Error::new(io::ErrorKind::FileTooLarge, "the log is longer than 64 MiB"));
            }
            return Ok(Some(BuildLog { bytes, encoding }));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_is_found_where_nix_puts_it() {
        let folder = tempfile::tempdir().unwrap();
        let logs = BuildLogs::from_variables(&|name| {
            (name == "NIX_LOG_DIR").then(|| folder.path().to_str().unwrap().to_owned())
        });
        let derivation: StorePath = "1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5-a.drv".parse().unwrap();
        assert_eq!(logs.find(&derivation).unwrap(), None);
        let drvs = folder.path().join("drvs");
        std::fs::create_dir_all(drvs.join("1k")).unwrap();
        // From the last place to the first: each new file is found instead of the one before.
        for (file, encoding) in [
            ("1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5-a.drv.bz2", Some("bzip2")),
            ("1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5-a.drv", None),
            ("1k/8c1hiysz6aaks2mpfc5k7xbbjpw5z5-a.drv.bz2", Some("bzip2")),
            ("1k/8c1hiysz6aaks2mpfc5k7xbbjpw5z5-a.drv", None),
        ] {
            std::fs::write(drvs.join(file), file).unwrap();
            let log = BuildLog { bytes: file.as_bytes().to_vec(), encoding };
            assert_eq!(logs.find(&derivation).unwrap(), Some(log));
        }
    }
}
