//! The Markdown of each benchmark's results.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::floors::{Floors, REFERENCE_LEVEL};
use crate::levels::Row;
use crate::measure::Samples;
use crate::report::{Table, load, megabytes};

/// Every table that there are results for.
pub(crate) fn all(results: &Path) -> Result<String> {
    let mut text = String::new();
    if let Some(levels) = load::<Levels>(results, "levels")? {
        text += &levels.markdown();
    }
    Ok(text)
}

/// Results of `levels`.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Levels {
    /// Floors of the first generation.
    pub(crate) floors: Floors,
    pub(crate) rows: Vec<Row>,
}

impl Levels {
    pub(crate) fn markdown(&self) -> String {
        let reference = self.floors.zstd_bytes.get(&REFERENCE_LEVEL).copied().unwrap_or_default();
        let sha256 = self.floors.sha256.median();
        let mut text = format!(
            "First generation: {} MB of NARs. Floors in CPU seconds: sha256 {sha256:.2}, blake3 {:.2}, zstd −3 of whole \
             NARs {:.2}. zstd −3 of whole NARs makes {} MB.\n\n",
            megabytes(self.floors.nar_bytes),
            self.floors.blake3.median(),
            self.floors.zstd.get(&REFERENCE_LEVEL).map_or(f64::NAN, Samples::median),
            megabytes(reference),
        );
        let mut table = Table::new(&[
            "chunks", "level", "CPU first: cut", "ids", "zstd", "with sha256", "CPU zstd second", "MB first", "MB both",
            "+ rebuild", "first / zstd −3", "both / zstd −3", "chunks first", "new in rebuild",
        ]);
        for row in &self.rows {
            let [first, second, rebuild] = row.generations.as_slice() else { continue };
            let all = sha256 + first.chunking.median() + first.ids.median() + first.encoding.median();
            table.row(&[
                format!("{} KiB", row.avg_kib),
                row.level.to_string(),
                format!("{:.2}", first.chunking.median()),
                format!("{:.2}", first.ids.median()),
                format!("{:.2}", first.encoding.median()),
                format!("{all:.2}"),
                format!("{:.2}", second.encoding.median()),
                megabytes(row.pack_bytes(1)),
                megabytes(row.pack_bytes(2)),
                megabytes(rebuild.pack_bytes),
                format!("{:.3}", row.pack_bytes(1) as f64 / reference as f64),
                format!("{:.3}", row.pack_bytes(2) as f64 / reference as f64),
                first.chunks.to_string(),
                format!("{} of {}", rebuild.new_chunks, rebuild.chunks),
            ]);
        }
        text + &table.finish()
    }
}
