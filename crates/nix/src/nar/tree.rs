//! Small trees in memory, for tests and tools.

use std::collections::BTreeMap;
use std::convert::Infallible;

use super::{NarWriteError, NarWriter};

/// A file, a symbolic link or a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Node {
    /// A regular file.
    File {
        /// Whether the file is executable.
        executable: bool,
        /// The bytes of the file.
        contents: Vec<u8>,
    },
    /// A symbolic link to this target.
    Symlink(Vec<u8>),
    /// A directory: its entries by name.
    Directory(BTreeMap<Vec<u8>, Node>),
}

impl Node {
    /// A file that is not executable.
    pub fn file(contents: impl Into<Vec<u8>>) -> Self {
        Self::File { executable: false, contents: contents.into() }
    }

    /// An executable file.
    pub fn executable(contents: impl Into<Vec<u8>>) -> Self {
        Self::File { executable: true, contents: contents.into() }
    }

    /// A symbolic link.
    pub fn symlink(target: impl Into<Vec<u8>>) -> Self {
        Self::Symlink(target.into())
    }

    /// A directory.
    pub fn directory<N: Into<Vec<u8>>>(entries: impl IntoIterator<Item = (N, Node)>) -> Self {
        Self::Directory(entries.into_iter().map(|(name, node)| (name.into(), node)).collect())
    }
}

/// The NAR of a tree. Panics on names and targets that no file system has, because the caller makes
/// the tree.
pub fn encode_tree(root: &Node) -> Vec<u8> {
    let mut nar = Vec::new();
    let mut writer = NarWriter::new(|bytes: &[u8]| {
        nar.extend_from_slice(bytes);
        Ok(())
    });
    write_node(&mut writer, root).expect("the names and targets of the tree are valid");
    writer.finish().expect("the root node was written");
    nar
}

fn write_node<F>(writer: &mut NarWriter<F>, node: &Node) -> Result<(), NarWriteError<Infallible>>
where
    F: FnMut(&[u8]) -> Result<(), Infallible>,
{
    match node {
        Node::File { executable, contents } => {
            writer.start_file(contents.len() as u64, *executable)?;
            writer.contents(contents)?;
            writer.end_file()
        }
        Node::Symlink(target) => writer.symlink(target),
        Node::Directory(entries) => {
            writer.start_directory()?;
            for (name, entry) in entries {
                writer.entry(name)?;
                write_node(writer, entry)?;
            }
            writer.end_directory()
        }
    }
}
