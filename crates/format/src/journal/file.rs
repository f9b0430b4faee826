//! A file of the journal: a header, blocks of records, and an end.

use super::decode::read_records;
use super::encode::put_record;
use super::header::{JournalHeader, read_header};
use super::records::JournalRecord;
use crate::codec::checksum;
use crate::error::{Error, Malformed, Result};
use crate::wire::Reader;

const BLOCK_HEADER_BYTES: usize = 16;

/// Raw bytes of records in a block, about; a record is never divided. The zstd window covers a
/// block, so that ids which several NARs share cost next to nothing.
const BLOCK_BYTES: usize = 1024 * 1024;

/// Largest document that a record may hold.
pub const JOURNAL_BODY_BYTES_MAX: usize = 32 * 1024 * 1024;

/// Largest raw block: the rest of one record may follow. A NAR with the most chunks and holes that
/// there can be stays below it, and so does the largest document.
const BLOCK_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Level of the blocks: most bytes are hashes, which no level compresses.
const LEVEL: i32 = 6;

/// Writes a file in blocks. Holds a block and the finished blocks.
#[derive(Debug)]
pub struct JournalWriter {
    out: Vec<u8>,
    block: Vec<u8>,
    blocks: u32,
    records: u64,
}

impl JournalWriter {
    /// Begins a file.
    pub fn new(header: &JournalHeader) -> Self {
        Self { out: header.encode(), block: Vec::new(), blocks: 0, records: 0 }
    }

    /// Adds a record. A record that is too large for a block is refused, and the file holds what it
    /// held.
    pub fn push(&mut self, record: &JournalRecord) -> Result<()> {
        let before = self.block.len();
        put_record(&mut self.block, record);
        if self.block.len() > BLOCK_BYTES_MAX && before > 0 {
            // It may fit into a block of its own.
            let record = self.block.split_off(before);
            self.end_block()?;
            self.block = record;
        }
        if self.block.len() > BLOCK_BYTES_MAX {
            self.block.clear();
            return Err(Error::Journal {
                source: Malformed::OutOfBounds { what: "the bytes of a journal record" },
            });
        }
        self.records += 1;
        if self.block.len() >= BLOCK_BYTES { self.end_block() } else { Ok(()) }
    }

    /// Bytes so far, about.
    pub fn bytes(&self) -> usize {
        self.out.len() + self.block.len()
    }

    /// Records so far.
    pub fn records(&self) -> u64 {
        self.records
    }

    /// The whole file.
    pub fn finish(mut self) -> Result<Vec<u8>> {
        self.end_block()?;
        let count = self.blocks.to_le_bytes();
        self.out.extend_from_slice(&[0; 4]);
        self.out.extend_from_slice(&count);
        self.out.extend_from_slice(&checksum(&count).to_le_bytes());
        Ok(self.out)
    }

    fn end_block(&mut self) -> Result<()> {
        if self.block.is_empty() {
            return Ok(());
        }
        let raw = std::mem::take(&mut self.block);
        let frame = zstd::bulk::compress(&raw, LEVEL)
            .map_err(|source| Error::Compress { segment_bytes: raw.len(), source })?;
        let length =
            |bytes: &[u8]| u32::try_from(bytes.len()).expect("a block is far below 4 GiB").to_le_bytes();
        self.out.extend_from_slice(&length(&frame));
        self.out.extend_from_slice(&length(&raw));
        self.out.extend_from_slice(&checksum(&frame).to_le_bytes());
        self.out.extend_from_slice(&frame);
        self.blocks += 1;
        Ok(())
    }
}

/// What was read from a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JournalFile {
    /// Its header.
    pub header: JournalHeader,
    /// The records of all blocks before the cut, or all records.
    pub records: Vec<JournalRecord>,
    /// Whether the file reached its end. If not, it was cut or damaged, and records may be missing.
    pub is_whole: bool,
}

impl JournalFile {
    /// Reads a file, as far as it goes. Fails if not even the header can be read, or if a block
    /// that matches its checksum holds something unknown.
    pub fn read(bytes: &[u8]) -> Result<Self> {
        Self::read_file(bytes).map_err(|source| Error::Journal { source })
    }

    fn read_file(bytes: &[u8]) -> Result<Self, Malformed> {
        let mut reader = Reader::new(bytes);
        let header = read_header(bytes, &mut reader)?;
        let mut file = Self { header, records: Vec::new(), is_whole: false };
        let mut blocks = 0;
        while let Some(block) = next_block(&mut reader) {
            match block {
                Block::Records(raw) => read_records(&raw, &mut file.records)?,
                Block::End { count } => {
                    file.is_whole = count == blocks && reader.remaining() == 0;
                    break;
                }
            }
            blocks += 1;
        }
        Ok(file)
    }
}

enum Block {
    Records(Vec<u8>),
    End { count: u32 },
}

/// The next block; `None` where the file is cut or damaged.
fn next_block(reader: &mut Reader<'_>) -> Option<Block> {
    if reader.remaining() < BLOCK_HEADER_BYTES {
        return None;
    }
    let (length, raw_length, sum) = (reader.u32().ok()?, reader.u32().ok()?, reader.u64().ok()?);
    if length == 0 {
        return (sum == checksum(&raw_length.to_le_bytes())).then_some(Block::End { count: raw_length });
    }
    let frame = reader.take(usize::try_from(length).ok()?).ok()?;
    let raw_length = usize::try_from(raw_length).ok().filter(|length| *length <= BLOCK_BYTES_MAX)?;
    if checksum(frame) != sum {
        return None;
    }
    // The length is a claim, which the frame itself must make too before memory is taken.
    if zstd::zstd_safe::get_frame_content_size(frame).ok()?? != raw_length as u64 {
        return None;
    }
    zstd::bulk::decompress(frame, raw_length).ok().map(Block::Records)
}
