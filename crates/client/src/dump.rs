//! Turns the file system into NAR bytes, like `nix-store --dump`, but without a process and a pipe
//! for each path.
//!
//! Invariant: an archive that ends without an error describes one tree. A file that changes during
//! reading causes an error.

use std::ffi::OsString;
use std::fs::{self, File, Metadata};
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use dormer_nix::NarHash;
use dormer_nix::nar::{NarWriteError, NarWriter};

/// Bytes in one piece. The overhead of such a large piece (a wake-up, a chunk header) does not
/// matter.
pub(crate) const PIECE_BYTES: usize = 256 * 1024;

/// The suffix that Nix on macOS appends to names that differ from another name only in case.
const CASE_HACK_SUFFIX: &[u8] = b"~nix~case~hack~";

/// Whether the store's file system uses Nix's case hack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaseHack {
    /// Names stay as they are.
    Keep,
    /// Nix added `~nix~case~hack~N` at the end of a name. It is not part of the NAR.
    Strip,
}

impl Default for CaseHack {
    /// The default of Nix on this system.
    fn default() -> Self {
        if cfg!(target_os = "macos") { Self::Strip } else { Self::Keep }
    }
}

/// Why a path could not be turned into its NAR.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DumpError {
    /// The file system failed.
    #[error("reading {}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The path is a device, a socket or a pipe.
    #[error("{} is neither a file, a folder nor a symbolic link", path.display())]
    FileType {
        /// The path.
        path: PathBuf,
    },
    /// Two names are the same without the case hack.
    #[error("{} and another name are the same without the case hack", path.display())]
    CaseHackCollision {
        /// One of the two paths.
        path: PathBuf,
    },
    /// A file changed its size during reading, or a name or a target is impossible.
    #[error("packing {}", path.display())]
    Pack {
        /// The file or folder.
        path: PathBuf,
        /// The reason.
        source: NarWriteError<ReaderGone>,
    },
    /// The contents on the disk differ from the store's database: the path is damaged.
    #[error(
        "the path is damaged: it should have hash {expected} and {expected_size} bytes, but has {actual} and {actual_size}"
    )]
    Damaged {
        /// Hash in the database.
        expected: NarHash,
        /// Size in the database.
        expected_size: u64,
        /// Hash of the contents.
        actual: NarHash,
        /// Size of the contents.
        actual_size: u64,
    },
    /// The receiver of the bytes takes no more of them.
    #[error("the reader went away")]
    ReaderGone,
    /// The reading thread panicked.
    #[error("the thread that reads the store failed")]
    Thread(#[source] tokio::task::JoinError),
}

/// The sink takes no more bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the reader went away")]
pub struct ReaderGone;

/// Writes the NAR of `path` into `sink`, piece by piece, and returns its number of bytes.
pub fn dump_nar(
    path: &Path,
    case_hack: CaseHack,
    sink: impl FnMut(&[u8]) -> Result<(), ReaderGone>,
) -> Result<u64, DumpError> {
    let mut dump = Dump {
        writer: NarWriter::new(sink),
        case_hack,
        path: path.to_owned(),
        buffer: vec![0; PIECE_BYTES].into_boxed_slice(),
    };
    dump.node()?;
    let Dump { writer, path, .. } = dump;
    writer.finish().map_err(|source| packing(&path, source))
}

struct Dump<F> {
    writer: NarWriter<F>,
    case_hack: CaseHack,
    /// The current path. The walk pushes and pops names.
    path: PathBuf,
    buffer: Box<[u8]>,
}

impl<F: FnMut(&[u8]) -> Result<(), ReaderGone>> Dump<F> {
    /// The recursion is bounded: the system refuses paths of more than 4,096 bytes, which are 2,048
    /// folders.
    fn node(&mut self) -> Result<(), DumpError> {
        let metadata = fs::symlink_metadata(&self.path).map_err(|source| self.reading(source))?;
        let file_type = metadata.file_type();
        if file_type.is_dir() {
            self.directory()
        } else if file_type.is_symlink() {
            let target = fs::read_link(&self.path).map_err(|source| self.reading(source))?;
            let written = self.writer.symlink(target.as_os_str().as_encoded_bytes());
            self.pack(written)
        } else if file_type.is_file() {
            self.file()
        } else {
            Err(DumpError::FileType { path: self.path.clone() })
        }
    }

    fn directory(&mut self) -> Result<(), DumpError> {
        let names = self.names()?;
        let written = self.writer.start_directory();
        self.pack(written)?;
        for (entry_name, file_name) in names {
            let written = self.writer.entry(&entry_name);
            self.pack(written)?;
            self.path.push(file_name);
            self.node()?;
            self.path.pop();
        }
        let written = self.writer.end_directory();
        self.pack(written)
    }

    /// Names in the NAR with their names on the disk, in the order of the NAR.
    fn names(&self) -> Result<Vec<(Vec<u8>, OsString)>, DumpError> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(|source| self.reading(source))? {
            let file_name = entry.map_err(|source| self.reading(source))?.file_name();
            names.push((self.entry_name(file_name.as_encoded_bytes()).to_vec(), file_name));
        }
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0].0 == pair[1].0) {
            Some(pair) => Err(DumpError::CaseHackCollision { path: self.path.join(&pair[1].1) }),
            None => Ok(names),
        }
    }

    /// Nix cuts a name at the first occurrence of the suffix, whatever follows.
    fn entry_name<'n>(&self, file_name: &'n [u8]) -> &'n [u8] {
        let hack = match self.case_hack {
            CaseHack::Keep => None,
            CaseHack::Strip => {
                file_name.windows(CASE_HACK_SUFFIX.len()).position(|window| window == CASE_HACK_SUFFIX)
            }
        };
        hack.map_or(file_name, |end| &file_name[..end])
    }

    fn file(&mut self) -> Result<(), DumpError> {
        let mut file = File::open(&self.path).map_err(|source| self.reading(source))?;
        // Asks the open file, because the name may lead elsewhere by now.
        let metadata = file.metadata().map_err(|source| self.reading(source))?;
        let written = self.writer.start_file(metadata.len(), is_executable(&metadata));
        self.pack(written)?;
        // Reads to the end of the file instead of to the announced size. The writer notices if the
        // file grew or shrank.
        loop {
            match file.read(&mut self.buffer) {
                Ok(0) => break,
                Ok(read) => {
                    let written = self.writer.contents(&self.buffer[..read]);
                    self.pack(written)?;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(self.reading(source)),
            }
        }
        let written = self.writer.end_file();
        self.pack(written)
    }

    fn reading(&self, source: io::Error) -> DumpError {
        DumpError::Read { path: self.path.clone(), source }
    }

    fn pack(&self, written: Result<(), NarWriteError<ReaderGone>>) -> Result<(), DumpError> {
        written.map_err(|source| packing(&self.path, source))
    }
}

fn packing(path: &Path, source: NarWriteError<ReaderGone>) -> DumpError {
    match source {
        NarWriteError::Sink(ReaderGone) => DumpError::ReaderGone,
        source => DumpError::Pack { path: path.to_owned(), source },
    }
}

#[cfg(unix)]
fn is_executable(metadata: &Metadata) -> bool {
    // Like Nix, checks only the owner's bit.
    std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o100 != 0
}

#[cfg(not(unix))]
fn is_executable(_: &Metadata) -> bool {
    false
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::collections::BTreeMap;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use dormer_nix::nar::{NarLimits, NarReader, Node, encode_tree};
    use proptest::prelude::*;

    use super::*;

    fn dump(path: &Path, case_hack: CaseHack) -> Result<Vec<u8>, DumpError> {
        let mut nar = Vec::new();
        let size = dump_nar(path, case_hack, |bytes| {
            nar.extend_from_slice(bytes);
            Ok(())
        })?;
        assert_eq!(size, nar.len() as u64);
        Ok(nar)
    }

    fn write(path: &Path, contents: &[u8], mode: u32) {
        fs::write(path, contents).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    fn file(contents: &[u8], executable: bool) -> Node {
        Node::File { executable, contents: contents.to_vec() }
    }

    fn directory<const N: usize>(entries: [(&[u8], Node); N]) -> Node {
        Node::Directory(
            entries.into_iter().map(|(name, node)| (name.to_vec(), node)).collect::<BTreeMap<_, _>>(),
        )
    }

    #[test]
    fn a_tree_becomes_its_nar() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        fs::create_dir_all(root.join("bin/empty")).unwrap();
        write(&root.join("bin/run"), b"#!/bin/sh\n", 0o555);
        // The group's bit alone does not make a file executable.
        write(&root.join("bin/data"), &vec![7; 300_000], 0o454);
        write(&root.join("zero"), b"", 0o444);
        symlink("../nowhere", root.join("dangling")).unwrap();
        symlink(OsStr::from_bytes(b"caf\xe9"), root.join("B")).unwrap();
        write(&root.join(OsStr::from_bytes(b"\xff\xfe~")), b"x", 0o644);
        let expected = directory([
            (b"B", Node::symlink(b"caf\xe9")),
            (
                b"bin",
                directory([
                    (b"data", file(&vec![7; 300_000], false)),
                    (b"empty", directory([])),
                    (b"run", file(b"#!/bin/sh\n", true)),
                ]),
            ),
            (b"dangling", Node::symlink(b"../nowhere")),
            (b"zero", file(b"", false)),
            (b"\xff\xfe~", file(b"x", false)),
        ]);
        let nar = dump(&root, CaseHack::Keep).unwrap();
        assert_eq!(nar, encode_tree(&expected));
        // The size of `nix-store --dump` of Nix 2.8 for the same tree.
        assert_eq!(nar.len(), 301_616);
        assert_eq!(
            NarHash::digest(&nar).to_hex(),
            "3456908d492e23bdf0d677488b9bdb74ec2fd4a247d4d472df84c5cb5d0f004f"
        );
        let mut reader = NarReader::new(NarLimits::default());
        reader.feed(&nar).unwrap();
        reader.finish().unwrap();
    }

    #[test]
    fn a_path_may_be_a_file_or_a_link() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        write(&path, b"hi", 0o755);
        assert_eq!(dump(&path, CaseHack::Keep).unwrap(), encode_tree(&file(b"hi", true)));
        let link = folder.path().join("link");
        symlink("file", &link).unwrap();
        assert_eq!(dump(&link, CaseHack::Keep).unwrap(), encode_tree(&Node::symlink(b"file")));
    }

    #[test]
    fn the_case_hack_is_taken_off_and_the_order_is_that_of_the_names_without_it() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().join("root");
        fs::create_dir_all(root.join("a~nix~case~hack~2")).unwrap();
        write(&root.join("A"), b"1", 0o644);
        write(&root.join("ab"), b"2", 0o644);
        let stripped =
            directory([(b"A", file(b"1", false)), (b"a", directory([])), (b"ab", file(b"2", false))]);
        assert_eq!(dump(&root, CaseHack::Strip).unwrap(), encode_tree(&stripped));
        let kept = directory([
            (b"A", file(b"1", false)),
            (b"ab", file(b"2", false)),
            (b"a~nix~case~hack~2", directory([])),
        ]);
        assert_eq!(dump(&root, CaseHack::Keep).unwrap(), encode_tree(&kept));
        write(&root.join("a"), b"", 0o644);
        assert!(matches!(dump(&root, CaseHack::Strip), Err(DumpError::CaseHackCollision { .. })));
    }

    #[test]
    fn what_is_no_file_folder_or_link_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(folder.path().join("socket")).unwrap();
        assert!(matches!(dump(folder.path(), CaseHack::Keep), Err(DumpError::FileType { .. })));
        let missing = folder.path().join("missing");
        assert!(
            matches!(dump(&missing, CaseHack::Keep), Err(DumpError::Read { path, .. }) if path == missing)
        );
    }

    #[test]
    fn a_file_that_changes_its_size_while_it_is_read_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        for change in [-1_i64, 1] {
            let path = folder.path().join("file");
            write(&path, &vec![1; PIECE_BYTES * 2], 0o644);
            let mut changed = false;
            let outcome = dump_nar(&path, CaseHack::Keep, |bytes| {
                // The first contents come after the announcement of the size.
                if !changed && bytes.len() == PIECE_BYTES {
                    changed = true;
                    let length = i64::try_from(PIECE_BYTES).unwrap() * 2 + change;
                    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
                    file.set_len(u64::try_from(length).unwrap()).unwrap();
                }
                Ok(())
            });
            let longer = change > 0;
            assert!(
                matches!(&outcome, Err(DumpError::Pack { source: NarWriteError::FileLength { longer: l, .. }, .. }) if *l == longer),
                "{outcome:?}"
            );
        }
    }

    fn tree() -> impl Strategy<Value = Node> {
        let leaf = prop_oneof![
            (any::<bool>(), proptest::collection::vec(any::<u8>(), 0..40))
                .prop_map(|(executable, contents)| Node::File { executable, contents }),
            "[a-zA-Z0-9./~]{1,20}".prop_map(Node::symlink),
        ];
        leaf.prop_recursive(4, 40, 6, |inner| {
            proptest::collection::btree_map("[a-zA-Z0-9 .é~-]{1,8}", inner, 0..6).prop_map(|entries| {
                Node::directory(entries.into_iter().filter(|(name, _)| !matches!(name.as_str(), "." | "..")))
            })
        })
    }

    fn write_tree(path: &Path, node: &Node) {
        match node {
            Node::File { executable, contents } => {
                write(path, contents, if *executable { 0o755 } else { 0o644 });
            }
            Node::Symlink(target) => symlink(OsStr::from_bytes(target), path).unwrap(),
            Node::Directory(entries) => {
                fs::create_dir(path).unwrap();
                for (name, node) in entries {
                    write_tree(&path.join(OsStr::from_bytes(name)), node);
                }
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn every_tree_on_the_disk_becomes_the_nar_of_that_tree(node in tree()) {
            let folder = tempfile::tempdir().unwrap();
            let root = folder.path().join("root");
            write_tree(&root, &node);
            prop_assert_eq!(dump(&root, CaseHack::Keep).unwrap(), encode_tree(&node));
        }
    }
}
