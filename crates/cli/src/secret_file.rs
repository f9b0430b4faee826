//! Small secret files: made once, complete, and readable by their owner only.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

use dormer_api::Secret;
use dormer_client::create_file;

use crate::error::{Error, Result};

/// Writes a secret, unless the file exists. Returns the contents of the file, and whether this call
/// made it. A crash leaves either the complete file or none. If two starts race, both get the
/// secret of the winner.
pub(crate) fn create_or_read(path: &Path, make: impl FnOnce() -> String) -> Result<(Secret, bool)> {
    if let Some(text) = read(path)? {
        return Ok((text, false));
    }
    let text = Secret::new(make());
    let failed = |source| Error::Io { attempt: format!("write {}", path.display()), source };
    if create_file(path, 0o600, |file| writeln!(file, "{}", text.expose())).map_err(failed)? {
        return Ok((text, true));
    }
    let theirs = read(path)?.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    Ok((theirs, false))
}

/// Reads the secret in a file, without the white space around it.
pub(crate) fn read(path: &Path) -> Result<Option<Secret>> {
    match fs::read_to_string(path).map(Secret::new) {
        Ok(text) => Ok(Some(Secret::new(text.expose().trim()))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(Error::Io { attempt: format!("read {}", path.display()), source }),
    }
}

/// Whether users other than the owner may read the file.
pub(crate) fn is_readable_by_others(path: &Path) -> bool {
    has_any_mode(path, 0o077)
}

/// Whether the users of a group may read the file: a token goes into such a netrc file, because the
/// user that fetches need not own it, but not silently.
pub(crate) fn is_readable_by_group(path: &Path) -> bool {
    has_any_mode(path, 0o040)
}

/// Whether every user may read the file: then no token goes into a netrc file.
pub(crate) fn is_readable_by_all(path: &Path) -> bool {
    has_any_mode(path, 0o007)
}

fn has_any_mode(path: &Path, bits: u32) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        fs::metadata(path).is_ok_and(|metadata| metadata.permissions().mode() & bits != 0)
    }
    #[cfg(not(unix))]
    {
        let _ = (path, bits);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_made_once_and_is_private() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        assert_eq!(create_or_read(&path, || "one".to_owned()).unwrap(), (Secret::new("one"), true));
        assert_eq!(create_or_read(&path, || "two".to_owned()).unwrap(), (Secret::new("one"), false));
        assert!(!is_readable_by_others(&path));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "a temporary file was left behind");
    }

    #[cfg(unix)]
    #[test]
    fn a_group_is_not_everybody() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("netrc");
        fs::write(&path, "").unwrap();
        for (mode, by_others, by_all) in
            [(0o600, false, false), (0o640, true, false), (0o604, true, true), (0o644, true, true)]
        {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            assert_eq!(
                (is_readable_by_others(&path), is_readable_by_all(&path)),
                (by_others, by_all),
                "{mode:o}"
            );
        }
    }

    #[test]
    fn of_two_racing_starts_both_get_the_same_secret() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        let secrets: Vec<Secret> = std::thread::scope(|scope| {
            let starts: Vec<_> = (0..8)
                .map(|n| {
                    scope.spawn({
                        let path = &path;
                        move || create_or_read(path, || format!("secret {n}")).unwrap().0
                    })
                })
                .collect();
            starts.into_iter().map(|start| start.join().unwrap()).collect()
        });
        assert!(secrets.windows(2).all(|pair| pair[0] == pair[1]), "the starts got different secrets");
    }
}
