//! `dormer hook`: Nix's post-build hook.
//!
//! Nix waits for its hook after each build, and a hook that fails stops the build. So this command
//! starts no runtime, opens no connection, asks nobody, and ends with 0 whatever happens. Its start
//! goes around the other commands (`is_early`).

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::process::ExitCode;
use std::time::SystemTime;

use clap::{Args, Parser};
use dormer_client::queue::{QueueEntry, QueuedCache, Spool};
use dormer_client::{CacheRef, Variables, process_variables};
use dormer_nix::StorePath;

use crate::context::{Context, EndpointArgs};
use crate::error::{Error, Result};
use crate::printer::{Level, Printer};
use crate::queue_folder::QueueDirArgs;

/// Queue what Nix has built, as its post-build hook
///
/// Writes the paths of $OUT_PATHS into the queue and returns: nothing is pushed here. `dormer queue
/// drain --watch` pushes what is queued, and `dormer install-hook` sets both up. Without a CACHE,
/// the caches of [queue] in the settings get the builds.
///
/// Never fails a build: the exit code is always 0. What could not be queued is reported on standard
/// error, which Nix shows with the build, and counted (`dormer queue list`).
///
/// Example of a hook (nix.conf: post-build-hook = /etc/nix/push):
///   #!/bin/sh
///   exec dormer hook lab:main
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct HookArgs {
    /// [SERVER:]CACHE[@URL]; the URL is the server's, as `dormer install-hook` writes it
    #[arg(value_name = "CACHE")]
    caches: Vec<QueuedCache>,
    #[command(flatten)]
    queue: QueueDirArgs,
    #[command(flatten)]
    pub(super) server: EndpointArgs,
}

/// The command line of the hook alone: the whole one takes longer to build than the hook may take.
#[derive(Debug, Parser)]
#[command(name = "dormer hook", disable_help_flag = true)]
struct HookCommandLine {
    #[command(flatten)]
    args: HookArgs,
}

/// Whether Nix runs this process as a hook. `--help` comes from a person, and needs the whole
/// command line.
pub(crate) fn is_early(words: &[OsString]) -> bool {
    let is_help = |word: &OsString| word == "-h" || word == "--help";
    words.get(1).is_some_and(|word| word == "hook") && !words.iter().any(is_help)
}

/// The whole process of a hook.
pub(crate) fn run_early(words: &[OsString]) -> ExitCode {
    let printer = Printer::new(Level::Default, false, false);
    let hook = || match HookCommandLine::try_parse_from(&words[1..]) {
        Ok(line) => run(&line.args, &printer),
        Err(error) => printer.error(&format!("no build is queued: {}", error.to_string().trim_end())),
    };
    // A panic has printed itself.
    let _ = catch_unwind(AssertUnwindSafe(hook));
    ExitCode::SUCCESS
}

/// Queues the build of the environment, and reports why not.
pub(super) fn run(args: &HookArgs, printer: &Printer) {
    let Err(error) = enqueue(args, &process_variables) else { return };
    printer.error(&format!("the build is not queued for the cache: {}", error.chain()));
    for hint in error.hints() {
        printer.hint(&hint);
    }
    if let Ok(spool) = args.queue.folder(&process_variables).and_then(|folder| open(&folder)) {
        spool.count_refused(&error.chain(), SystemTime::now());
    }
}

fn enqueue(args: &HookArgs, variables: Variables<'_>) -> Result<()> {
    let named = &args.caches;
    let chosen = if named.is_empty() { chosen_caches(&[])? } else { Vec::new() };
    let now = SystemTime::now();
    let folder = args.queue.folder(variables)?;
    let spool = open(&folder)?;
    // The names of another user may mean other servers here.
    let is_own =
        fs::metadata(&folder).is_ok_and(|folder| folder.uid() == rustix::process::geteuid().as_raw());
    let is_told = is_own || args.server.endpoint.is_some();
    let with_server = |cache: &CacheRef| Context::queued_cache_if_known(cache, &args.server, variables);
    let caches = named.iter().map(|cache| match cache.endpoint {
        None if is_told => with_server(&cache.cache),
        _ => cache.clone(),
    });
    let caches: Vec<QueuedCache> = caches.chain(chosen.iter().map(with_server)).collect();
    let paths = variables("OUT_PATHS").unwrap_or_default();
    let paths = paths.split_whitespace().map(checked).collect::<Result<Vec<String>>>()?;
    let entry = match (paths.is_empty(), variables("DRV_PATH")) {
        (false, _) => QueueEntry::new(&caches, paths, now),
        // Nix 2.8 leaves OUT_PATHS empty.
        (true, Some(derivation)) => QueueEntry::of_derivation(&caches, checked(&derivation)?, now),
        (true, None) => {
            return Err(Error::usage(
                "neither OUT_PATHS nor DRV_PATH is set",
                "Nix sets them for its post-build-hook; by hand: OUT_PATHS=\"/nix/store/…\" dormer hook CACHE",
            ));
        }
    };
    spool.enqueue(&entry, now)?;
    Ok(())
}

/// Opens the queue. The daemon of Nix runs its hook as root, and must not make the queue of another
/// user, which that user's own processes could not read.
fn open(folder: &Path) -> Result<Spool> {
    let user = rustix::process::geteuid();
    if user.is_root() {
        refuse_to_make(folder, user.as_raw())?;
    }
    Ok(Spool::open(folder)?)
}

/// Refuses a queue that is not there yet and would be in a folder of another user than `user`.
fn refuse_to_make(folder: &Path, user: u32) -> Result<()> {
    if Spool::is_made(folder) {
        return Ok(());
    }
    let owner = folder.ancestors().find_map(|place| fs::metadata(place).ok()).map(|place| place.uid());
    match owner.filter(|owner| *owner != user) {
        None => Ok(()),
        Some(owner) => Err(Error::usage(
            format!("user {owner} has no queue in {} yet", folder.display()),
            "as that user, `dormer install-hook` and `dormer queue list` make it",
        )),
    }
}

/// The named caches, else those of the settings.
pub(super) fn chosen_caches(named: &[CacheRef]) -> Result<Vec<CacheRef>> {
    if !named.is_empty() {
        return Ok(named.to_vec());
    }
    let caches = Context::client_settings()?.settings.queue.caches;
    if caches.is_empty() {
        return Err(Error::usage(
            "no cache is named",
            "name one, or set caches under [queue] in the settings (/etc/dormer/config.toml for services)",
        ));
    }
    Ok(caches)
}

/// An absolute store path, whatever the store's folder: the drainer knows it.
fn checked(text: &str) -> Result<String> {
    let base_name = text.rsplit_once('/').filter(|_| text.starts_with('/')).map(|(_, base_name)| base_name);
    match base_name.map(str::parse::<StorePath>) {
        Some(Ok(_)) => Ok(text.to_owned()),
        _ => Err(Error::Usage { problem: format!("{text:?} is not a store path"), hint: None }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "/nix/store/f22352qy5d2vfxv22w7q3n7gz1ia47nx-a";

    fn words(line: &str) -> Vec<OsString> {
        line.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn only_a_hook_goes_around_the_other_commands() {
        for (line, expected) in [
            ("dormer hook main", true),
            ("dormer hook", true),
            ("dormer hook --help", false),
            ("dormer push hook", false),
            ("dormer", false),
        ] {
            assert_eq!(is_early(&words(line)), expected, "{line}");
        }
    }

    /// Queues with these variables, and gives the entries.
    fn queued(variables: &[(&str, &str)], caches: &str) -> (Result<()>, Vec<QueueEntry>) {
        let folder = tempfile::tempdir().unwrap();
        let line = format!("hook {caches} --queue-dir {}", folder.path().join("q").display());
        let args = HookCommandLine::try_parse_from(words(&line)).unwrap().args;
        let done = enqueue(&args, &|name| {
            variables.iter().find(|(other, _)| *other == name).map(|(_, value)| (*value).to_owned())
        });
        let entries = Spool::open(folder.path().join("q")).unwrap().entries().unwrap();
        (done, entries.into_iter().filter_map(|(_, entry)| entry.ok()).collect())
    }

    #[test]
    fn the_paths_of_a_build_are_one_entry_for_all_caches() {
        let out = format!("{PATH} {PATH}-lib");
        let (done, entries) = queued(&[("OUT_PATHS", &out), ("DRV_PATH", "/x")], "main lab:team");
        done.unwrap();
        assert_eq!(entries.len(), 1);
        assert_eq!(entries[0].paths, [PATH.to_owned(), format!("{PATH}-lib")]);
        assert_eq!(entries[0].caches.len(), 2);
    }

    /// Whatever says where a cache is, the entry keeps it: the process that pushes has neither the
    /// variables nor, perhaps, the settings of the hook.
    #[test]
    fn an_entry_names_the_server_that_its_cache_has_now() {
        let folder = tempfile::tempdir().unwrap();
        let settings = folder.path().join("dormer/config.toml");
        fs::create_dir_all(settings.parent().unwrap()).unwrap();
        let text = "default-server = \"lab\"\n[servers.lab]\nendpoint = \"http://lab\"\ntoken-file = \"gone\"\n\
                    [servers.two]\nendpoint = \"http://two\"\n";
        fs::write(&settings, text).unwrap();
        let home = ("XDG_CONFIG_HOME", folder.path().to_str().unwrap());
        let variable = ("DORMER_ENDPOINT", "http://here:8080");
        for (caches, variables, expected) in [
            ("main two:team", &[home][..], "main@http://lab/ two:team@http://two/"),
            ("main two:team", &[home, variable], "main@http://here:8080/ two:team@http://two/"),
            ("main@http://there", &[home, variable], "main@http://there/"),
            (
                "main two:team other@http://there --endpoint http://flag",
                &[home, variable],
                "main@http://flag/ other@http://there/ two:team@http://flag/",
            ),
            // The drainer may know more.
            ("other:main", &[home], "other:main"),
            ("main", &[("XDG_CONFIG_HOME", "/nowhere")], "main"),
        ] {
            let variables: Vec<(&str, &str)> =
                [("OUT_PATHS", PATH)].iter().chain(variables).copied().collect();
            let (done, entries) = queued(&variables, caches);
            done.unwrap();
            let names: Vec<String> = entries[0].caches.keys().map(ToString::to_string).collect();
            assert_eq!(names.join(" "), expected);
        }
    }

    #[test]
    fn a_nix_that_names_no_outputs_names_the_derivation() {
        let derivation = format!("{PATH}.drv");
        let (done, entries) = queued(&[("DRV_PATH", &derivation)], "main");
        done.unwrap();
        assert_eq!(
            (entries[0].derivation.as_deref(), entries[0].paths.len()),
            (Some(derivation.as_str()), 0)
        );
    }

    #[test]
    fn the_queue_of_another_user_is_used_and_never_made() {
        let folder = tempfile::tempdir().unwrap();
        let queue = folder.path().join("state/queue");
        let own = rustix::process::geteuid().as_raw();
        assert!(refuse_to_make(&queue, own + 1).is_err());
        refuse_to_make(&queue, own).unwrap();
        Spool::open(&queue).unwrap();
        refuse_to_make(&queue, own + 1).unwrap();
    }

    #[test]
    fn what_is_no_store_path_is_not_queued() {
        for out in ["result", "/nix/store/x", "/nix/store/", "/"] {
            let (done, entries) = queued(&[("OUT_PATHS", &format!("{PATH} {out}"))], "main");
            assert!(done.is_err() && entries.is_empty(), "{out}");
        }
        assert!(queued(&[], "main").0.is_err());
    }
}
