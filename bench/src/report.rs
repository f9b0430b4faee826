//! Results on disk: one JSON file per benchmark (for machines), and Markdown tables from these
//! files (for docs).

use std::fs;
use std::io::Write;
use std::path::Path;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Context, Result};

/// Writes `NAME.json` into the results.
pub(crate) fn save<T: Serialize>(results: &Path, name: &str, value: &T) -> Result<()> {
    fs::create_dir_all(results).context(|| format!("make {}", results.display()))?;
    let path = results.join(format!("{name}.json"));
    let text = serde_json::to_vec_pretty(value).context(|| format!("encode {name}"))?;
    fs::write(&path, text).context(|| format!("write {}", path.display()))
}

/// Reads `NAME.json`; `None` if that benchmark did not run.
pub(crate) fn load<T: DeserializeOwned>(results: &Path, name: &str) -> Result<Option<T>> {
    let path = results.join(format!("{name}.json"));
    if !path.exists() {
        return Ok(None);
    }
    let text = fs::read(&path).context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&text).context(|| format!("parse {}", path.display())).map(Some)
}

/// Prints to stdout, because results are this program's data.
pub(crate) fn print(text: &str) -> Result<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context(|| "write to stdout".to_owned())
}

/// Prints progress to stderr.
pub(crate) fn note(text: &str) {
    // A lost progress line is not a reason to stop measuring.
    let _ = writeln!(std::io::stderr().lock(), "{text}");
}

/// A Markdown table.
#[derive(Debug)]
pub(crate) struct Table {
    text: String,
}

impl Table {
    pub(crate) fn new(columns: &[&str]) -> Self {
        let mut table = Self { text: String::new() };
        table.row(columns);
        table.row(&vec!["---"; columns.len()]);
        table
    }

    pub(crate) fn row<S: AsRef<str>>(&mut self, cells: &[S]) {
        for cell in cells {
            self.text.push_str("| ");
            self.text.push_str(cell.as_ref());
            self.text.push(' ');
        }
        self.text.push_str("|\n");
    }

    pub(crate) fn finish(self) -> String {
        self.text + "\n"
    }
}

/// Bytes as MB (10⁶).
pub(crate) fn megabytes(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / 1e6)
}
