//! Where the files of Nix's store are, from the setting `store` (or `NIX_REMOTE`).
//!
//! A path of the store has one name, `/nix/store/…`, but its files may be elsewhere: a chroot store
//! `local?root=R` has them in `R/nix/store`, and a rootless Nix makes such a store in the user's
//! home. The rules are those of Nix.

use std::path::{Path, PathBuf};

use dormer_nix::StoreDir;

use crate::error::{Error, Result};
use crate::settings::Variables;

/// The store's two folders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoreLocation {
    /// The folder in the names of paths.
    pub(crate) store_dir: StoreDir,
    /// The folder with the files.
    pub(crate) real_dir: PathBuf,
}

/// The stores whose files this machine has. Other stores, such as `ssh://host`, have them elsewhere.
const LOCAL_SCHEMES: &[&str] = &["local", "unix", "local-overlay", "mounted-ssh-ng"];

impl StoreLocation {
    /// The store without any setting.
    pub(crate) fn plain(store_dir: StoreDir) -> Self {
        Self { real_dir: store_dir.as_str().into(), store_dir }
    }

    /// Reads the setting `store`. `exists` tells whether a path exists.
    pub(crate) fn of_setting(
        setting: &str,
        store_dir: StoreDir,
        variables: Variables<'_>,
        exists: &dyn Fn(&Path) -> bool,
    ) -> Result<Self> {
        let (base, query) = setting.trim().split_once('?').unwrap_or((setting.trim(), ""));
        let parameter = |name: &str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find(|(key, _)| *key == name).map(|(_, value)| decode(value))
        };
        let elsewhere = || Error::StoreElsewhere { store: setting.to_owned() };
        let store_dir = match parameter("store") {
            Some(text) => {
                text.parse().map_err(|source| Error::NotAStorePath { path: PathBuf::from(text), source })?
            }
            None => store_dir,
        };
        let implied_root = match base.split_once("://") {
            Some((scheme, rest)) if LOCAL_SCHEMES.contains(&scheme) => {
                Some(rest).filter(|rest| scheme == "local" && !rest.is_empty()).map(PathBuf::from)
            }
            None if matches!(base, "" | "auto") && query.is_empty() => automatic_root(variables, exists),
            None if matches!(base, "" | "auto" | "local" | "daemon" | "unix") => None,
            // A folder in place of a URI.
            None if base.contains('/') => Some(std::path::absolute(base).map_err(|_| elsewhere())?),
            Some(_) | None => return Err(elsewhere()),
        };
        let root = parameter("root").filter(|root| !root.is_empty()).map(PathBuf::from).or(implied_root);
        let real_dir = match (parameter("real"), root) {
            (Some(real), _) => PathBuf::from(real),
            (None, Some(root)) => root.join("nix/store"),
            (None, None) => PathBuf::from(store_dir.as_str()),
        };
        Ok(Self { store_dir, real_dir })
    }
}

/// The chroot store of a user on a machine without `/nix` and without a daemon.
fn automatic_root(variables: Variables<'_>, exists: &dyn Fn(&Path) -> bool) -> Option<PathBuf> {
    let machine_has_nix = ["/nix/var/nix", "/nix/var/nix/daemon-socket/socket"];
    if machine_has_nix.iter().any(|path| exists(Path::new(path)))
        || ["NIX_STORE_DIR", "NIX_STATE_DIR"].iter().any(|name| variables(name).is_some())
    {
        return None;
    }
    let data = variables("XDG_DATA_HOME").map(PathBuf::from);
    let data = data.or_else(|| variables("HOME").map(|home| Path::new(&home).join(".local/share")))?;
    Some(data.join("nix/root")).filter(|root| exists(root))
}

/// Decodes `%2F` and the like. Text that is not encoded stays as it is.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let encoded = tail.get(..2).filter(|_| *first == b'%').and_then(|digits| {
            let digits = std::str::from_utf8(digits).ok().filter(|digits| !digits.starts_with('+'))?;
            u8::from_str_radix(digits, 16).ok()
        });
        bytes.push(encoded.unwrap_or(*first));
        rest = if encoded.is_some() { &tail[2..] } else { tail };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn located(setting: &str, variables: Variables<'_>, existing: &[&str]) -> Result<(String, String)> {
        let exists = |path: &Path| existing.iter().any(|one| Path::new(one) == path);
        StoreLocation::of_setting(setting, StoreDir::default(), variables, &exists)
            .map(|found| (found.store_dir.to_string(), found.real_dir.display().to_string()))
    }

    /// Every form of the setting that Nix knows, and where the files are.
    #[test]
    fn the_files_are_where_nix_keeps_them() {
        for (setting, store_dir, real_dir) in [
            ("", "/nix/store", "/nix/store"),
            ("auto", "/nix/store", "/nix/store"),
            ("local", "/nix/store", "/nix/store"),
            ("daemon", "/nix/store", "/nix/store"),
            ("unix:///run/socket", "/nix/store", "/nix/store"),
            ("local?root=/r", "/nix/store", "/r/nix/store"),
            ("auto?root=/r", "/nix/store", "/r/nix/store"),
            ("local?root=", "/nix/store", "/nix/store"),
            ("local://?root=/r", "/nix/store", "/r/nix/store"),
            ("local:///r", "/nix/store", "/r/nix/store"),
            ("/r", "/nix/store", "/r/nix/store"),
            (" /r/ ", "/nix/store", "/r/nix/store"),
            ("/r?store=/s", "/s", "/r/nix/store"),
            ("local?root=/r&real=/x/y", "/nix/store", "/x/y"),
            ("local?real=/x", "/nix/store", "/x"),
            ("local?store=/s", "/s", "/s"),
            ("local?state=/v&root=/a%20b%2Bc+d", "/nix/store", "/a b+c+d/nix/store"),
            ("unix:///run/socket?root=/r", "/nix/store", "/r/nix/store"),
            ("local-overlay://?root=/r&lower-store=/l", "/nix/store", "/r/nix/store"),
            ("mounted-ssh-ng://host", "/nix/store", "/nix/store"),
        ] {
            let found = located(setting, &|_| None, &[]).unwrap();
            assert_eq!(found, (store_dir.to_owned(), real_dir.to_owned()), "{setting}");
        }
        for setting in [
            "ssh://host",
            "ssh-ng://host?root=/r",
            "https://cache",
            "s3://bucket",
            "dummy://",
            "file:///c",
            "nonsense",
        ] {
            assert!(
                matches!(located(setting, &|_| None, &[]), Err(Error::StoreElsewhere { .. })),
                "{setting}"
            );
        }
    }

    #[test]
    fn a_rootless_nix_has_its_store_in_the_home() {
        let home = |name: &str| (name == "HOME").then(|| "/h".to_owned());
        let data = |name: &str| (name == "XDG_DATA_HOME").then(|| "/d".to_owned());
        let own = |name: &str| matches!(name, "HOME" | "NIX_STORE_DIR").then(|| "/h".to_owned());
        let root = "/h/.local/share/nix/root";
        let real = |setting: &str, variables: Variables<'_>, existing: &[&str]| {
            located(setting, variables, existing).unwrap().1
        };
        assert_eq!(real("auto", &home, &[root]), "/h/.local/share/nix/root/nix/store");
        assert_eq!(real("auto", &data, &["/d/nix/root"]), "/d/nix/root/nix/store");
        // Anything that makes Nix use the store of the machine.
        assert_eq!(real("auto", &home, &[root, "/nix/var/nix"]), "/nix/store");
        assert_eq!(real("auto", &home, &[root, "/nix/var/nix/daemon-socket/socket"]), "/nix/store");
        assert_eq!(real("auto", &own, &[root]), "/nix/store");
        assert_eq!(real("local", &home, &[root]), "/nix/store");
        assert_eq!(real("auto", &home, &[]), "/nix/store");
    }

    proptest::proptest! {
        #[test]
        fn any_setting_is_read_or_refused(setting in "[a-z/:?=&%2F+~]{0,30}") {
            let _ = located(&setting, &|_| None, &[]);
        }
    }
}
