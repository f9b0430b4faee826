//! Memory: many large pushes of generated data at once. For the server, the bytes come from memory,
//! so that neither disk nor page cache takes part. For the client, they are files, as always.

use std::io::Read;
use std::path::Path;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::chunks::push_from;
use crate::corpus::Entry;
use crate::error::{Context, Error, Result};
use crate::http::Connection;
use crate::link::{Link, LinkKind};
use crate::local_store::LocalStore;
use crate::measure::wall_of;
use crate::push::{in_parallel, upload};
use crate::report::note;
use crate::server::Server;

/// Noise and text alternate in blocks of this size: half of the bytes compress well, half not at
/// all.
const BLOCK_BYTES: usize = 64 * 1024;
/// The words of the compressible blocks.
const WORDS: [&[u8]; 8] = [
    b"cache ",
    b"narinfo ",
    b"store path ",
    b"closure\n",
    b"derivation ",
    b"signature ",
    b"substituter\n",
    b"garbage ",
];

/// Results of `memory`.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Memory {
    pub(crate) pushes: usize,
    pub(crate) bytes_each: u64,
    pub(crate) peak_memory_bytes: u64,
    pub(crate) wall_seconds: f64,
    pub(crate) cpu_seconds: f64,
}

/// The NAR of one file with pseudo-random content. The same seed gives the same bytes.
#[derive(Debug)]
struct Generated {
    state: u64,
    block: Vec<u8>,
    position: usize,
    blocks_left: u64,
    noise: bool,
    tail: Vec<u8>,
}

fn text(value: &[u8], out: &mut Vec<u8>) {
    out.extend_from_slice(&(value.len() as u64).to_le_bytes());
    out.extend_from_slice(value);
    out.resize(out.len().next_multiple_of(8), 0);
}

impl Generated {
    fn new(seed: u64, blocks: u64) -> Self {
        let mut head = Vec::new();
        for value in [&b"nix-archive-1"[..], b"(", b"type", b"regular", b"contents"] {
            text(value, &mut head);
        }
        head.extend_from_slice(&(blocks * BLOCK_BYTES as u64).to_le_bytes());
        let mut tail = Vec::new();
        text(b")", &mut tail);
        Self { state: seed | 1, block: head, position: 0, blocks_left: blocks, noise: false, tail }
    }

    /// The contents of the file alone.
    fn contents(seed: u64, blocks: u64) -> Self {
        Self { block: Vec::new(), tail: Vec::new(), ..Self::new(seed, blocks) }
    }

    /// xorshift64*: fast, and zstd finds no pattern in it.
    fn next_number(&mut self) -> u64 {
        self.state ^= self.state >> 12;
        self.state ^= self.state << 25;
        self.state ^= self.state >> 27;
        self.state.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn next_block(&mut self) {
        self.block.clear();
        self.position = 0;
        if self.blocks_left == 0 {
            self.block.append(&mut self.tail);
            return;
        }
        self.blocks_left -= 1;
        self.noise = !self.noise;
        while self.block.len() < BLOCK_BYTES {
            let number = self.next_number();
            if self.noise {
                self.block.extend_from_slice(&number.to_le_bytes());
            } else {
                (0..8).for_each(|byte| {
                    self.block.extend_from_slice(WORDS[(number >> (8 * byte) & 7) as usize]);
                });
            }
        }
        self.block.truncate(BLOCK_BYTES);
    }
}

/// One push by chunks of many large files.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct ClientMemory {
    pub(crate) link: String,
    pub(crate) paths: usize,
    pub(crate) bytes_each: u64,
    pub(crate) peak_memory_bytes: u64,
    pub(crate) wall_seconds: f64,
}

impl Read for Generated {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.position == self.block.len() {
            self.next_block();
        }
        let count = buffer.len().min(self.block.len() - self.position);
        buffer[..count].copy_from_slice(&self.block[self.position..self.position + count]);
        self.position += count;
        Ok(count)
    }
}

/// Describes a generated NAR, which takes one pass over it.
fn describe(number: usize, blocks: u64) -> Result<Entry> {
    let mut digest = Sha256::new();
    let mut nar_size = 0;
    let mut generated = Generated::new(seed(number), blocks);
    let mut buffer = vec![0; BLOCK_BYTES];
    loop {
        let count = generated.read(&mut buffer).context(|| "generate".to_owned())?;
        if count == 0 {
            break;
        }
        digest.update(&buffer[..count]);
        nar_size += count as u64;
    }
    let hash = format!("{number:0>32}");
    Ok(Entry {
        store_path: format!("/nix/store/{hash}-generated-{number}"),
        hash,
        nar: String::new(),
        nar_hash_hex: hex::encode(digest.finalize()),
        nar_size,
        references: Vec::new(),
    })
}

/// Generates the NAR of this number and uploads it.
pub(crate) fn upload_generated(connection: &mut Connection, number: usize, blocks: u64) -> Result<()> {
    upload(connection, &describe(number, blocks)?, &mut Generated::new(seed(number), blocks))
}

fn seed(number: usize) -> u64 {
    0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(number as u64 + 1)
}

/// Pushes `pushes` NARs of `mebibytes` each to a fresh server, all at once.
pub(crate) fn measure(binary: &Path, work: &Path, pushes: usize, mebibytes: u64) -> Result<Memory> {
    let blocks = mebibytes * 1024 * 1024 / BLOCK_BYTES as u64;
    let entries = (0..pushes).map(|number| describe(number, blocks)).collect::<Result<Vec<_>>>()?;
    let server = Server::start(binary, &work.join("memory"), true, &[])?;
    note(&format!("memory at rest: {:.1} MiB", server.peak_memory_bytes()? as f64 / 1_048_576.0));
    let (wall_seconds, ()) = wall_of(|| {
        in_parallel(pushes, |number| {
            let entry = entries.get(number).ok_or_else(|| Error::new("no such push"))?;
            upload(&mut server.connect()?, entry, &mut Generated::new(seed(number), blocks))
        })
    })?;
    Ok(Memory {
        pushes,
        bytes_each: mebibytes * 1024 * 1024,
        peak_memory_bytes: server.peak_memory_bytes()?,
        wall_seconds,
        cpu_seconds: server.cpu_seconds()?,
    })
}

/// Pushes `paths` files of `mebibytes` each in one `dormer push` by chunks.
pub(crate) fn measure_client(
    binary: &Path,
    work: &Path,
    paths: usize,
    mebibytes: u64,
    kind: LinkKind,
) -> Result<ClientMemory> {
    let blocks = mebibytes * 1024 * 1024 / BLOCK_BYTES as u64;
    let entries = (0..paths).map(|number| describe(number, blocks)).collect::<Result<Vec<_>>>()?;
    let store = LocalStore::generate(&work.join("client-memory"), &entries, |number, file| {
        std::io::copy(&mut Generated::contents(seed(number), blocks), file).map(drop)
    })?;
    let server = Server::start(binary, &work.join("memory"), true, &[])?;
    let link = Link::start(server.address, kind)?;
    let state = work.join("client-state");
    let (wall_seconds, peak_memory_bytes) = push_from(binary, &store, &state, "v2", &link, &server.token)?;
    Ok(ClientMemory {
        link: kind.name.to_owned(),
        paths,
        bytes_each: mebibytes * 1024 * 1024,
        peak_memory_bytes,
        wall_seconds,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generated_nar_is_as_long_as_it_says_and_half_compressible() {
        let mut nar = Vec::new();
        Generated::new(seed(3), 32).read_to_end(&mut nar).expect("memory");
        let entry = describe(3, 32).expect("memory");
        assert_eq!(entry.nar_size, nar.len() as u64);
        assert_eq!(entry.nar_hash_hex, hex::encode(Sha256::digest(&nar)));
        assert_eq!(&nar[nar.len() - 16..], b"\x01\0\0\0\0\0\0\0)\0\0\0\0\0\0\0");
        let compressed = zstd::bulk::compress(&nar, 3).expect("memory").len() * 100 / nar.len();
        assert!((45..70).contains(&compressed), "{compressed} %");
        let mut contents = Vec::new();
        Generated::contents(seed(3), 32).read_to_end(&mut contents).expect("memory");
        assert_eq!(contents, nar[nar.len() - 16 - contents.len()..nar.len() - 16]);
    }
}
