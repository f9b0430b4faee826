//! The push parser. The caller feeds pieces of a NAR as they arrive; the parser checks every byte
//! and keeps almost none.
//!
//! Invariants
//! - The result does not depend on how the NAR is cut into pieces. This includes errors and their
//!   positions.
//! - [`NarLimits`] bounds the memory, whatever lengths the NAR claims. The parser compares a length
//!   with its limit before it keeps anything, and vectors grow with the bytes that arrived.
//! - The parser skips the bytes of files. They cost one subtraction per piece.
//! - After an error, the reader only repeats the error.

use super::error::excerpt;
use super::listing::{Listing, ListingWriter};
use super::{BUILD_IDS_MAX, MAGIC, NarError, NarLimits, is_entry_name, is_target, padding};
use crate::BuildId;

/// The longest word of the format is `nix-archive-1`, so a longer string is not a word.
const WORD_BYTES_MAX: u64 = 16;

/// The names of the folders above the folder of a debug file, as `path` has them, and where the
/// names of all five levels begin.
const DEBUG_FOLDERS: &[u8] = b"libdebug.build-id";
const DEBUG_LEVELS: [usize; 5] = [0, 3, 8, 17, 19];

/// Words that follow each other in nearly every entry of a directory. If the bytes at hand hold a
/// whole row, one comparison takes the row. An entry then costs three comparisons instead of
/// thirteen strings: 0.4 µs instead of 0.7, with its listing.
const ROWS: [(Expect, &[u8], Expect); 3] = [
    (Expect::EntryOrClose, &words::<48>(&[b"entry", b"(", b"name"]), Expect::Name),
    (Expect::NodeKey, &words::<80>(&[b"node", b"(", b"type", b"regular", b"contents"]), Expect::Contents),
    (Expect::NodeClose, &words::<32>(&[b")", b")"]), Expect::EntryOrClose),
];

/// Words in the form of a NAR: length, bytes, padding.
const fn words<const N: usize>(words: &[&[u8]]) -> [u8; N] {
    let mut bytes = [0; N];
    let (mut start, mut index) = (0, 0);
    while index < words.len() {
        let word = words[index];
        assert!(word.len() < 256, "the length is one byte");
        bytes[start] = word.len().to_le_bytes()[0];
        let mut position = 0;
        while position < word.len() {
            bytes[start + 8 + position] = word[position];
            position += 1;
        }
        start += 8 + word.len().next_multiple_of(8);
        index += 1;
    }
    assert!(start == N, "the row has another length");
    bytes
}

/// What the next bytes belong to.
#[derive(Debug, Clone, Copy)]
enum Phase {
    /// The length field of the next string. `length` already holds this many of its bytes.
    Length { filled: usize },
    /// A string that the reader keeps until it is complete.
    Token { left: usize, padding: usize },
    /// The bytes of a file, which the reader skips.
    Contents { left: u64, padding: usize },
    /// The zeros after a token or a file.
    Padding { left: usize },
}

/// The string that the grammar has next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    Magic,
    NodeOpen,
    TypeKey,
    TypeValue,
    ExecutableOrContents,
    ExecutableValue,
    ContentsKey,
    Contents,
    TargetKey,
    Target,
    /// The end of a file or of a symbolic link.
    NodeClose,
    EntryOrClose,
    EntryOpen,
    NameKey,
    Name,
    NodeKey,
    EntryClose,
    End,
}

impl Expect {
    /// The name of this string in error messages.
    fn describe(self) -> &'static str {
        match self {
            Self::Magic => "the magic",
            Self::NodeOpen | Self::EntryOpen => "`(`",
            Self::TypeKey => "`type`",
            Self::TypeValue => "`regular`, `symlink` or `directory`",
            Self::ExecutableOrContents => "`executable` or `contents`",
            Self::ExecutableValue => "an empty string",
            Self::ContentsKey => "`contents`",
            Self::Contents => "the bytes of a file",
            Self::TargetKey => "`target`",
            Self::Target => "the target of a link",
            Self::NodeClose | Self::EntryClose => "`)`",
            Self::EntryOrClose => "`entry` or `)`",
            Self::NameKey => "`name`",
            Self::Name => "the name of an entry",
            Self::NodeKey => "`node`",
            Self::End => "the end",
        }
    }
}

/// Reads one NAR. The head of this module lists the guarantees.
#[derive(Debug)]
pub struct NarReader {
    limits: NarLimits,
    /// Bytes taken so far.
    offset: u64,
    phase: Phase,
    expect: Expect,
    /// The length field that the reader is reading.
    length: [u8; 8],
    /// Position of the current string's length field.
    token_offset: u64,
    token: Vec<u8>,
    executable: bool,
    /// The latest name in each open directory, from the root, without separators.
    path: Vec<u8>,
    /// Where the name of each open directory begins in `path`; the name ends where the next one
    /// begins. An empty name means that the directory has no entry yet: every real name is longer
    /// and sorts after it.
    levels: Vec<usize>,
    listing: ListingWriter,
    build_ids: Vec<BuildId>,
    failed: Option<NarError>,
}

impl NarReader {
    /// Starts before the first byte.
    pub fn new(limits: NarLimits) -> Self {
        Self {
            limits,
            offset: 0,
            phase: Phase::Length { filled: 0 },
            expect: Expect::Magic,
            length: [0; 8],
            token_offset: 0,
            token: Vec::new(),
            executable: false,
            path: Vec::new(),
            levels: Vec::new(),
            listing: ListingWriter::new(limits.listing_bytes_max),
            build_ids: Vec::new(),
            failed: None,
        }
    }

    /// Takes the next piece of the NAR; pieces can have any size.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), NarError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let result = self.take(bytes);
        if let Err(error) = &result {
            self.failed = Some(error.clone());
        }
        result
    }

    /// Whether the NAR is complete: nothing is missing, and no byte may follow.
    pub fn is_complete(&self) -> bool {
        self.failed.is_none() && self.expect == Expect::End && matches!(self.phase, Phase::Length { .. })
    }

    /// Bytes taken so far.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Takes the part of the listing that is written so far, if it has at least `bytes_min` bytes.
    /// For callers that cannot keep a large listing as a whole. [`finish`](Self::finish) returns
    /// the rest.
    pub fn take_listing(&mut self, bytes_min: usize) -> Option<Vec<u8>> {
        self.listing.take(bytes_min)
    }

    /// Build ids of the debug files that came so far: of `lib/debug/.build-id/xx/yyyy.debug`. Takes
    /// them out; at most [`BUILD_IDS_MAX`](super::BUILD_IDS_MAX) are kept.
    pub fn take_build_ids(&mut self) -> Vec<BuildId> {
        std::mem::take(&mut self.build_ids)
    }

    /// Ends the NAR: no more bytes come. Returns the listing.
    pub fn finish(self) -> Result<Listing, NarError> {
        if self.is_complete() {
            return Ok(self.listing.finish());
        }
        Err(self.failed.unwrap_or(NarError::Truncated { offset: self.offset }))
    }

    fn take(&mut self, mut bytes: &[u8]) -> Result<(), NarError> {
        while !bytes.is_empty() {
            if self.is_complete() {
                return Err(NarError::TrailingBytes { offset: self.offset });
            }
            let room = self.limits.nar_bytes_max - self.offset;
            if room == 0 {
                return Err(self.too_large(self.offset));
            }
            let available = usize::try_from(room).map_or(bytes.len(), |room| room.min(bytes.len()));
            let taken = self.step(&bytes[..available])?;
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    /// Takes bytes up to the end of one phase, at least one, and returns their number.
    fn step(&mut self, bytes: &[u8]) -> Result<usize, NarError> {
        if let Some(taken) = self.take_row(bytes) {
            return Ok(taken);
        }
        match self.phase {
            Phase::Length { filled } => {
                let taken = bytes.len().min(8 - filled);
                self.length[filled..filled + taken].copy_from_slice(&bytes[..taken]);
                self.offset += taken as u64;
                self.phase = Phase::Length { filled: filled + taken };
                if filled + taken == 8 {
                    self.token_offset = self.offset - 8;
                    self.start_string(u64::from_le_bytes(self.length))?;
                }
                Ok(taken)
            }
            Phase::Token { left, padding } => {
                let taken = bytes.len().min(left);
                self.token.extend_from_slice(&bytes[..taken]);
                self.offset += taken as u64;
                self.phase = Phase::Token { left: left - taken, padding };
                if taken == left {
                    self.end_token(padding)?;
                }
                Ok(taken)
            }
            Phase::Contents { left, padding } => {
                let taken = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
                self.offset += taken as u64;
                self.phase = Phase::Contents { left: left - taken as u64, padding };
                if taken as u64 == left {
                    self.end_contents(padding);
                }
                Ok(taken)
            }
            Phase::Padding { left } => {
                let taken = bytes.len().min(left);
                if let Some(position) = bytes[..taken].iter().position(|&byte| byte != 0) {
                    return Err(NarError::BadPadding { offset: self.offset + position as u64 });
                }
                self.offset += taken as u64;
                self.start_padding(left - taken);
                Ok(taken)
            }
        }
    }

    /// Takes one of [`ROWS`], with the same result as taking its words one by one.
    fn take_row(&mut self, bytes: &[u8]) -> Option<usize> {
        if !matches!(self.phase, Phase::Length { filled: 0 }) {
            return None;
        }
        let (expect, row, next) = ROWS.into_iter().find(|(expect, ..)| *expect == self.expect)?;
        // The root has no entry to close.
        if !bytes.starts_with(row) || (expect == Expect::NodeClose && self.levels.is_empty()) {
            return None;
        }
        if next == Expect::Contents {
            self.executable = false;
        }
        self.expect = next;
        self.offset += row.len() as u64;
        Some(row.len())
    }

    /// Called when a length field is complete: checks the length against the grammar.
    fn start_string(&mut self, len: u64) -> Result<(), NarError> {
        match self.expect {
            Expect::Contents => return self.start_contents(len),
            Expect::Magic if len != MAGIC.len() as u64 => return Err(NarError::BadMagic),
            _ => {}
        }
        let max = match self.expect {
            Expect::Name => self.limits.name_bytes_max as u64,
            Expect::Target => self.limits.target_bytes_max as u64,
            _ => WORD_BYTES_MAX,
        };
        let Some(left) = usize::try_from(len).ok().filter(|_| len <= max) else {
            return Err(NarError::TokenTooLong {
                offset: self.token_offset,
                expected: self.expect.describe(),
                len,
                max,
            });
        };
        self.token.clear();
        self.phase = Phase::Token { left, padding: padding(len) };
        if left == 0 { self.end_token(0) } else { Ok(()) }
    }

    fn start_contents(&mut self, len: u64) -> Result<(), NarError> {
        let padding = padding(len);
        let end = self.offset.checked_add(len).and_then(|end| end.checked_add(padding as u64));
        if end.is_none_or(|end| end > self.limits.nar_bytes_max) {
            return Err(self.too_large(self.token_offset));
        }
        self.listing.file(len, self.executable, self.offset);
        if self.levels == DEBUG_LEVELS && self.build_ids.len() < BUILD_IDS_MAX {
            self.build_ids.extend(self.debug_file());
        }
        self.phase = Phase::Contents { left: len, padding };
        if len == 0 {
            self.end_contents(0);
        }
        Ok(())
    }

    /// The build id of the file that begins here, if it is a debug file.
    fn debug_file(&self) -> Option<BuildId> {
        let names = self.path.strip_prefix(DEBUG_FOLDERS)?;
        let (folder, file) = names.split_at_checked(2)?;
        BuildId::of_debug_file(folder, file)
    }

    fn end_contents(&mut self, padding: usize) {
        self.expect = Expect::NodeClose;
        self.start_padding(padding);
    }

    fn end_token(&mut self, padding: usize) -> Result<(), NarError> {
        self.expect = self.take_token()?;
        self.start_padding(padding);
        Ok(())
    }

    fn start_padding(&mut self, left: usize) {
        self.phase = if left == 0 { Phase::Length { filled: 0 } } else { Phase::Padding { left } };
    }

    /// Acts on a complete string and returns which string comes next.
    fn take_token(&mut self) -> Result<Expect, NarError> {
        let next = match (self.expect, self.token.as_slice()) {
            (Expect::Magic, MAGIC) | (Expect::NodeKey, b"node") => Expect::NodeOpen,
            (Expect::Magic, _) => return Err(NarError::BadMagic),
            (Expect::NodeOpen, b"(") => Expect::TypeKey,
            (Expect::TypeKey, b"type") => Expect::TypeValue,
            (Expect::TypeValue, b"regular") => {
                self.executable = false;
                Expect::ExecutableOrContents
            }
            (Expect::TypeValue, b"symlink") => Expect::TargetKey,
            (Expect::TypeValue, b"directory") => self.start_directory()?,
            (Expect::ExecutableOrContents, b"executable") => {
                self.executable = true;
                Expect::ExecutableValue
            }
            (Expect::ExecutableValue, b"") => Expect::ContentsKey,
            (Expect::ExecutableOrContents | Expect::ContentsKey, b"contents") => Expect::Contents,
            (Expect::TargetKey, b"target") => Expect::Target,
            (Expect::Target, target) if !is_target(target) => {
                return Err(NarError::BadTarget { offset: self.token_offset, target: excerpt(target) });
            }
            (Expect::Target, target) => {
                self.listing.symlink(target);
                Expect::NodeClose
            }
            (Expect::NodeClose, b")") => self.end_node(),
            (Expect::EntryOrClose, b"entry") => Expect::EntryOpen,
            (Expect::EntryOrClose, b")") => self.end_directory(),
            (Expect::EntryOpen, b"(") => Expect::NameKey,
            (Expect::NameKey, b"name") => Expect::Name,
            (Expect::Name, _) => self.take_name()?,
            (Expect::EntryClose, b")") => Expect::EntryOrClose,
            (expect, found) => {
                return Err(NarError::UnexpectedToken {
                    offset: self.token_offset,
                    expected: expect.describe(),
                    found: excerpt(found),
                });
            }
        };
        Ok(next)
    }

    fn start_directory(&mut self) -> Result<Expect, NarError> {
        if self.levels.len() >= self.limits.depth_max {
            return Err(NarError::TooDeep { offset: self.token_offset, max: self.limits.depth_max });
        }
        self.levels.push(self.path.len());
        self.listing.start_directory();
        Ok(Expect::EntryOrClose)
    }

    fn take_name(&mut self) -> Result<Expect, NarError> {
        let (offset, name) = (self.token_offset, self.token.as_slice());
        if !is_entry_name(name) {
            return Err(NarError::BadName { offset, name: excerpt(name) });
        }
        let start = *self.levels.last().expect("names only stand in directories");
        let previous = &self.path[start..];
        if name <= previous {
            return Err(NarError::NameNotAscending {
                offset,
                previous: excerpt(previous),
                name: excerpt(name),
            });
        }
        self.listing.entry(name, previous.is_empty());
        if start + name.len() > self.limits.path_bytes_max {
            return Err(NarError::PathTooLong { offset, max: self.limits.path_bytes_max });
        }
        self.path.truncate(start);
        self.path.extend_from_slice(name);
        Ok(Expect::NodeKey)
    }

    fn end_directory(&mut self) -> Expect {
        let start = self.levels.pop().expect("a directory is open where its end is expected");
        self.path.truncate(start);
        self.listing.end_directory();
        self.end_node()
    }

    fn end_node(&self) -> Expect {
        if self.levels.is_empty() { Expect::End } else { Expect::EntryClose }
    }

    fn too_large(&self, offset: u64) -> NarError {
        NarError::TooLarge { offset, max: self.limits.nar_bytes_max }
    }
}

#[cfg(test)]
#[path = "reader_tests.rs"]
mod tests;
