//! What a file of the journal is, and its first bytes.

use crate::codec::checksum;
use crate::error::{Malformed, Result};
use crate::wire::Reader;

const MAGIC: &[u8; 8] = b"DORMJRNL";
const VERSION: u16 = 1;
const HEADER_BYTES: usize = 56;

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JournalKind {
    /// The present state of what changed.
    Segment,
    /// A part of everything.
    Part,
    /// The sign that all parts of a snapshot are there. It has no records.
    End,
}

/// What all records of a file have in common, and which part of a snapshot the file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JournalHeader {
    /// What the file is.
    pub kind: JournalKind,
    /// Random number of the database's past: a database that was restored has another one.
    pub lineage: u64,
    /// The snapshot that the file belongs to or follows.
    pub generation: u64,
    /// The records are as new as this place of the outbox, or newer: transaction and number.
    pub position: (u64, u64),
    /// Of a part, its number in the snapshot, from 1; of an end, how many parts there are. 0 in
    /// segments, and in files of a time when nothing was numbered.
    pub number: u32,
}

impl JournalHeader {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.push(match self.kind {
            JournalKind::Segment => 1,
            JournalKind::Part => 2,
            JournalKind::End => 3,
        });
        out.push(0);
        out.extend_from_slice(&self.number.to_le_bytes());
        for number in [self.lineage, self.generation, self.position.0, self.position.1] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        let sum = checksum(&out);
        out.extend_from_slice(&sum.to_le_bytes());
        out
    }
}

pub(super) fn read_header(bytes: &[u8], reader: &mut Reader<'_>) -> Result<JournalHeader, Malformed> {
    if reader.array::<8>()? != *MAGIC {
        return Err(Malformed::Magic { part: "journal" });
    }
    let version = reader.u16()?;
    if version != VERSION {
        return Err(Malformed::Version { version });
    }
    let kind = match reader.u8()? {
        1 => JournalKind::Segment,
        2 => JournalKind::Part,
        3 => JournalKind::End,
        _ => return Err(Malformed::OutOfBounds { what: "the kind of a journal file" }),
    };
    if reader.u8()? != 0 {
        return Err(Malformed::Reserved);
    }
    let number = reader.u32()?;
    let (lineage, generation) = (reader.u64()?, reader.u64()?);
    let position = (reader.u64()?, reader.u64()?);
    if reader.u64()? != checksum(&bytes[..HEADER_BYTES - 8]) {
        return Err(Malformed::Checksum { what: "checksum of the header" });
    }
    Ok(JournalHeader { kind, lineage, generation, position, number })
}
