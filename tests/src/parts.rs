//! Where the real parts are: the binary under test, the Nix versions, folders for what tests make.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// The folder that holds the workspace.
pub fn workspace_root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the workspace")
}

/// `usual` repetitions, or ten times as many under `./test --long`.
pub fn times(usual: usize) -> usize {
    if env::var_os("DORMER_TEST_LONG").is_some() { usual * 10 } else { usual }
}

/// One of the Nix versions that `scripts/get-nix.sh` brings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Nix {
    suite: &'static str,
}

impl Nix {
    /// 2.8, as Debian 12 has it.
    pub const OLDEST: Self = Self { suite: "bookworm" };
    /// 2.26.
    pub const MIDDLE: Self = Self { suite: "trixie" };
    /// The newest that Debian has today; it moves.
    pub const NEWEST: Self = Self { suite: "forky" };
    /// All of them, oldest first.
    pub const ALL: [Self; 3] = [Self::OLDEST, Self::MIDDLE, Self::NEWEST];

    /// A word for folders and salts.
    pub fn name(self) -> &'static str {
        self.suite
    }

    /// The root of the Debian tree with this Nix. Panics if it was not fetched.
    pub(crate) fn tree(self) -> PathBuf {
        let parts = parts_folder();
        let tree = parts.join(self.suite);
        assert!(
            tree.join("usr/bin/nix").exists(),
            "no nix of Debian {} in {}: run ./test, or scripts/get-nix.sh {0}",
            self.suite,
            parts.display(),
        );
        tree
    }
}

/// What `scripts/get-services.sh` brought, by its path below the folder of the parts. Panics if it
/// did not.
pub fn part(path: &str) -> PathBuf {
    let part = parts_folder().join(path);
    assert!(
        part.exists(),
        "no {}: run ./test, or scripts/get-services.sh {}",
        part.display(),
        parts_folder().display()
    );
    part
}

pub(crate) fn parts_folder() -> PathBuf {
    env::var_os("DORMER_PARTS").map_or_else(|| workspace_root().join("target/parts"), PathBuf::from)
}

/// The binary under test: `$DORMER_BIN`, else built here, so that it is never older than its
/// sources.
pub fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = env::var_os("DORMER_BIN") {
            return PathBuf::from(path);
        }
        let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = Command::new(cargo)
            .args(["build", "--quiet", "--package", "dormer"])
            .current_dir(workspace_root())
            .status()
            .expect("cargo runs");
        assert!(status.success(), "`cargo build --package dormer` failed");
        target_folder().join("debug/dormer")
    })
}

/// Cargo's target folder: this test's executable is `<target>/debug/deps/…`.
fn target_folder() -> PathBuf {
    let executable = env::current_exe().expect("a test knows its own executable");
    executable.ancestors().nth(3).expect("cargo runs tests from <target>/<profile>/deps").to_path_buf()
}

/// Where tests keep what they make: beside the build, because a gigabyte in /tmp may be a gigabyte
/// of memory.
pub(crate) fn scratch_folder() -> PathBuf {
    let folder = target_folder().join("tmp");
    std::fs::create_dir_all(&folder).expect("the target folder can be written");
    folder
}
