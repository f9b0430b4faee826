//! Files that are replaced whole, where a link stays a link.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// Most symbolic links followed for one file. Linux follows 40.
const LINKS_MAX: usize = 40;

/// The file that writing `path` would change: the end of a chain of links, whether it exists or
/// not. A settings file may be a link into a folder of dotfiles that is made later.
pub fn link_target(path: &Path) -> io::Result<PathBuf> {
    let mut path = path.to_owned();
    for _ in 0..=LINKS_MAX {
        match fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_symlink() => {
                let target = fs::read_link(&path)?;
                path = path.parent().unwrap_or(Path::new("")).join(target);
            }
            Ok(_) => return Ok(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(path),
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::other("too many symbolic links"))
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_lead_to_files_that_may_not_exist() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        fs::write(path("file"), "").unwrap();
        symlink("file", path("one")).unwrap();
        symlink("one", path("two")).unwrap();
        symlink("later/dotfile", path("dangling")).unwrap();
        symlink("loop", path("loop")).unwrap();
        for (from, to) in [
            ("file", "file"),
            ("one", "file"),
            ("two", "file"),
            ("dangling", "later/dotfile"),
            ("nothing", "nothing"),
            ("later/dotfile", "later/dotfile"),
        ] {
            assert_eq!(link_target(&path(from)).unwrap(), path(to), "{from}");
        }
        assert!(link_target(&path("loop")).is_err());
    }
}
