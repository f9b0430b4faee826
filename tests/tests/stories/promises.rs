//! docs/SECURITY.md promises nothing without a test, and neither does what docs/HTTP-API.md says of
//! Nix's documents and tests.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use dormer_tests::workspace_root;

/// The names of all tests below a folder.
pub(crate) fn tests_below(folder: &Path, names: &mut BTreeSet<String>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            tests_below(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).unwrap();
            let mut is_test = false;
            for line in text.lines().map(str::trim) {
                let declared = line.strip_prefix("async ").unwrap_or(line).strip_prefix("fn ");
                if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
                    is_test = true;
                } else if let Some(declared) = declared {
                    if is_test {
                        names.insert(declared.split('(').next().unwrap().to_owned());
                    }
                    is_test = false;
                }
            }
        }
    }
}

/// The names of all tests.
fn all_tests() -> BTreeSet<String> {
    let mut tests = BTreeSet::new();
    for folder in ["crates", "tests/tests"] {
        tests_below(&workspace_root().join(folder), &mut tests);
    }
    tests
}

/// The rows of the table below a heading.
fn rows(page: &str, heading: &str) -> Vec<String> {
    let page = fs::read_to_string(workspace_root().join("docs").join(page)).unwrap();
    let table = page.split(&format!("\n## {heading}\n")).nth(1).unwrap().split("\n## ").next().unwrap();
    table.lines().filter(|line| line.starts_with("| ")).skip(1).map(str::to_owned).collect()
}

/// The last cell of a row.
fn last_cell(row: &str) -> &str {
    row.trim_end_matches(" |").rsplit(" | ").next().unwrap()
}

#[test]
fn every_promise_of_the_security_page_names_a_test_that_exists() {
    let (rows, tests) = (rows("SECURITY.md", "Promises"), all_tests());
    assert!(rows.len() >= 20, "{rows:?}");
    for row in &rows {
        let name = last_cell(row).strip_prefix('`').and_then(|name| name.strip_suffix('`'));
        assert!(name.is_some_and(|name| tests.contains(name)), "no such test: {row}");
    }
}

#[test]
fn what_nix_says_of_a_cache_is_held_to_tests_that_exist() {
    let tests = all_tests();
    for (heading, least) in
        [("What Nix's documents say of a cache", 30), ("What Nix's own tests ask of a cache", 11)]
    {
        let rows = rows("HTTP-API.md", heading);
        assert!(rows.len() >= least, "{rows:?}");
        for row in rows.iter().filter(|row| last_cell(row) != "–") {
            let mut names = last_cell(row).split('`').skip(1).step_by(2).peekable();
            assert!(names.peek().is_some(), "no test: {row}");
            for name in names {
                assert!(tests.contains(name), "no such test as {name}: {row}");
            }
        }
    }
}
