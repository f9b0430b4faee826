//! The corpus that `bench/corpus/make` builds: generations of NARs and their manifests.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::error::{Context, Result};

/// One store path of a generation.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Entry {
    /// Absolute store path.
    pub(crate) store_path: String,
    /// The hash part of the path, 32 characters.
    pub(crate) hash: String,
    /// File of the NAR, relative to the corpus.
    pub(crate) nar: String,
    /// SHA-256 of the NAR, hexadecimal.
    pub(crate) nar_hash_hex: String,
    /// Bytes of the NAR.
    pub(crate) nar_size: u64,
    /// Absolute store paths, sorted.
    pub(crate) references: Vec<String>,
}

/// All paths of one push.
#[derive(Debug, Clone)]
pub(crate) struct Generation {
    pub(crate) name: String,
    folder: PathBuf,
    pub(crate) entries: Vec<Entry>,
}

impl Generation {
    /// Loads `NAME.json`. `quick` keeps every twelfth path: enough for a smoke run, but useless as
    /// a figure.
    pub(crate) fn load(folder: &Path, name: &str, quick: bool) -> Result<Self> {
        let path = folder.join(format!("{name}.json"));
        let text =
            fs::read(&path).context(|| format!("read {} (bench/corpus/make builds it)", path.display()))?;
        let entries: Vec<Entry> =
            serde_json::from_slice(&text).context(|| format!("parse {}", path.display()))?;
        let step = if quick { 12 } else { 1 };
        let entries = entries.into_iter().step_by(step).collect();
        Ok(Self { name: name.to_owned(), folder: folder.to_owned(), entries })
    }

    /// Loads the three generations in the order of their pushes. Each later generation meets the
    /// chunks of the earlier ones.
    pub(crate) fn load_all(folder: &Path, quick: bool) -> Result<Vec<Self>> {
        ["gen1", "gen2", "rebuild"].iter().map(|name| Self::load(folder, name, quick)).collect()
    }

    /// Bytes of all NARs.
    pub(crate) fn bytes(&self) -> u64 {
        self.entries.iter().map(|entry| entry.nar_size).sum()
    }

    /// Opens a path's NAR.
    pub(crate) fn open(&self, entry: &Entry) -> Result<File> {
        let path = self.folder.join(&entry.nar);
        File::open(&path).context(|| format!("open {}", path.display()))
    }

    /// Reads a path's NAR into `buffer`, replacing its contents.
    pub(crate) fn read(&self, entry: &Entry, buffer: &mut Vec<u8>) -> Result<()> {
        buffer.clear();
        self.open(entry)?.read_to_end(buffer).context(|| format!("read {}", entry.nar))?;
        Ok(())
    }

    /// Reads everything once, so that timed reads come from the page cache.
    pub(crate) fn warm(&self) -> Result<()> {
        let mut buffer = Vec::new();
        self.entries.iter().try_for_each(|entry| self.read(entry, &mut buffer))
    }
}
