//! The writer: emits a NAR piece by piece into a sink, and refuses to write an invalid NAR.
//!
//! The writer checks what can go wrong when the file system changes between listing and reading: a
//! file with another length, names out of order. Therefore [`super::NarReader`] accepts every
//! finished NAR.

use super::error::excerpt;
use super::{MAGIC, is_entry_name, is_target, padding};

/// Why a NAR could not be written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NarWriteError<E> {
    /// The sink failed.
    #[error("writing the NAR")]
    Sink(#[source] E),
    /// The length of a file differs from the announced length.
    #[error("the file was announced with {announced} bytes, but has {}", if *.longer { "more" } else { "fewer" })]
    FileLength {
        /// The announced length in bytes.
        announced: u64,
        /// Whether the file has more bytes than announced; otherwise it has fewer.
        longer: bool,
    },
    /// The name of an entry is empty, is `.` or `..`, or contains a slash or NUL.
    #[error("{name:?} is not a valid name for a directory entry")]
    BadName {
        /// The name.
        name: String,
    },
    /// The entries are out of order, or one appears twice.
    #[error("the entry {name:?} follows {previous:?}: names must ascend")]
    NameNotAscending {
        /// The previous entry's name.
        previous: String,
        /// The name.
        name: String,
    },
    /// The target of a symbolic link is empty or contains NUL.
    #[error("{target:?} is not a valid target for a symbolic link")]
    BadTarget {
        /// The target.
        target: String,
    },
    /// The grammar does not allow this call here: the caller has a bug.
    #[error("{call} does not fit here in a NAR")]
    OutOfPlace {
        /// The call.
        call: &'static str,
    },
}

/// What may be written next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// A file, a link or a directory: the root, or the node of a named entry.
    Node,
    /// The rest of a file's bytes.
    File { announced: u64, left: u64 },
    /// Another entry of the innermost directory, or its end.
    Directory,
    /// Nothing: the root is complete.
    End,
}

/// Writes one NAR into `sink`. The writer calls the sink with each piece in turn.
///
/// ```
/// # use dormer_nix::nar::NarWriter;
/// let mut nar = Vec::new();
/// let mut writer = NarWriter::new(|bytes: &[u8]| {
///     nar.extend_from_slice(bytes);
///     Ok::<(), std::convert::Infallible>(())
/// });
/// writer.start_directory()?;
/// writer.entry(b"hello")?;
/// writer.start_file(3, true)?;
/// writer.contents(b"hi\n")?;
/// writer.end_file()?;
/// writer.entry(b"link")?;
/// writer.symlink(b"hello")?;
/// writer.end_directory()?;
/// assert_eq!(writer.finish()?, 512);
/// # assert_eq!(nar.len(), 512);
/// # Ok::<(), dormer_nix::nar::NarWriteError<std::convert::Infallible>>(())
/// ```
#[derive(Debug)]
pub struct NarWriter<F> {
    sink: F,
    state: State,
    /// The latest name in each open directory, from the root; empty before the directory's first
    /// entry.
    levels: Vec<Vec<u8>>,
    /// The strings of one call. The sink gets all of them at once.
    pending: Vec<u8>,
    size: u64,
}

impl<F, E> NarWriter<F>
where
    F: FnMut(&[u8]) -> Result<(), E>,
{
    /// Starts a NAR. The first bytes are written together with the root.
    pub fn new(sink: F) -> Self {
        let mut writer = Self { sink, state: State::Node, levels: Vec::new(), pending: Vec::new(), size: 0 };
        writer.string(MAGIC);
        writer
    }

    /// Begins a file of exactly `len` bytes.
    pub fn start_file(&mut self, len: u64, executable: bool) -> Result<(), NarWriteError<E>> {
        self.expect(State::Node, "start_file")?;
        self.start_node(b"regular");
        if executable {
            self.string(b"executable");
            self.string(b"");
        }
        self.string(b"contents");
        self.pending.extend_from_slice(&len.to_le_bytes());
        self.state = State::File { announced: len, left: len };
        self.flush()
    }

    /// Writes the next bytes of the file.
    pub fn contents(&mut self, bytes: &[u8]) -> Result<(), NarWriteError<E>> {
        let State::File { announced, left } = self.state else {
            return Err(NarWriteError::OutOfPlace { call: "contents" });
        };
        let Some(left) = left.checked_sub(bytes.len() as u64) else {
            return Err(NarWriteError::FileLength { announced, longer: true });
        };
        self.state = State::File { announced, left };
        self.put(bytes)
    }

    /// Ends the file. All its bytes must have been written.
    pub fn end_file(&mut self) -> Result<(), NarWriteError<E>> {
        match self.state {
            State::File { announced, left: 0 } => {
                self.pending.resize(padding(announced), 0);
                self.end_node();
                self.flush()
            }
            State::File { announced, .. } => Err(NarWriteError::FileLength { announced, longer: false }),
            _ => Err(NarWriteError::OutOfPlace { call: "end_file" }),
        }
    }

    /// Writes a symbolic link.
    pub fn symlink(&mut self, target: &[u8]) -> Result<(), NarWriteError<E>> {
        self.expect(State::Node, "symlink")?;
        if !is_target(target) {
            return Err(NarWriteError::BadTarget { target: excerpt(target) });
        }
        self.start_node(b"symlink");
        self.string(b"target");
        self.string(target);
        self.end_node();
        self.flush()
    }

    /// Begins a directory.
    pub fn start_directory(&mut self) -> Result<(), NarWriteError<E>> {
        self.expect(State::Node, "start_directory")?;
        self.start_node(b"directory");
        self.levels.push(Vec::new());
        self.state = State::Directory;
        self.flush()
    }

    /// Names the directory's next entry. The next call writes the entry itself. Names ascend by
    /// their bytes.
    pub fn entry(&mut self, name: &[u8]) -> Result<(), NarWriteError<E>> {
        self.expect(State::Directory, "entry")?;
        if !is_entry_name(name) {
            return Err(NarWriteError::BadName { name: excerpt(name) });
        }
        let previous = self.levels.last_mut().expect("a directory is open");
        if name <= previous.as_slice() {
            return Err(NarWriteError::NameNotAscending { previous: excerpt(previous), name: excerpt(name) });
        }
        previous.clear();
        previous.extend_from_slice(name);
        for string in [b"entry".as_slice(), b"(", b"name", name, b"node"] {
            self.string(string);
        }
        self.state = State::Node;
        self.flush()
    }

    /// Ends the innermost directory.
    pub fn end_directory(&mut self) -> Result<(), NarWriteError<E>> {
        self.expect(State::Directory, "end_directory")?;
        self.levels.pop();
        self.end_node();
        self.flush()
    }

    /// Ends the NAR and returns its number of bytes. The root must be complete.
    pub fn finish(self) -> Result<u64, NarWriteError<E>> {
        self.expect(State::End, "finish")?;
        Ok(self.size)
    }

    fn expect(&self, state: State, call: &'static str) -> Result<(), NarWriteError<E>> {
        if self.state == state { Ok(()) } else { Err(NarWriteError::OutOfPlace { call }) }
    }

    fn start_node(&mut self, kind: &[u8]) {
        self.string(b"(");
        self.string(b"type");
        self.string(kind);
    }

    /// Closes a node, and the entry that contains the node.
    fn end_node(&mut self) {
        self.string(b")");
        if self.levels.is_empty() {
            self.state = State::End;
        } else {
            self.string(b")");
            self.state = State::Directory;
        }
    }

    fn string(&mut self, bytes: &[u8]) {
        let len = bytes.len() as u64;
        self.pending.extend_from_slice(&len.to_le_bytes());
        self.pending.extend_from_slice(bytes);
        self.pending.resize(self.pending.len() + padding(len), 0);
    }

    fn flush(&mut self) -> Result<(), NarWriteError<E>> {
        let mut pending = std::mem::take(&mut self.pending);
        let result = self.put(&pending);
        pending.clear();
        self.pending = pending;
        result
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), NarWriteError<E>> {
        self.size += bytes.len() as u64;
        (self.sink)(bytes).map_err(NarWriteError::Sink)
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    type Sink = fn(&[u8]) -> Result<(), Infallible>;

    fn writer() -> NarWriter<Sink> {
        NarWriter::new(|_| Ok(()))
    }

    #[test]
    fn a_file_must_have_its_announced_length() {
        let mut short = writer();
        short.start_file(3, false).unwrap();
        short.contents(b"ab").unwrap();
        assert_eq!(short.end_file(), Err(NarWriteError::FileLength { announced: 3, longer: false }));
        let mut long = writer();
        long.start_file(3, false).unwrap();
        long.contents(b"ab").unwrap();
        assert_eq!(long.contents(b"cd"), Err(NarWriteError::FileLength { announced: 3, longer: true }));
    }

    #[test]
    fn entries_must_be_names_and_ascend() {
        let mut writer = writer();
        writer.start_directory().unwrap();
        for name in [b"".as_slice(), b".", b"..", b"a/b", b"a\0"] {
            assert!(matches!(writer.entry(name), Err(NarWriteError::BadName { .. })), "{name:?}");
        }
        writer.entry(b"b").unwrap();
        writer.symlink(b"x").unwrap();
        for name in [b"b".as_slice(), b"a"] {
            assert!(matches!(writer.entry(name), Err(NarWriteError::NameNotAscending { .. })), "{name:?}");
        }
    }

    #[test]
    fn calls_out_of_place_are_refused_and_write_nothing() {
        let mut fresh = writer();
        let out_of_place = |call| Err(NarWriteError::OutOfPlace { call });
        assert_eq!(fresh.contents(b""), out_of_place("contents"));
        assert_eq!(fresh.end_file(), out_of_place("end_file"));
        assert_eq!(fresh.entry(b"a"), out_of_place("entry"));
        assert_eq!(fresh.end_directory(), out_of_place("end_directory"));
        fresh.start_directory().unwrap();
        assert_eq!(fresh.start_file(0, false), out_of_place("start_file"));
        assert_eq!(fresh.start_directory(), out_of_place("start_directory"));
        assert_eq!(fresh.symlink(b"x"), out_of_place("symlink"));
        fresh.entry(b"a").unwrap();
        assert_eq!(fresh.end_directory(), out_of_place("end_directory"));
        fresh.start_file(0, true).unwrap();
        assert_eq!(fresh.end_directory(), out_of_place("end_directory"));
        fresh.end_file().unwrap();
        fresh.end_directory().unwrap();
        assert_eq!(fresh.symlink(b"x"), out_of_place("symlink"));
        assert!(fresh.finish().is_ok());
        assert!(matches!(writer().finish(), Err(NarWriteError::OutOfPlace { call: "finish" })));
    }

    #[test]
    fn a_failing_sink_is_passed_on() {
        let mut failing = NarWriter::new(|_: &[u8]| Err(std::fmt::Error));
        assert_eq!(failing.start_directory(), Err(NarWriteError::Sink(std::fmt::Error)));
    }
}
