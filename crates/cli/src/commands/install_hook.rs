//! `dormer install-hook`: Nix's post-build hook and the service that pushes, written and taken
//! back.
//!
//! Three files: a line in nix.conf between marks, a script that Nix runs, and the unit of a service
//! manager. The script and the unit are wholly ours and begin with a mark.

use std::fs;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use dormer_client::queue::{QueuedCache, Spool};
use dormer_client::{
    CacheRef, ENDPOINT_VARIABLE, MACHINE_SETTINGS, NixConfig, NixStore, nix_program, process_variables,
};

use super::hook::chosen_caches;
use super::nix_settings::{conf_for_additions, read_if_there, refuse_managed, show, write_whole};
use crate::context::{Context, EndpointArgs};
use crate::error::{Error, Result};
use crate::nix_files::{MarkedFile, changes, find_nix_setting};
use crate::queue_folder::QueueDirArgs;

/// In each file that is wholly ours.
const MARK: &str = "Made by `dormer install-hook`; `dormer install-hook --undo` removes it.";

/// What `--undo` leaves in the place of the script. The daemon of Nix reads nix.conf when it
/// starts, and a build when it begins. Each calls its hook until it ends, and a build whose hook is
/// gone fails.
const STUB: &str =
    "#!/bin/sh\n# Left by `dormer install-hook --undo`: a Nix that is running may still call this.\nexit 0\n";

/// Name of the lines in nix.conf.
const BLOCK: &str = "post-build-hook";

const SETTING: &str = "post-build-hook";

/// Let Nix queue every build, and a service push what is queued
///
/// Writes a post-build-hook line into nix.conf, the script that it names, and a unit of systemd (on
/// macOS, a job of launchd) that runs `dormer queue drain --watch`. The changes appear on standard
/// output, with --dry-run nothing else happens, and --undo takes them back, up to a script that
/// does nothing, because a Nix that is running may still call it. Refuses to replace another hook.
/// The commands that start the service are printed and not run. The script names the address of
/// each server: run this command again if a server moves.
///
/// Examples:
///   sudo dormer install-hook lab:main --system
///   dormer install-hook main --dry-run
///   sudo dormer install-hook --undo --system
///
/// With --system, the daemon of Nix queues the builds of all users, and root's settings, or
/// /etc/dormer/config.toml, name the server. Without it, Nix obeys the hook if this user is in
/// trusted-users or if there is no daemon.
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct InstallHookArgs {
    /// [SERVER:]CACHE; without any, the caches of [queue] in the settings
    #[arg(value_name = "CACHE", conflicts_with = "undo")]
    caches: Vec<CacheRef>,
    /// Change /etc instead of this user's files
    #[arg(long)]
    system: bool,
    /// Show what would change, and change nothing
    #[arg(long)]
    dry_run: bool,
    /// Take the changes back
    #[arg(long)]
    undo: bool,
    /// The service manager
    #[arg(long, value_enum, default_value_t = Manager::of_this_machine())]
    service_manager: Manager,
    #[command(flatten)]
    queue: QueueDirArgs,
    #[command(flatten)]
    pub(super) server: EndpointArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Manager {
    Systemd,
    Launchd,
    /// No unit is written
    None,
}

impl Manager {
    fn of_this_machine() -> Self {
        if cfg!(target_os = "macos") { Self::Launchd } else { Self::Systemd }
    }
}

/// Where the files go.
struct HookFiles {
    conf: PathBuf,
    script: PathBuf,
    unit: Option<PathBuf>,
}

impl HookFiles {
    fn of(args: &InstallHookArgs, context: &Context) -> Result<Self> {
        let environment = &context.environment;
        let home = environment.path("HOME").filter(|path| path.is_absolute());
        let config =
            environment.path("XDG_CONFIG_HOME").filter(|path| path.is_absolute()).map(Path::to_owned);
        let config = config.or_else(|| home.map(|home| home.join(".config")));
        let no_home = || Error::usage("no folder for nix.conf: HOME is not set", "set HOME, or use --system");
        let (nix, units, agents) = if args.system {
            let nix = environment.path("NIX_CONF_DIR").unwrap_or(Path::new("/etc/nix")).to_owned();
            (nix, PathBuf::from("/etc/systemd/system"), PathBuf::from("/Library/LaunchDaemons"))
        } else {
            let config = config.ok_or_else(no_home)?;
            let agents = home.map(|home| home.join("Library/LaunchAgents")).ok_or_else(no_home)?;
            (config.join("nix"), config.join("systemd/user"), agents)
        };
        let unit = match args.service_manager {
            Manager::Systemd => Some(units.join("dormer-queue.service")),
            Manager::Launchd => Some(agents.join("org.dormer.queue.plist")),
            Manager::None => None,
        };
        let conf = if args.system { conf_for_additions(&nix)? } else { nix.join("nix.conf") };
        Ok(Self { conf, script: nix.join("dormer-post-build-hook"), unit })
    }
}

pub(super) async fn run(args: &InstallHookArgs, context: &Context) -> Result<()> {
    let hook_files = HookFiles::of(args, context)?;
    if args.undo {
        return undo(args, &hook_files, context);
    }
    let caches = chosen_caches(&args.caches)?;
    // Neither the daemon of Nix nor the service has the variables of this user.
    let with_server = |cache| Context::queued_cache_if_known(cache, &args.server, &process_variables);
    let queued: Vec<QueuedCache> = caches.iter().map(with_server).collect();
    let folder = args.queue.folder(&process_variables)?;
    let before = read_if_there(&hook_files.conf)?.unwrap_or_default();
    refuse_other_hook(&hook_files, &before, args.system).await?;
    let mut conf = MarkedFile::of_command("install-hook", before.clone());
    conf.set(BLOCK, &[format!("{SETTING} = {}", hook_files.script.display())]);
    let mut files = vec![(&hook_files.script, hook_script(&folder, &queued)?, 0o755)];
    if let Some(unit) = &hook_files.unit {
        let text = match args.service_manager {
            Manager::Launchd => launchd_job(&folder, args.system)?,
            Manager::Systemd | Manager::None => systemd_unit(&folder, args.system)?,
        };
        files.push((unit, text, 0o644));
    }
    let mut changed = false;
    for (path, text, mode) in &files {
        let old = read_if_there(path)?;
        if old.as_ref().is_some_and(|old| !is_ours(old)) {
            return Err(Error::NotOurFile { path: (*path).clone() });
        }
        changed |= change(path, &old.unwrap_or_default(), text, *mode, args.dry_run, context)?;
    }
    warn_of_loss(&own_program()?, context)?;
    warn_of_variable(&queued, context)?;
    let is_obeyed = args.system || is_trusted().await?;
    if !args.dry_run {
        // By its owner, and not by the first build: the daemon of Nix runs the hook as root.
        Spool::open(&folder)?;
    }
    // Last: Nix must find the script.
    changed |= change(&hook_files.conf, &before, conf.text(), 0o644, args.dry_run, context)?;
    let names: Vec<String> = caches.iter().map(ToString::to_string).collect();
    let names = names.join(", ");
    let what = if is_obeyed { "every build" } else { "every build of a trusted user" };
    context.printer.conclude(&match (changed, args.dry_run) {
        (false, _) => format!("nothing to do: {what} is queued for {names} already"),
        (true, true) => format!("would queue {what} for {names}"),
        (true, false) => {
            format!("Nix queues {what} for {names} from now on; undo it with: dormer install-hook --undo")
        }
    });
    if !is_obeyed {
        context.printer.warn("Nix does not say that it trusts this user, and ignores the hooks of others");
        context.printer.hint(
            "let root add this user to trusted-users in /etc/nix/nix.conf, which gives the user root's rights; or run \
             `sudo dormer install-hook CACHE --system`; or let `dormer watch CACHE` push what appears in the store",
        );
    }
    if changed && !args.dry_run {
        for line in next_steps(args) {
            context.printer.hint(&line);
        }
    }
    Ok(())
}

fn undo(args: &InstallHookArgs, hook_files: &HookFiles, context: &Context) -> Result<()> {
    let before = read_if_there(&hook_files.conf)?.unwrap_or_default();
    let mut conf = MarkedFile::of_command("install-hook", before.clone());
    conf.remove(BLOCK);
    // First: Nix must not look for a script that is gone.
    let mut changed = change(&hook_files.conf, &before, conf.text(), 0o644, args.dry_run, context)?;
    for (path, left) in [(Some(&hook_files.script), STUB), (hook_files.unit.as_ref(), "")] {
        let Some(path) = path else { continue };
        if let Some(text) = read_if_there(path)?.filter(|text| is_ours(text)) {
            changed |= change(path, &text, left, 0o755, args.dry_run, context)?;
        }
    }
    context.printer.conclude(match (changed, args.dry_run) {
        (false, _) => "nothing to do: no hook of Dormer is installed",
        (true, true) => "would take the hook and the service back",
        (true, false) => "Nix queues no builds any more; what is queued stays in the queue",
    });
    if changed && !args.dry_run {
        let until = if args.system {
            "the daemon of Nix reads nix.conf when it starts: systemctl restart nix-daemon; until then"
        } else {
            "until builds that run now end,"
        };
        context.printer.hint(&format!(
            "{until} Nix calls {}, which does nothing any more; after that you may remove it",
            hook_files.script.display()
        ));
    }
    if changed && !args.dry_run && args.service_manager == Manager::Systemd {
        let user = if args.system { "" } else { " --user" };
        context.printer.hint(&format!("stop the service: systemctl{user} disable --now dormer-queue"));
    }
    Ok(())
}

/// Shows a change, and makes it. Returns whether there is one.
fn change(
    path: &Path,
    before: &str,
    after: &str,
    mode: u32,
    dry_run: bool,
    context: &Context,
) -> Result<bool> {
    if before == after {
        return Ok(false);
    }
    let shown = changes(before, after);
    show(context, path, &shown)?;
    if !dry_run {
        refuse_managed(path, shown)?;
        write_whole(path, after, mode, false).map_err(Error::io("write", path))?;
    }
    Ok(true)
}

/// A program in the store itself is there until a garbage collection: `nix run` leaves no root.
fn warn_of_loss(program: &Path, context: &Context) -> Result<()> {
    if program.starts_with(store_dir()?) {
        context.printer.warn(&format!(
            "a garbage collection of Nix may remove {}; builds are not queued from then on",
            program.display()
        ));
        context
            .printer
            .hint("install Dormer, for example with `nix profile install`, and run this command again");
    }
    Ok(())
}

fn store_dir() -> Result<PathBuf> {
    Ok(PathBuf::from(NixStore::store_dir_of(&process_variables)?.as_str()))
}

/// The service runs without the variables of this user: its login is in the settings.
fn warn_of_variable(caches: &[QueuedCache], context: &Context) -> Result<()> {
    let settings = Context::client_settings()?;
    for endpoint in caches.iter().filter_map(|cache| cache.endpoint.as_ref()) {
        let found = settings.server_at(endpoint, &process_variables);
        if let Err(error) = &found {
            context.printer.warn(&dormer_nix::with_causes(error));
        }
        if !found.is_ok_and(|server| server.is_some()) {
            context
                .printer
                .warn(&format!("the service has no {ENDPOINT_VARIABLE}, and no login for {endpoint}"));
            context.printer.hint(&format!(
                "as the user of the service: dormer login NAME {endpoint} --token-file FILE; or write {MACHINE_SETTINGS}"
            ));
        }
    }
    Ok(())
}

/// Whether Nix says that it obeys this user.
async fn is_trusted() -> Result<bool> {
    Ok(NixStore::open_for_names(&process_variables).await?.trusts_this_user().await)
}

/// Nix has one hook. One that Nix names in another file counts as well.
async fn refuse_other_hook(hook_files: &HookFiles, conf: &str, system: bool) -> Result<()> {
    let conf = MarkedFile::of_command("install-hook", conf);
    let ours = hook_files.script.display().to_string();
    if let Some(hook) = find_nix_setting(&conf, SETTING).filter(|hook| !hook.is_empty()) {
        return Err(Error::OtherHook { path: hook_files.conf.clone(), hook: hook.to_owned() });
    }
    let program = nix_program(&process_variables);
    let config =
        if system { NixConfig::read_of_machine(program).await } else { NixConfig::read(program).await };
    // A machine whose Nix does not answer is set up by its files alone.
    let in_force = config.ok().and_then(|config| config.text(SETTING).map(str::to_owned));
    match in_force.filter(|hook| !hook.is_empty() && *hook != ours) {
        Some(hook) => Err(Error::OtherHook { path: "Nix".into(), hook }),
        None => Ok(()),
    }
}

fn is_ours(text: &str) -> bool {
    text.contains(MARK) || text == STUB
}

/// The script that Nix runs after each build. It ends with 0 even if the program is gone.
pub(super) fn hook_script(folder: &Path, caches: &[QueuedCache]) -> Result<String> {
    let program = own_program()?;
    let words: Vec<String> = [program.display().to_string(), "hook".to_owned()]
        .into_iter()
        .chain(caches.iter().map(ToString::to_string))
        .chain(["--queue-dir".to_owned(), folder.display().to_string()])
        .map(|word| quoted_for_shell(&word))
        .collect();
    Ok(format!(
        "#!/bin/sh\n# {MARK}\n# Nix runs this after each build. It only writes a file, and never fails the build.\n{} ||\n  echo \
         'dormer: the build is not queued for the cache' >&2\nexit 0\n",
        words.join(" ")
    ))
}

fn systemd_unit(folder: &Path, system: bool) -> Result<String> {
    let words = [
        own_program()?,
        "queue".into(),
        "drain".into(),
        "--watch".into(),
        "--queue-dir".into(),
        folder.into(),
    ];
    let words: Vec<String> =
        words.iter().map(|word| quoted_for_systemd(&word.display().to_string())).collect();
    let target = if system { "multi-user.target" } else { "default.target" };
    // A service of root has no home unless its unit says so, and root's settings are there.
    let home = if system { "Environment=HOME=%h\n" } else { "" };
    Ok(format!(
        "# {MARK}\n[Unit]\nDescription=Pushes what Nix has built (Dormer's queue)\nWants=network-online.target\n\
         After=network-online.target\n\n[Service]\n{home}ExecStart={}\nRestart=always\nRestartSec=10\nNice=10\n\n[Install]\n\
         WantedBy={target}\n",
        words.join(" ")
    ))
}

fn launchd_job(folder: &Path, system: bool) -> Result<String> {
    let words = [
        own_program()?,
        "queue".into(),
        "drain".into(),
        "--watch".into(),
        "--queue-dir".into(),
        folder.into(),
    ];
    let words =
        words.map(|word| format!("    <string>{}</string>\n", escaped_for_xml(&word.display().to_string())));
    let words = words.concat();
    let home = if system {
        "  <key>EnvironmentVariables</key>\n  <dict>\n    <key>HOME</key>\n    <string>/var/root</string>\n  </dict>\n"
    } else {
        ""
    };
    Ok(format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<!-- {MARK} -->\n<!DOCTYPE plist PUBLIC \"-//Apple//DTD PLIST 1.0//EN\" \
         \"http://www.apple.com/DTDs/PropertyList-1.0.dtd\">\n<plist version=\"1.0\">\n<dict>\n  <key>Label</key>\n  \
         <string>org.dormer.queue</string>\n  <key>ProgramArguments</key>\n  <array>\n{words}  </array>\n\
         {home}  <key>RunAtLoad</key>\n  <true/>\n  <key>KeepAlive</key>\n  <true/>\n</dict>\n</plist>\n"
    ))
}

fn next_steps(args: &InstallHookArgs) -> Vec<String> {
    let mut lines = match (args.service_manager, args.system) {
        (Manager::Systemd, true) => vec![
            "start the service: systemctl daemon-reload && systemctl enable --now dormer-queue".to_owned(),
        ],
        (Manager::Systemd, false) => vec![
            "start the service: systemctl --user daemon-reload && systemctl --user enable --now dormer-queue"
                .to_owned(),
            "it runs while you are logged in; to let it run always: loginctl enable-linger".to_owned(),
        ],
        (Manager::Launchd, true) => {
            vec![
                "start the service: launchctl bootstrap system /Library/LaunchDaemons/org.dormer.queue.plist"
                    .to_owned(),
            ]
        }
        (Manager::Launchd, false) => {
            vec!["start the service: launchctl bootstrap gui/$(id -u) ~/Library/LaunchAgents/org.dormer.queue.plist".to_owned()]
        }
        (Manager::None, _) => vec!["push what is queued: dormer queue drain --watch".to_owned()],
    };
    if args.system {
        lines
            .push("the daemon of Nix reads nix.conf when it starts: systemctl restart nix-daemon".to_owned());
    }
    lines
}

/// This program, by a name that outlives an update: a profile's link to it, if the search path has
/// one.
fn own_program() -> Result<PathBuf> {
    let failed = |source| Error::Io { attempt: "find this program".to_owned(), source };
    let program = std::env::current_exe().and_then(fs::canonicalize).map_err(failed)?;
    let folders = process_variables("PATH").unwrap_or_default();
    let mut links = std::env::split_paths(&folders).map(|folder| folder.join("dormer"));
    let store_dir = store_dir()?;
    let same = |link: &PathBuf| {
        let is_lasting = link.is_absolute() && !link.starts_with(&store_dir);
        is_lasting && fs::canonicalize(link).is_ok_and(|target| target == program)
    };
    Ok(links.find(same).unwrap_or(program))
}

fn is_plain(word: &str) -> bool {
    !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || "/.-_:+@".contains(c))
}

fn quoted_for_shell(word: &str) -> String {
    if is_plain(word) { word.to_owned() } else { format!("'{}'", word.replace('\'', "'\\''")) }
}

fn quoted_for_systemd(word: &str) -> String {
    if is_plain(word) {
        return word.to_owned();
    }
    let escaped = word.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    format!("\"{escaped}\"")
}

fn escaped_for_xml(word: &str) -> String {
    word.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_reach_programs_as_they_are() {
        let words = ["/usr/bin/dormer", "lab:main", "/a b", "it's", "$x", "%h", "\"\\", "a&b<c"];
        for word in words {
            let shell = std::process::Command::new("sh")
                .args(["-c", &format!("printf %s {}", quoted_for_shell(word))])
                .output()
                .unwrap();
            assert_eq!(String::from_utf8(shell.stdout).unwrap(), word);
        }
        assert_eq!(quoted_for_systemd("/a b"), "\"/a b\"");
        assert_eq!(quoted_for_systemd("%h$x\"\\"), "\"%%h$$x\\\"\\\\\"");
        assert_eq!(escaped_for_xml("a&b<c>"), "a&amp;b&lt;c&gt;");
    }

    #[test]
    fn the_script_succeeds_even_without_the_program() {
        let folder = tempfile::tempdir().unwrap();
        let script = hook_script(&folder.path().join("a b"), &["lab:main".parse().unwrap()]).unwrap();
        assert!(is_ours(&script));
        let program = own_program().unwrap();
        let gone = script.replace(&program.display().to_string(), "/nowhere/dormer");
        assert_ne!(gone, script);
        let ended = std::process::Command::new("sh").args(["-c", &gone]).output().unwrap();
        assert!(ended.status.success());
        let said = String::from_utf8(ended.stderr).unwrap();
        assert!(said.contains("the build is not queued"), "{said}");
    }

    #[test]
    fn units_name_the_queue_and_are_ours() {
        let unit = systemd_unit(Path::new("/var/lib/dormer-queue"), true).unwrap();
        assert!(unit.contains("queue drain --watch --queue-dir /var/lib/dormer-queue\n"), "{unit}");
        assert!(unit.contains("WantedBy=multi-user.target") && is_ours(&unit));
        assert!(
            unit.contains("[Service]\nEnvironment=HOME=%h\n"),
            "the settings of root are in its home: {unit}"
        );
        let unit = systemd_unit(Path::new("/q"), false).unwrap();
        assert!(unit.contains("WantedBy=default.target") && !unit.contains("HOME"), "{unit}");
        for (system, count) in [(true, 1), (false, 0)] {
            let job = launchd_job(Path::new("/q&a"), system).unwrap();
            assert!(job.contains("<string>/q&amp;a</string>") && is_ours(&job), "{job}");
            assert_eq!(job.matches("<string>/var/root</string>").count(), count, "{job}");
        }
    }
}
