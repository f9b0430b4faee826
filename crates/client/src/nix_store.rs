//! The local Nix store: resolves arguments to paths, and asks `nix` about paths.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::{Component, Path, PathBuf};
use std::process::{Output, Stdio};

use dormer_nix::{BuildTrace, StoreDir, StorePath};

use crate::dump::CaseHack;
use crate::error::{Error, Result};
use crate::nix_config::NixConfig;
use crate::path_info::PathInfo;
use crate::push_plan::AddressedOutput;
use crate::settings::Variables;
use crate::store_location::StoreLocation;

/// Paths in one call of `nix`: some 500 KB of arguments at most, a quarter of the limit of Linux.
const PATHS_PER_CALL: usize = 2_000;

/// Outputs in one call of `nix` that asks for traces. One that has none makes the call fail, and
/// then halves are asked about.
const OUTPUTS_PER_CALL: usize = 100;

/// Outputs without a trace after which no more are asked for: one may cost as many calls as its
/// batch can be halved.
const OUTPUTS_WITHOUT_MAX: usize = 32;

/// Most symbolic links followed for one argument. Linux follows 40.
const LINKS_MAX: usize = 40;

/// Longest kept end of the error output of `nix`. The last words give the reason.
const STDERR_BYTES_MAX: usize = 4096;

/// The store of `nix` on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NixStore {
    program: OsString,
    location: StoreLocation,
    case_hack: CaseHack,
    has_traces: bool,
}

impl Default for NixStore {
    fn default() -> Self {
        Self::new("nix", StoreDir::default())
    }
}

impl NixStore {
    /// A store that asks `program` and has its files in `store_dir`.
    pub fn new(program: impl Into<OsString>, store_dir: StoreDir) -> Self {
        let location = StoreLocation::plain(store_dir);
        Self { program: program.into(), location, case_hack: CaseHack::default(), has_traces: false }
    }

    /// The same store, with build traces (`has_traces`).
    #[must_use]
    pub fn with_traces(self) -> Self {
        Self { has_traces: true, ..self }
    }

    /// The store that `nix` uses, according to its settings: `store` (or `NIX_REMOTE`), with a root
    /// of its own perhaps, and `use-case-hack`.
    pub async fn open(variables: Variables<'_>) -> Result<Self> {
        Self::open_with(nix_program(variables), variables).await
    }

    async fn open_with(program: OsString, variables: Variables<'_>) -> Result<Self> {
        let store_dir = Self::store_dir_of(variables)?;
        let config = NixConfig::read_settings(&program).await?;
        let setting = config.text("store").unwrap_or_default();
        let location = StoreLocation::of_setting(setting, store_dir, variables, &|path| path.exists())?;
        let case_hack = match config.flag("use-case-hack") {
            Some(true) => CaseHack::Strip,
            Some(false) => CaseHack::Keep,
            None => CaseHack::default(),
        };
        Ok(Self { program, location, case_hack, has_traces: config.allows_content_addressed() })
    }

    /// The same store for names of paths alone, which need no Nix on this machine: without an
    /// answer of `nix`, only links into a store with a root of its own are not understood.
    pub async fn open_for_names(variables: Variables<'_>) -> Result<Self> {
        match Self::open(variables).await {
            Ok(store) => Ok(store),
            Err(_) => Ok(Self::new(nix_program(variables), Self::store_dir_of(variables)?)),
        }
    }

    /// The folder in the names of paths: that of `NIX_STORE_DIR` (or `NIX_STORE`), which Nix reads
    /// too. What a setting says differently, only [`NixStore::open`] knows.
    pub fn store_dir_of(variables: Variables<'_>) -> Result<StoreDir> {
        match variables("NIX_STORE_DIR").or_else(|| variables("NIX_STORE")) {
            Some(text) => {
                text.parse().map_err(|source| Error::NotAStorePath { path: PathBuf::from(text), source })
            }
            None => Ok(StoreDir::default()),
        }
    }

    /// The folder of the store in the names of paths.
    pub fn store_dir(&self) -> &StoreDir {
        &self.location.store_dir
    }

    /// The folder with the files, which differs in a store with a root of its own.
    pub fn real_dir(&self) -> &Path {
        &self.location.real_dir
    }

    /// How file names in the store are read.
    pub fn case_hack(&self) -> CaseHack {
        self.case_hack
    }

    /// The store path of an argument: the argument itself, its target (`./result`), or the store
    /// path that contains it (`./result/bin/hello`). Follows links only until they enter the store;
    /// a store path that is a link stands for itself. The path need not be valid:
    /// [`NixStore::path_infos`] checks that.
    pub fn resolve(&self, argument: &Path) -> Result<StorePath> {
        let unresolved = |source| Error::ResolvePath { path: argument.to_owned(), source };
        let mut path = std::path::absolute(argument).map_err(unresolved)?;
        let folders = self.folders();
        for _ in 0..=LINKS_MAX {
            match step(&folders, &path).map_err(unresolved)? {
                Step::InStore(base_name) => {
                    let base_name = base_name.to_str().unwrap_or_default();
                    return base_name
                        .parse()
                        .map_err(|source| Error::NotAStorePath { path: argument.to_owned(), source });
                }
                Step::Outside => {
                    return Err(Error::NotInStore {
                        path: argument.to_owned(),
                        store_dir: self.store_dir().clone(),
                    });
                }
                Step::Link(next) => path = next,
            }
        }
        Err(unresolved(io::Error::other("too many symbolic links")))
    }

    /// The folders in which a path is a path of the store: the one of the names, and the real one
    /// under each of its names, because `/nix` may be a link.
    fn folders(&self) -> Vec<PathBuf> {
        let mut folders = vec![PathBuf::from(self.store_dir().as_str()), self.real_dir().to_owned()];
        folders.extend(std::fs::canonicalize(self.real_dir()));
        folders.dedup();
        folders
    }

    /// What `nix` knows about `paths`, and with `closure` about their closure. Ordered by path,
    /// without duplicates. Each of `paths` is in the result.
    pub async fn path_infos(&self, paths: &[StorePath], closure: bool) -> Result<Vec<PathInfo>> {
        // Up to 2.14, a derivation stands for its outputs unless `--derivation` says that the file
        // itself is meant. For other paths, the option means their derivers.
        let (derivations, others): (Vec<&StorePath>, Vec<&StorePath>) =
            paths.iter().partition(|path| path.is_derivation());
        let mut infos = Vec::new();
        for (paths, kind) in [(others, &[][..]), (derivations, &["--derivation"])] {
            for batch in paths.chunks(PATHS_PER_CALL) {
                infos.extend(self.path_info_batch(batch, closure, kind).await?);
            }
        }
        infos.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        infos.dedup_by(|a, b| a.path == b.path);
        let lost = paths.iter().find(|path| infos.binary_search_by(|info| info.path.cmp(path)).is_err());
        match lost {
            Some(path) => Err(Error::NotDescribed { path: path.to_absolute(self.store_dir()) }),
            None => Ok(infos),
        }
    }

    /// Those of `paths` that are not valid in the store.
    pub async fn invalid_paths(&self, paths: &[StorePath]) -> Result<BTreeSet<StorePath>> {
        // This old command is in every version of Nix, and the only one that names all of them.
        let mut program = self.program.clone();
        program.push("-store");
        let paths: Vec<&StorePath> = paths.iter().collect();
        let mut invalid = BTreeSet::new();
        for batch in paths.chunks(PATHS_PER_CALL) {
            let mut command = tokio::process::Command::new(&program);
            command.args(["--check-validity", "--print-invalid"]);
            let output = self.run(command, batch, &program).await?;
            if !output.status.success() {
                return Err(failed("nix-store --check-validity", &output));
            }
            for line in String::from_utf8_lossy(&output.stdout).lines() {
                let path = StorePath::parse_absolute(self.store_dir(), line);
                let not_a_path = |source| Error::NotAStorePath { path: PathBuf::from(line), source };
                invalid.insert(path.map_err(not_a_path)?);
            }
        }
        Ok(invalid)
    }

    /// Whether Nix obeys settings of this user that only trusted users may make. Old versions do
    /// not say; then the answer is no.
    pub async fn trusts_this_user(&self) -> bool {
        // The new and the old name of the command.
        for name in ["info", "ping"] {
            let mut command = tokio::process::Command::new(&self.program);
            command.args(["--extra-experimental-features", "nix-command", "store", name, "--json"]);
            let Ok(output) = self.run(command, &[], &self.program).await else { return false };
            if output.status.success() {
                return is_trusted(&output.stdout);
            }
        }
        false
    }

    /// The outputs of a derivation, as absolute paths.
    pub async fn outputs_of(&self, derivation: &str) -> Result<Vec<String>> {
        let mut program = self.program.clone();
        program.push("-store");
        let path = StorePath::parse_absolute(self.store_dir(), derivation)
            .map_err(|source| Error::NotAStorePath { path: PathBuf::from(derivation), source })?;
        let mut command = tokio::process::Command::new(&program);
        command.args(["--query", "--outputs"]);
        let output = self.run(command, &[&path], &program).await?;
        if !output.status.success() {
            return Err(failed("nix-store --query --outputs", &output));
        }
        Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
    }

    /// Whether Nix keeps build traces: its feature `ca-derivations` is on.
    pub fn has_traces(&self) -> bool {
        self.has_traces
    }

    /// The build traces that Nix has of these outputs. Nix tells a trace of a derivation that is in
    /// the store, and of no other.
    pub async fn build_traces(&self, outputs: &[AddressedOutput]) -> Result<Vec<BuildTrace>> {
        let derivations: BTreeSet<StorePath> =
            outputs.iter().map(|output| output.derivation.clone()).collect();
        let derivations: Vec<StorePath> = derivations.into_iter().collect();
        let invalid = self.invalid_paths(&derivations).await?;
        let outputs: Vec<&AddressedOutput> = outputs
            .iter()
            .filter(|output| !invalid.contains(&output.derivation) && output.output().is_some())
            .collect();
        let (mut traces, mut without): (Vec<BuildTrace>, usize) = (Vec::new(), 0);
        let mut batches: Vec<&[&AddressedOutput]> = outputs.chunks(OUTPUTS_PER_CALL).rev().collect();
        while let Some(batch) = batches.pop() {
            match self.traces_of_batch(batch).await? {
                Some(found) => traces.extend(found),
                None if batch.len() > 1 => {
                    let (first, rest) = batch.split_at(batch.len() / 2);
                    batches.extend([rest, first]);
                }
                // It has none. Where many have none, each more costs several calls.
                None => {
                    without += 1;
                    if without == OUTPUTS_WITHOUT_MAX {
                        tracing::debug!("many outputs have no build trace; the others are not asked for");
                        break;
                    }
                }
            }
        }
        let paths: BTreeSet<&StorePath> = outputs.iter().map(|output| &output.path).collect();
        traces.retain(|trace| paths.contains(&trace.out_path));
        Ok(traces)
    }

    /// The traces of these outputs, if Nix tells of all of them.
    async fn traces_of_batch(&self, batch: &[&AddressedOutput]) -> Result<Option<Vec<BuildTrace>>> {
        // Since 2.13, an output is named. Before, a derivation stands for its outputs.
        for is_named in [true, false] {
            let mut command = tokio::process::Command::new(&self.program);
            command.args(["--extra-experimental-features", "nix-command ca-derivations"]);
            command.args(["realisation", "info", "--json", "--option", "substitute", "false", "--"]);
            command.args(batch.iter().map(|output| {
                let derivation = output.derivation.to_absolute(self.store_dir());
                match output.output().filter(|_| is_named) {
                    Some(name) => format!("{derivation}^{name}"),
                    None => derivation,
                }
            }));
            let output = self.run(command, &[], &self.program).await?;
            // A `nix` that was killed has told nothing.
            if output.status.code().is_none() {
                return Err(failed("nix realisation info", &output));
            }
            if !output.status.success() {
                continue;
            }
            let traces = BuildTrace::parse_listed(&output.stdout).map_err(Error::NixTraces)?;
            if !traces.is_empty() {
                return Ok(Some(traces));
            }
        }
        Ok(None)
    }

    async fn path_info_batch(
        &self,
        paths: &[&StorePath],
        closure: bool,
        kind: &[&str],
    ) -> Result<Vec<PathInfo>> {
        let mut output = self.run_path_info(paths, closure, kind).await?;
        // Old versions do not know `--json-format`, and new versions announce that they will
        // require it.
        if !output.status.success() && String::from_utf8_lossy(&output.stderr).contains("--json-format") {
            let options = [&["--json-format", "1"], kind].concat();
            output = self.run_path_info(paths, closure, &options).await?;
        }
        if !output.status.success() {
            let error = failed("nix path-info", &output);
            if let Error::NixFailed { stderr, .. } = &error
                && let Some(path) = invalid_path(stderr)
            {
                return Err(Error::InvalidPath { path: path.to_owned() });
            }
            return Err(error);
        }
        PathInfo::parse_all(&output.stdout)
    }

    async fn run_path_info(&self, paths: &[&StorePath], closure: bool, options: &[&str]) -> Result<Output> {
        let mut command = tokio::process::Command::new(&self.program);
        command.args(["--extra-experimental-features", "nix-command", "path-info", "--json"]).args(options);
        // A path that is not here must not be fetched only to be pushed.
        command.args(["--option", "substitute", "false"]);
        if closure {
            command.arg("--recursive");
        }
        command.arg("--");
        self.run(command, paths, &self.program).await
    }

    /// Runs a command about `paths`, which become its last arguments.
    async fn run(
        &self,
        mut command: tokio::process::Command,
        paths: &[&StorePath],
        program: &OsStr,
    ) -> Result<Output> {
        command.args(paths.iter().map(|path| path.to_absolute(self.store_dir())));
        command.stdin(Stdio::null()).kill_on_drop(true);
        command.output().await.map_err(|source| {
            let program = program.to_string_lossy().into_owned();
            match source.kind() {
                io::ErrorKind::NotFound => Error::NixMissing { program },
                _ => Error::NixRun { program, source },
            }
        })
    }
}

/// The error for a command that ended badly, with its last words.
fn failed(command: &'static str, output: &Output) -> Error {
    let start = output.stderr.len().saturating_sub(STDERR_BYTES_MAX);
    let stderr = String::from_utf8_lossy(&output.stderr[start..]).trim().to_owned();
    Error::NixFailed { command, status: output.status.to_string(), stderr }
}

/// Reads what `nix store info --json` printed: `trusted` is a flag, or 0 or 1.
fn is_trusted(json: &[u8]) -> bool {
    let answer: serde_json::Value = serde_json::from_slice(json).unwrap_or_default();
    answer["trusted"] == true || answer["trusted"] == 1
}

/// Where installations for a whole machine put `nix`. A service such as the Nix daemon often has a
/// search path without it.
const USUAL_PROGRAMS: &[&str] = &["/nix/var/nix/profiles/default/bin/nix", "/run/current-system/sw/bin/nix"];

/// The program `nix`: the one on the search path, else the one of the user's own profile or of the
/// machine's installation.
pub fn nix_program(variables: Variables<'_>) -> OsString {
    nix_program_in(variables, USUAL_PROGRAMS)
}

fn nix_program_in(variables: Variables<'_>, usual: &[&str]) -> OsString {
    let folders = variables("PATH").unwrap_or_default();
    if std::env::split_paths(&folders).any(|folder| folder.join("nix").is_file()) {
        return "nix".into();
    }
    let own = own_profiles(variables).into_iter().map(|profile| profile.join("bin/nix"));
    let mut installed = own.chain(usual.iter().map(PathBuf::from));
    installed.find(|program| program.is_file()).map_or_else(|| "nix".into(), PathBuf::into_os_string)
}

/// The profiles of a user: the one in the home, and the one of Nix's setting
/// `use-xdg-base-directories`. A single-user installation puts `nix` there.
fn own_profiles(variables: Variables<'_>) -> Vec<PathBuf> {
    let absolute = |name| variables(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let home = absolute("HOME");
    let state = absolute("XDG_STATE_HOME").or_else(|| home.as_ref().map(|home| home.join(".local/state")));
    let in_home = home.map(|home| home.join(".nix-profile"));
    in_home.into_iter().chain(state.map(|state| state.join("nix/profile"))).collect()
}

/// The path in `error: path '/nix/store/…' is not valid`, the error of Nix for a closure.
fn invalid_path(stderr: &str) -> Option<&str> {
    let (before, _) = stderr.split_once("' is not valid")?;
    before.rsplit_once("path '").map(|(_, path)| path)
}

/// Walks down an absolute path until it enters one of `folders`, or to its first symbolic link,
/// which the result replaces.
fn step(folders: &[PathBuf], path: &Path) -> io::Result<Step> {
    let in_store = |rest: &Path| match rest.components().next() {
        // `..` right after the store leads out of it again.
        Some(Component::Normal(_)) if leaves(rest) => Some(Step::Outside),
        Some(Component::Normal(base_name)) => Some(Step::InStore(base_name.to_owned())),
        _ => None,
    };
    // The names of paths hold even where no such folder exists, or where it is a link.
    if let Some(step) = folders.iter().filter_map(|folder| path.strip_prefix(folder).ok()).find_map(in_store)
    {
        return Ok(step);
    }
    let mut walked = PathBuf::new();
    let mut components = path.components();
    while let Some(component) = components.next() {
        match component {
            Component::CurDir => continue,
            // The walked part has no links in it, so `..` is its parent.
            Component::ParentDir => {
                walked.pop();
                continue;
            }
            other => walked.push(other),
        }
        if folders.contains(&walked)
            && let Some(step) = in_store(components.as_path())
        {
            return Ok(step);
        }
        if std::fs::symlink_metadata(&walked)?.is_symlink() {
            let target = std::fs::read_link(&walked)?;
            walked.pop();
            return Ok(Step::Link(walked.join(target).join(components.as_path())));
        }
    }
    Ok(Step::Outside)
}

/// Whether a relative path has enough `..` to leave its own first component.
fn leaves(path: &Path) -> bool {
    let mut depth = 0_usize;
    for component in path.components() {
        match component {
            Component::ParentDir if depth <= 1 => return true,
            Component::ParentDir => depth -= 1,
            _ => depth += 1,
        }
    }
    false
}

enum Step {
    InStore(OsString),
    Link(PathBuf),
    Outside,
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    const C: &str = "f22352qy5d2vfxv22w7q3n7gz1ia47nx-c";
    const B: &str = "az2abhwyv78n2ax1c04abka45ygrwfgh-b";

    /// A store folder in a temporary folder, with a package and a path that links to the package.
    fn store() -> (tempfile::TempDir, NixStore, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let store = root.join("store");
        std::fs::create_dir_all(store.join(C).join("bin")).unwrap();
        std::fs::write(store.join(C).join("bin/hello"), "hi").unwrap();
        symlink(store.join(C), store.join(B)).unwrap();
        (folder, NixStore::new("nix", store.to_str().unwrap().parse().unwrap()), root)
    }

    #[test]
    fn arguments_lead_into_the_store() {
        let (_folder, store, root) = store();
        symlink(root.join("store").join(C), root.join("result")).unwrap();
        symlink("result", root.join("again")).unwrap();
        symlink("../again/bin", root.join("store/../inner")).unwrap();
        symlink(root.join("store").join(C).join("bin"), root.join("bin")).unwrap();
        let resolve = |argument: &Path| store.resolve(argument).map(|path| path.to_string());
        for argument in [
            "store/f22352qy5d2vfxv22w7q3n7gz1ia47nx-c",
            "store/f22352qy5d2vfxv22w7q3n7gz1ia47nx-c/bin/hello",
            "result",
            "result/",
            "again",
            "result/bin/hello",
            "again/bin/../bin",
            "bin/hello",
            "bin",
            "store/../result",
            "./result/.",
        ] {
            assert_eq!(resolve(&root.join(argument)).unwrap(), C, "{argument}");
        }
        // A store path that is a link to another one stands for itself.
        assert_eq!(resolve(&root.join("store").join(B)).unwrap(), B);
        symlink(root.join("store").join(B), root.join("to-b")).unwrap();
        assert_eq!(resolve(&root.join("to-b")).unwrap(), B);
        // Nix decides whether the path exists.
        assert_eq!(resolve(&root.join("store").join(B.replace('b', "c"))).unwrap(), B.replace('b', "c"));
    }

    #[test]
    fn arguments_that_lead_elsewhere_are_refused() {
        let (_folder, store, root) = store();
        std::fs::write(root.join("plain"), "").unwrap();
        symlink("loop", root.join("loop")).unwrap();
        let resolve = |argument: &str| store.resolve(&root.join(argument));
        assert!(matches!(resolve("plain"), Err(Error::NotInStore { .. })));
        assert!(matches!(resolve("store"), Err(Error::NotInStore { .. })));
        assert!(matches!(resolve("store/../plain"), Err(Error::NotInStore { .. })));
        assert!(matches!(resolve(&format!("store/{C}/../{B}")), Err(Error::NotInStore { .. })));
        assert!(matches!(resolve("nowhere"), Err(Error::ResolvePath { .. })));
        assert!(matches!(resolve("loop"), Err(Error::ResolvePath { .. })));
        assert!(matches!(resolve("store/.links"), Err(Error::NotAStorePath { .. })));
        assert!(matches!(resolve("nixpkgs#hello"), Err(Error::ResolvePath { .. })));
    }

    /// Every way to name a path of a store whose files are elsewhere.
    #[test]
    fn arguments_lead_into_a_store_with_a_root_of_its_own() {
        let (_folder, mut store, root) = store();
        // The files are in `store`; the names say `/nix/store`, which does not exist, or is a link.
        store.location.store_dir = StoreDir::default();
        symlink(format!("/nix/store/{C}"), root.join("result")).unwrap();
        symlink(format!("/nix/store/{C}/bin"), root.join("bin")).unwrap();
        symlink(&root, root.join("data")).unwrap();
        let by_link = NixStore::new("nix", root.join("data/store").to_str().unwrap().parse().unwrap());
        for argument in [
            format!("/nix/store/{C}"),
            format!("/nix/store/{C}/bin/hello"),
            format!("/nix/./store/{C}/bin/.."),
            format!("{}/store/{C}/bin", root.display()),
            format!("{}/data/store/{C}", root.display()),
            format!("{}/result", root.display()),
            format!("{}/bin/hello", root.display()),
        ] {
            assert_eq!(store.resolve(Path::new(&argument)).unwrap().to_string(), C, "{argument}");
        }
        for argument in ["/nix/store", "/nix/store/..", "/nowhere"] {
            assert!(store.resolve(Path::new(argument)).is_err(), "{argument}");
        }
        // The folder in the names is a link itself, as on machines where `/nix` is one.
        for argument in ["store", "data/store", "data/data/store"] {
            let argument = root.join(argument).join(C).join("bin");
            assert_eq!(by_link.resolve(&argument).unwrap().to_string(), C, "{argument:?}");
        }
    }

    /// A program in place of `nix`: it writes its arguments to a file, then runs the script.
    fn fake_nix(folder: &Path, script: &str) -> NixStore {
        let program = folder.join("fake-nix");
        let calls = folder.join("calls");
        std::fs::write(&program, format!("#!/bin/sh\necho \"$*\" >> {}\n{script}\n", calls.display()))
            .unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        NixStore::new(program, StoreDir::default())
    }

    #[tokio::test]
    async fn nix_is_asked_once_for_a_batch_and_failures_keep_its_words() {
        let folder = tempfile::tempdir().unwrap();
        let data = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/path-info-2.8.json");
        let store = fake_nix(folder.path(), &format!("cat {data}"));
        let paths: Vec<StorePath> = vec![C.parse().unwrap(), B.parse().unwrap()];
        let infos = store.path_infos(&paths, true).await.unwrap();
        assert_eq!(infos.len(), 5);
        assert_eq!(
            std::fs::read_to_string(folder.path().join("calls")).unwrap(),
            format!(
                "--extra-experimental-features nix-command path-info --json --option substitute false --recursive -- /nix/store/{C} /nix/store/{B}\n"
            )
        );

        let store = fake_nix(folder.path(), "echo 'error: no daemon' >&2; exit 3");
        let error = store.path_infos(&paths, false).await.unwrap_err();
        assert!(matches!(&error, Error::NixFailed { stderr, .. } if stderr == "error: no daemon"), "{error}");

        let words = format!("echo \"error: path '/nix/store/{C}' is not valid\" >&2; exit 1");
        let error = fake_nix(folder.path(), &words).path_infos(&paths, true).await.unwrap_err();
        assert!(matches!(&error, Error::InvalidPath { path } if path.ends_with(C)), "{error}");

        let store = fake_nix(folder.path(), "echo nonsense");
        assert!(matches!(store.path_infos(&paths, false).await, Err(Error::PathInfoJson(_))));
    }

    const DRV: &str = "f22352qy5d2vfxv22w7q3n7gz1ia47nx-c.drv";

    #[tokio::test]
    async fn derivations_are_asked_for_by_themselves() {
        let folder = tempfile::tempdir().unwrap();
        let entry = |name: &str| {
            format!(
                r#""/nix/store/{name}":{{"narHash":"sha256:{}","narSize":1,"references":[]}}"#,
                "0".repeat(64)
            )
        };
        let script = format!(
            "case \"$*\" in *--derivation*) echo '{{{}}}';; *) echo '{{{},{}}}';; esac",
            entry(DRV),
            entry(B),
            entry(C)
        );
        let store = fake_nix(folder.path(), &script);
        let paths: Vec<StorePath> = [C, DRV, B].iter().map(|name| name.parse().unwrap()).collect();
        let infos = store.path_infos(&paths, true).await.unwrap();
        assert_eq!(infos.len(), 3);
        let calls = std::fs::read_to_string(folder.path().join("calls")).unwrap();
        let calls: Vec<&str> = calls.lines().collect();
        assert!(calls[0].ends_with(&format!("-- /nix/store/{C} /nix/store/{B}")), "{calls:?}");
        assert!(calls[1].contains("--derivation") && calls[1].ends_with(&format!("-- /nix/store/{DRV}")));
    }

    /// Whatever `nix` leaves out, the caller learns about it.
    #[tokio::test]
    async fn every_requested_path_is_in_the_answer() {
        let data = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/path-info-2.8.json");
        for (answer, lost) in [
            (format!("cat {data}"), DRV),
            ("echo '[]'".to_owned(), C),
            ("echo '{}'".to_owned(), C),
            (r#"echo '{"info":{},"storeDir":"/nix/store","version":2}'"#.to_owned(), B),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let store = fake_nix(folder.path(), &answer);
            for closure in [true, false] {
                let error = store.path_infos(&[lost.parse().unwrap()], closure).await.unwrap_err();
                assert!(matches!(&error, Error::NotDescribed { path } if path.ends_with(lost)), "{error}");
            }
        }
    }

    #[tokio::test]
    async fn the_settings_of_nix_say_where_the_files_are_and_how_names_are_read() {
        for (settings, real, case_hack) in [
            (
                r#"{"store":{"value":"local?root=/r"},"use-case-hack":{"value":true}}"#,
                "/r/nix/store",
                CaseHack::Strip,
            ),
            (r#"{"store":{"value":"local"},"use-case-hack":{"value":false}}"#, "/nix/store", CaseHack::Keep),
            (r#"{"store":{"value":"daemon"}}"#, "/nix/store", CaseHack::default()),
            ("{}", "/nix/store", CaseHack::default()),
        ] {
            let folder = tempfile::tempdir().unwrap();
            let program = fake_nix(folder.path(), &format!("echo '{settings}'")).program;
            let store = NixStore::open_with(program, &|_| None).await.unwrap();
            assert_eq!((store.real_dir(), store.case_hack()), (Path::new(real), case_hack), "{settings}");
        }
    }

    fn output(path: &str, derivation: &str) -> AddressedOutput {
        let [path, derivation] = [path, derivation].map(|text| text.parse().unwrap());
        AddressedOutput { path, derivation, is_root: true, is_new: true }
    }

    /// A `nix` of either age. It knows a trace of every derivation but one, for which it fails.
    #[tokio::test]
    async fn traces_are_told_as_far_as_nix_has_them() {
        const SCRIPT: &str = r#"
            case "$*" in *REFUSED*|*03-package.drv*) exit 1;; esac
            list=
            for word in "$@"; do
                case "$word" in
                    *KNOWN)
                        number=${word#/nix/store/}
                        number=${number%%-*}
                        list="$list,{\"id\":\"sha256:$number$number!out\",\"outPath\":\"$number-package\"}";;
                esac
            done
            echo "[${list#,}]"
        "#;
        let name = |number: usize, rest: &str| format!("{number:032}-package{rest}");
        let outputs: Vec<AddressedOutput> =
            (0..5).map(|number| output(&name(number, ""), &name(number, ".drv"))).collect();
        for (refused, known) in [(".drv^", "-package.drv"), ("nothing", "-package.drv^out")] {
            let folder = tempfile::tempdir().unwrap();
            let store = fake_nix(folder.path(), &SCRIPT.replace("REFUSED", refused).replace("KNOWN", known));
            std::fs::copy("/bin/true", folder.path().join("fake-nix-store")).unwrap();
            let traces = store.build_traces(&outputs).await.unwrap();
            let found: Vec<String> = traces.iter().map(|trace| trace.out_path.to_string()).collect();
            assert_eq!(found, [0, 1, 2, 4].map(|number| name(number, "")), "{known}");
        }
    }

    #[test]
    fn an_output_is_named_by_the_end_of_its_path() {
        let hash = "1".repeat(32);
        for (path, expected) in [
            ("pair-1.0", Some("out")),
            ("pair-1.0-lib", Some("lib")),
            ("pair-1.0-lib-static", Some("lib-static")),
            ("pair-1.0x", None),
            ("pair", None),
        ] {
            let output = output(&format!("{hash}-{path}"), &format!("{hash}-pair-1.0.drv"));
            assert_eq!(output.output(), expected, "{path}");
        }
    }

    #[tokio::test]
    async fn a_nix_that_insists_on_a_format_gets_one() {
        let folder = tempfile::tempdir().unwrap();
        let data = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/path-info-2.34-format-1.json");
        let script = format!(
            "case \"$*\" in *'--json-format 1'*) cat {data};; *) echo \"error: '--json' needs '--json-format'\" >&2; exit 1;; esac"
        );
        let store = fake_nix(folder.path(), &script);
        assert_eq!(store.path_infos(&[C.parse().unwrap()], false).await.unwrap().len(), 3);
    }

    #[test]
    fn only_a_clear_answer_means_trust() {
        for (json, expected) in [
            (r#"{"trusted":1,"url":"daemon"}"#, true),
            (r#"{"trusted":true}"#, true),
            (r#"{"trusted":0}"#, false),
            (r#"{"trusted":false}"#, false),
            (r#"{"url":"daemon"}"#, false),
            ("Store URL: daemon", false),
        ] {
            assert_eq!(is_trusted(json.as_bytes()), expected, "{json}");
        }
    }

    #[test]
    fn nix_is_found_where_installations_put_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().to_str().unwrap().to_owned();
        let (on_path, usual) = (folder.path().join("nix"), folder.path().join("usual"));
        let found = |with_state: bool| {
            let variables = |name: &str| match name {
                "PATH" => Some(format!("/nowhere:{path}")),
                "HOME" => Some(format!("{path}/home")),
                "XDG_STATE_HOME" => with_state.then(|| format!("{path}/state")),
                _ => None,
            };
            nix_program_in(&variables, &["/nowhere/nix", usual.to_str().unwrap()])
        };
        assert_eq!(found(false), "nix", "the error names what was looked for");
        std::fs::write(&usual, "").unwrap();
        assert_eq!(found(false), usual.as_os_str());
        // Services of a user have neither profile on their search path.
        for (profile, with_state) in [
            ("state/nix/profile", true),
            ("home/.local/state/nix/profile", false),
            ("home/.nix-profile", false),
        ] {
            let program = folder.path().join(profile).join("bin/nix");
            std::fs::create_dir_all(program.parent().unwrap()).unwrap();
            std::fs::write(&program, "").unwrap();
            assert_eq!(found(with_state), program.as_os_str());
        }
        std::fs::write(&on_path, "").unwrap();
        assert_eq!(found(true), "nix");
    }

    #[tokio::test]
    async fn a_missing_nix_is_named() {
        let store = NixStore::new("/nowhere/nix", StoreDir::default());
        let error = store.path_infos(&[C.parse().unwrap()], true).await.unwrap_err();
        assert!(matches!(error, Error::NixMissing { .. }));
        assert!(error.to_string().contains("/nowhere/nix"));
    }
}
