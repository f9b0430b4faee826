//! Writing a file so that it is there completely or not at all, also after a power failure.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::Path;

/// What unfinished files of an interrupted write are called, before 16 random digits.
pub(crate) const UNFINISHED: &str = ".unfinished-";

/// Replaces a file, or creates it. `write` gets a new file beside it with this mode, which the
/// umask narrows. The new file takes the name only when its bytes are on the disk. A link is
/// replaced.
pub fn replace_file(
    path: &Path,
    mode: u32,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<()> {
    put_in_place(path, mode, write, |unfinished| fs::rename(unfinished, path))
}

/// Creates a file in the same way, unless there is one. Returns whether this call made it: of
/// racing callers, one does.
pub fn create_file(
    path: &Path,
    mode: u32,
    write: impl FnOnce(&mut File) -> io::Result<()>,
) -> io::Result<bool> {
    // A link fails if the name exists. A rename would replace the file.
    put_in_place(path, mode, write, |unfinished| {
        let linked = match fs::hard_link(unfinished, path) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(error),
        };
        // Best effort. A file that stays is one that nobody reads.
        let _ = fs::remove_file(unfinished);
        Ok(linked)
    })
}

/// Writes an unfinished file, and gives it its name by `name`.
fn put_in_place<T>(
    path: &Path,
    mode: u32,
    write: impl FnOnce(&mut File) -> io::Result<()>,
    name: impl FnOnce(&Path) -> io::Result<T>,
) -> io::Result<T> {
    let folder = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let folder = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
    let unfinished = folder.join(format!("{UNFINISHED}{:016x}", rand::random::<u64>()));
    let named = write_new(&unfinished, mode, write).and_then(|()| name(&unfinished));
    if named.is_err() {
        // Best effort, because the first error matters.
        let _ = fs::remove_file(&unfinished);
    }
    let named = named?;
    // The name is on the disk when the folder is.
    sync_folder(folder)?;
    Ok(named)
}

/// Waits until the names in a folder are on the disk.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn write_new(path: &Path, mode: u32, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, mode);
    let mut file = options.open(path)?;
    write(&mut file)?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        replace_file(&path, 0o600, |file| file.write_all(b"one")).unwrap();
        let failed = replace_file(&path, 0o600, |file| {
            file.write_all(b"two")?;
            Err(io::Error::other("the disk is full"))
        });
        assert_eq!(failed.unwrap_err().to_string(), "the disk is full");
        assert_eq!(fs::read(&path).unwrap(), b"one");
        replace_file(&path, 0o600, |file| file.write_all(b"three")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"three");
        assert!(!create_file(&path, 0o600, |file| file.write_all(b"four")).unwrap());
        assert_eq!(fs::read(&path).unwrap(), b"three");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "an unfinished file was left behind");
        assert!(create_file(&folder.path().join("new"), 0o600, |file| file.write_all(b"five")).unwrap());
        assert_eq!(fs::read(folder.path().join("new")).unwrap(), b"five");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2, "an unfinished file was left behind");
    }
}
