//! Lists the files of `migrations/`, so that a new file is a new step of the schema.
//!
//! `sqlx::migrate!` does the same, but it is a procedural macro: Cargo would compile SQLite, TLS
//! and both drivers a second time for it (ADR 12).

use std::path::Path;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=migrations");
    let out = env::var_os("OUT_DIR").expect("Cargo sets OUT_DIR");
    let root = env::var_os("CARGO_MANIFEST_DIR").expect("Cargo sets CARGO_MANIFEST_DIR");
    for database in ["sqlite", "postgres"] {
        let folder = Path::new(&root).join("migrations").join(database);
        let text = list(&folder);
        fs::write(Path::new(&out).join(format!("{database}.rs")), text).expect("OUT_DIR can be written");
    }
}

/// An array of version, description and text, sorted by version.
fn list(folder: &Path) -> String {
    let mut steps: Vec<(i64, String, String)> = fs::read_dir(folder)
        .expect("the folder of the migrations can be read")
        .map(|entry| entry.expect("the folder of the migrations can be read").path())
        .map(|path| {
            let name = path.file_stem().and_then(|name| name.to_str()).expect("names are UTF-8");
            let (version, description) = name.split_once('_').expect("names are NUMBER_WORDS.sql");
            let version = version.parse().expect("names begin with a number");
            (version, description.replace('_', " "), path.to_str().expect("paths are UTF-8").to_owned())
        })
        .collect();
    steps.sort();
    let lines = steps.iter().map(|(version, description, path)| {
        format!("({version}, {description:?}, include_str!({path:?})),\n")
    });
    format!("[\n{}]", lines.collect::<String>())
}
