//! docs/SECURITY.md promises nothing without a test.

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

#[test]
fn every_promise_of_the_security_page_names_a_test_that_exists() {
    let page = fs::read_to_string(workspace_root().join("docs/SECURITY.md")).unwrap();
    let table = page.split("\n## Promises\n").nth(1).unwrap().split("\n## ").next().unwrap();
    let rows: Vec<&str> = table.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    assert!(rows.len() >= 20, "{rows:?}");
    let mut tests = BTreeSet::new();
    for folder in ["crates", "tests/tests"] {
        tests_below(&workspace_root().join(folder), &mut tests);
    }
    for row in rows {
        let name = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        let name = name.strip_prefix('`').and_then(|name| name.strip_suffix('`'));
        assert!(name.is_some_and(|name| tests.contains(name)), "no such test: {row}");
    }
}
