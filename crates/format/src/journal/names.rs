//! Where the files of the journal are in the store, and the marks that keep them.

use std::fmt;

use super::header::JournalKind;

/// Folder of all journal files.
pub const JOURNAL_FOLDER: &str = "journal";

/// Folder of the marks that keep generations.
pub const KEPT_FOLDER: &str = "journal/kept";

/// Name of a journal file. Names carry a random number, so none is ever used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct JournalName {
    /// The snapshot that the file belongs to or follows.
    pub generation: u64,
    /// What the file is.
    pub kind: JournalKind,
    /// The position of a segment's records.
    pub position: (u64, u64),
    /// A random number.
    pub random: u64,
}

impl JournalName {
    /// Reads a name back; `None` for what is no name of ours.
    pub fn parse(name: &str) -> Option<Self> {
        let mut parts = name.strip_prefix(JOURNAL_FOLDER)?.strip_prefix('/')?.split('/');
        let number = |text: &str| u64::from_str_radix(text, 16).ok();
        let generation = number(parts.next()?)?;
        let mut words = parts.next()?.split('-');
        let kind = match words.next()? {
            "segment" => JournalKind::Segment,
            "part" => JournalKind::Part,
            "end" => JournalKind::End,
            _ => return None,
        };
        let position = (number(words.next()?)?, number(words.next()?)?);
        let parsed = Self { generation, kind, position, random: number(words.next()?)? };
        (parsed.to_string() == name).then_some(parsed)
    }
}

impl fmt::Display for JournalName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            JournalKind::Segment => "segment",
            JournalKind::Part => "part",
            JournalKind::End => "end",
        };
        let (generation, (transaction, number)) = (self.generation, self.position);
        write!(
            f,
            "{JOURNAL_FOLDER}/{generation:016x}/{kind}-{transaction:016x}-{number:016x}-{:016x}",
            self.random
        )
    }
}

/// A mark in the store: these generations stay, although a later snapshot is whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeptJournal {
    /// The last generation of them.
    pub through: u64,
    /// The first: a recovery of them begins with its snapshot.
    pub first: u64,
    /// When the mark was made, in seconds since 1970.
    pub since: i64,
}

impl KeptJournal {
    /// Reads the name of a mark back. Returns `None` for any other name.
    pub fn parse(name: &str) -> Option<Self> {
        let mut numbers = name.strip_prefix(KEPT_FOLDER)?.strip_prefix('/')?.split('-');
        let mut next = || u64::from_str_radix(numbers.next()?, 16).ok();
        let parsed = Self { first: next()?, through: next()?, since: next()?.cast_signed() };
        (parsed.to_string() == name).then_some(parsed)
    }

    /// Whether a generation is one of these.
    pub fn has(&self, generation: u64) -> bool {
        (self.first..=self.through).contains(&generation)
    }
}

impl fmt::Display for KeptJournal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, through, since } = self;
        write!(f, "{KEPT_FOLDER}/{first:016x}-{through:016x}-{since:016x}")
    }
}
