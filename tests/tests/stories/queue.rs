//! Builds that reach a cache by themselves: the hook, the queue, the commands that watch and wrap,
//! and what survives kills, a full disk and an absent server.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use dormer_tests::{Lab, Machine, Nix, Proxy, Run, binary, times};
use rand::RngExt as _;
use serde_json::Value;

const PATH: &str = "/nix/store/f22352qy5d2vfxv22w7q3n7gz1ia47nx-a";

fn is_in(lab: &Lab, path: &str) -> bool {
    lab.get(&format!("/main/{}.narinfo", &path["/nix/store/".len()..][..32])).status == 200
}

/// The values of `--json`.
fn lines(run: &Run) -> Vec<Value> {
    run.stdout().lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// How often a drain said that a path is in this state.
fn count(run: &Run, state: &str) -> usize {
    lines(run).iter().filter(|line| line["message_type"] == "queue_path" && line["state"] == state).count()
}

/// A machine with a queue in its home.
struct Builder {
    machine: Machine,
    queue: PathBuf,
}

impl Builder {
    fn new(lab: &Lab, name: &str, nix: Nix) -> Self {
        let machine = lab.machine(name, nix);
        machine.login(lab);
        // The first build makes the store.
        machine.build("empty", &[("salt", name)]);
        let queue = machine.home().join("queue");
        Self { machine, queue }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.machine.command(&self.machine.dormer_path(), arguments);
        command.env("DORMER_QUEUE_DIR", &self.queue);
        command
    }

    fn dormer(&self, arguments: &[&str]) -> Run {
        Run::of(&mut self.command(arguments))
    }

    fn spawn(&self, arguments: &[&str]) -> Child {
        let mut command = self.command(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }

    /// The last line of `queue list`.
    fn list(&self) -> Value {
        let listed = self.dormer(&["queue", "list", "--json"]);
        listed.succeeds();
        lines(&listed).pop().unwrap()
    }

    /// The words of a build, for a shell.
    fn build_words(&self, attribute: &str, salt: &str) -> String {
        format!("nix-build {} --no-out-link -A {attribute} --argstr salt {salt}", self.machine.expression())
    }

    /// Queues paths as Nix's hook does.
    fn hook(&self, paths: &[String]) {
        let mut command = self.command(&["hook", "main"]);
        command.env("OUT_PATHS", paths.join(" "));
        let run = Run::of(&mut command);
        run.succeeds();
        assert_eq!(run.stderr(), "", "a hook that works says nothing");
    }
}

fn signal(child: &Child, name: &str) {
    Run::of(Command::new("kill").args(["-s", name, &child.id().to_string()])).succeeds();
}

/// The whole way: a build of the daemon, which has neither a home nor a token, a service that
/// pushes, another machine that substitutes. And back: the files are as they were.
#[test]
fn an_installed_hook_queues_builds_of_the_daemon_and_a_service_pushes_them() {
    let lab = Lab::start();
    for nix in Nix::ALL {
        let builder = Builder::new(&lab, &format!("builder-{}", nix.name()), nix);
        let machine = &builder.machine;
        let conf = machine.home().parent().unwrap().join("conf");
        let files = || {
            let mut files: Vec<(PathBuf, String)> = fs::read_dir(&conf)
                .unwrap()
                .map(|entry| entry.unwrap().path())
                .map(|path| (path.clone(), fs::read_to_string(path).unwrap()))
                .collect();
            files.sort();
            files
        };
        let before = files();
        let install = ["install-hook", "main", "--system", "--service-manager", "none"];
        let shown = builder.dormer(&[install.as_slice(), &["--dry-run"]].concat());
        assert!(shown.succeeds().contains("post-build-hook = "), "{shown}");
        assert_eq!(files(), before, "a dry run writes nothing");
        builder.dormer(&install).succeeds();
        assert!(builder.dormer(&install).stderr().contains("nothing to do"));
        let words = builder.build_words("all", &format!("hook-{}", nix.name()));
        let after = builder.build_words("empty", &format!("undone-{}", nix.name())) + " >&2";
        let undo = ["install-hook", "--undo", "--system", "--service-manager", "none"];
        let undo_words = format!("{} {} >&2", machine.dormer_path(), undo.join(" "));
        let script = format!(
            r#"set -eu
            b=/bin/busybox
            $b env -i NIX_CONF_DIR="$NIX_CONF_DIR" PATH=/usr/bin:/bin nix-daemon &
            daemon=$!
            trap 'kill $daemon' EXIT
            for _ in $($b seq 100); do [ -S /nix/var/nix/daemon-socket/socket ] && break; $b sleep 0.1; done
            NIX_REMOTE=daemon {words}
            {undo_words}
            # This daemon has read nix.conf, and calls the hook still.
            NIX_REMOTE=daemon {after}
            "#
        );
        let built = machine.run("/bin/busybox", &["sh", "-c", &script]);
        let all = built.succeeds().trim().to_owned();
        assert!(!is_in(&lab, &all), "the hook only queues");
        let queued = builder.list();
        assert!(queued["waiting"].as_u64().unwrap() >= 6 && queued["refused"] == 0, "{queued}\n{built}");

        let drained = builder.dormer(&["queue", "drain", "--json"]);
        drained.succeeds();
        assert_eq!(count(&drained, "pushed"), 6, "{drained}");
        let again = builder.dormer(&["queue", "drain", "--json"]);
        again.succeeds();
        assert_eq!((lines(&again).len(), builder.list()["waiting"].as_u64()), (0, Some(0)), "{again}");
        builder.dormer(&["queue", "wait-for", &all, "--cache", "main"]).succeeds();

        let other = lab.machine(&format!("other-{}", nix.name()), nix);
        other.configure(&[lab.public_key("main")]);
        other.substitute(&lab.cache_url("main"), &all).succeeds();
        other.verify_all();

        assert!(builder.dormer(&undo).stderr().contains("nothing to do"));
        let (script, mut left) = (conf.join("dormer-post-build-hook"), files());
        left.retain(|(path, _)| *path != script);
        assert_eq!(left, before, "everything is as it was");
        fs::remove_file(script).unwrap();
    }
}

/// The files of a user, with a blank in the name of the queue's folder.
#[test]
fn systemd_reads_the_unit_and_a_shell_the_script_that_install_hook_writes() {
    let home = tempfile::tempdir().unwrap();
    let queue = home.path().join("the queue");
    let dormer = |arguments: &[&str]| {
        let mut command = Command::new(binary());
        command.args(arguments).arg("--queue-dir").arg(&queue).env_clear();
        Run::of(command.env("HOME", home.path()).env("PATH", "/usr/bin:/bin"))
    };
    dormer(&["install-hook", "lab:main", "--dry-run"]).succeeds();
    assert!(!queue.exists());
    let installed = dormer(&["install-hook", "lab:main"]);
    installed.succeeds();
    assert!(
        installed.stderr().contains("sudo dormer install-hook CACHE --system"),
        "no Nix trusts it: {installed}"
    );
    assert!(queue.join("pending/f").is_dir(), "its user makes the queue, and not the daemon's root");
    let config = home.path().join(".config");
    let unit = config.join("systemd/user/dormer-queue.service");
    let verify = || {
        let mut verify = Command::new("systemd-analyze");
        Run::of(verify.args(["verify", "--man=no", "--recursive-errors=no"]).arg(&unit))
    };
    let said = verify();
    assert!(said.is_success() && said.stderr().is_empty(), "{said}");
    // Started by `nix run`, the program has no root.
    let warning = "a garbage collection of Nix may remove";
    let mut again = Command::new(binary());
    again.args(["install-hook", "lab:main", "--dry-run", "--queue-dir"]).arg(&queue).env_clear();
    again.env("HOME", home.path()).env("PATH", "/usr/bin:/bin");
    assert!(!Run::of(&mut again).stderr().contains(warning));
    again.env("NIX_STORE_DIR", binary().canonicalize().unwrap().parent().unwrap());
    assert!(Run::of(&mut again).stderr().contains(warning));
    let mut hook = Command::new(config.join("nix/dormer-post-build-hook"));
    Run::of(hook.env_clear().env("OUT_PATHS", PATH)).succeeds();
    let listed = dormer(&["queue", "list", "--json"]);
    let entry = lines(&listed).swap_remove(0);
    assert_eq!((&entry["cache"], &entry["paths"][0]), (&"lab:main".into(), &PATH.into()), "{listed}");

    // A line that is not ours is left alone, and the check sees a mistake.
    let text = fs::read_to_string(&unit).unwrap();
    fs::write(&unit, text.replace("ExecStart=", "ExecStrt=")).unwrap();
    assert!(verify().stderr().contains("ExecStrt"));
    let undone = dormer(&["install-hook", "--undo"]);
    undone.succeeds();
    // A build that runs may still call the script.
    let script = config.join("nix/dormer-post-build-hook");
    assert!(!unit.exists() && undone.stderr().contains(script.to_str().unwrap()), "{undone}");
    let called = Run::of(Command::new(&script).env_clear().env("OUT_PATHS", PATH));
    assert!(called.is_success() && called.stdout().is_empty() && called.stderr().is_empty(), "{called}");
    assert_eq!(lines(&dormer(&["queue", "list", "--json"])).last().unwrap()["waiting"], 1);
    assert!(dormer(&["install-hook", "--undo"]).stderr().contains("nothing to do"));
    dormer(&["install-hook", "lab:main"]).succeeds();
    assert!(fs::read_to_string(&script).unwrap().contains("hook lab:main"));
    dormer(&["install-hook", "--undo"]).succeeds();
    assert!(!config.join("nix/nix.conf").exists(), "there was none before");
}

#[test]
fn another_hook_is_never_replaced() {
    let lab = Lab::start();
    let builder = Builder::new(&lab, "builder", Nix::NEWEST);
    let conf = builder.machine.home().parent().unwrap().join("conf/nix.conf");
    let text = format!("{}post-build-hook = /etc/nix/mine\n", fs::read_to_string(&conf).unwrap());
    fs::write(&conf, &text).unwrap();
    let install = ["install-hook", "main", "--system", "--service-manager", "none"];
    let said = builder.dormer(&install).fails();
    assert!(
        said.contains("another post-build-hook: /etc/nix/mine") && said.contains("dormer hook CACHE"),
        "{said}"
    );
    assert_eq!(fs::read_to_string(&conf).unwrap(), text);
    // Nix names it in another file.
    fs::write(&conf, text.replace("post-build-hook", "include more.conf\n# post-build-hook")).unwrap();
    fs::write(conf.with_file_name("more.conf"), "post-build-hook = /etc/nix/mine\n").unwrap();
    assert!(builder.dormer(&install).fails().contains("/etc/nix/mine"));
    // A script that is not ours stays, too.
    fs::write(conf.with_file_name("more.conf"), "").unwrap();
    fs::write(conf.with_file_name("dormer-post-build-hook"), "mine").unwrap();
    assert!(builder.dormer(&install).fails().contains("did not make it"));
    builder.dormer(&["install-hook", "--undo", "--system", "--service-manager", "none"]).succeeds();
    assert_eq!(fs::read_to_string(conf.with_file_name("dormer-post-build-hook")).unwrap(), "mine");
}

#[test]
fn exec_pushes_what_a_command_built_also_if_it_fails_and_keeps_its_code() {
    let lab = Lab::start();
    for (nix, by) in
        [(Nix::OLDEST, "auto"), (Nix::MIDDLE, "hook"), (Nix::NEWEST, "auto"), (Nix::NEWEST, "store")]
    {
        let builder = Builder::new(&lab, &format!("{by}-{}", nix.name()), nix);
        let words = builder.build_words("all", &format!("exec-{by}-{}", nix.name()));
        let script = format!("{words} || exit 99; exit 7");
        let run = builder.dormer(&["exec", "main", "--by", by, "--", "/bin/busybox", "sh", "-c", &script]);
        assert_eq!(run.code(), Some(7), "{run}");
        let all = run.stdout().trim().to_owned();
        for path in builder.machine.closure(&all) {
            assert!(is_in(&lab, &path), "{by}, {}: {path}\n{run}", nix.name());
        }
        assert_eq!(builder.list()["waiting"], 0);
        let is_marked = names(&builder.queue).iter().any(|name| name.starts_with("watched-"));
        assert!(!is_marked, "what came before the command is not queued");
    }
}

#[test]
fn exec_passes_signals_on_and_drains_all_the_same() {
    let lab = Lab::start();
    let builder = Builder::new(&lab, "builder", Nix::NEWEST);
    let words = builder.build_words("empty", "signals");
    let [ready, told, again] = ["ready", "told", "again"].map(|name| builder.machine.home().join(name));
    let script = format!(
        "trap 'exit 9' TERM; trap ': > {}' USR1; {words}; : > {}; while :; do /bin/busybox sleep 0.05; done",
        told.display(),
        ready.display()
    );
    let child = builder.spawn(&["exec", "main", "--", "/bin/busybox", "sh", "-c", &script]);
    wait_until(|| ready.exists());
    signal(&child, "USR1");
    wait_until(|| told.exists());
    signal(&child, "TERM");
    let run = Run::wait_for(child);
    assert_eq!(run.code(), Some(9), "{run}");
    assert!(is_in(&lab, run.stdout().trim()), "{run}");
    // Without a terminal, SIGINT is no key either.
    let script =
        format!("trap 'exit 8' INT; : > {}; while :; do /bin/busybox sleep 0.05; done", again.display());
    let child = builder.spawn(&["exec", "main", "--", "/bin/busybox", "sh", "-c", &script]);
    wait_until(|| again.exists());
    signal(&child, "INT");
    assert_eq!(Run::wait_for(child).code(), Some(8));
    // A command that a signal ends has the code that a shell gives.
    let run = builder.dormer(&["exec", "main", "--", "/bin/busybox", "sh", "-c", "kill -KILL $$"]);
    assert_eq!(run.code(), Some(137), "{run}");
    assert_eq!(builder.dormer(&["exec", "main", "--", "/nowhere/x"]).code(), Some(1));
}

/// In the foreground of a terminal, a key reaches the command by itself. What another process sends
/// to `exec` alone does not. Either way the command gets it once.
#[test]
fn exec_on_a_terminal_passes_on_what_no_key_sent() {
    let lab = Lab::start();
    let builder = Builder::new(&lab, "builder", Nix::NEWEST);
    let file = |name: &str| builder.machine.home().join(name);
    let [built, ready, told, over] = ["built", "ready", "told", "over"].map(file);
    let script = file("command.sh");
    let text = format!(
        "trap 'echo INT >> {}' INT\n{} > {}\necho $PPID > {}\n\
         until [ -e {} ]; do /bin/busybox sleep 0.05; done\nexit 9\n",
        told.display(),
        builder.build_words("empty", "terminal"),
        built.display(),
        ready.display(),
        over.display(),
    );
    fs::write(&script, text).unwrap();
    let exec = builder.command(&["exec", "main", "--", "/bin/busybox", "sh", script.to_str().unwrap()]);
    let words = std::iter::once(exec.get_program()).chain(exec.get_args());
    let words: Vec<&str> = words.map(|word| word.to_str().unwrap()).collect();
    let mut session = Command::new("script")
        .args(["--quiet", "--return", "--command", &format!("exec {}", words.join(" ")), "/dev/null"])
        .env_clear()
        .envs(exec.get_envs().filter_map(|(name, value)| Some((name, value?))))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut keys = session.stdin.take().unwrap();
    let read = |path: &Path| fs::read_to_string(path).unwrap_or_default();
    wait_until(|| read(&ready).ends_with('\n'));
    Run::of(Command::new("kill").args(["-s", "INT", read(&ready).trim()])).succeeds();
    wait_until(|| read(&told) == "INT\n");
    // A key ends what pushes, too, so the push comes first.
    wait_until(|| is_in(&lab, read(&built).trim()));
    std::io::Write::write_all(&mut keys, b"\x03").unwrap();
    wait_until(|| read(&told) == "INT\nINT\n");
    // Long enough for a second one.
    thread::sleep(Duration::from_millis(300));
    assert_eq!(read(&told), "INT\nINT\n");
    fs::write(&over, "").unwrap();
    let run = Run::wait_for(session);
    assert_eq!(run.code(), Some(9), "{run}");
    assert!(is_in(&lab, read(&built).trim()), "{run}");
    assert_eq!(builder.list()["waiting"], 0);
}

/// A queue that cannot be made, and a system that watches nothing any more: the builds are pushed
/// all the same.
#[test]
fn exec_pushes_without_a_queue_and_without_a_watch() {
    let lab = Lab::start();
    let builder = Builder::new(&lab, "builder", Nix::NEWEST);
    fs::write(&builder.queue, "a file in the way").unwrap();
    let exec = |salt: &str| {
        let words = builder.build_words("empty", salt);
        builder.command(&["exec", "main", "--by", "store", "--", "/bin/busybox", "sh", "-c", &words])
    };
    let run = Run::of(&mut exec("no-queue"));
    assert!(is_in(&lab, run.succeeds().trim()), "{run}");
    assert!(
        run.stderr().contains("the command runs all the same") && run.stderr().contains("--queue-dir"),
        "{run}"
    );
    let temporary = builder.machine.home().parent().unwrap().join("tmp");
    assert!(!names(&temporary).iter().any(|name| name.starts_with("dormer-queue")), "{run}");

    fs::remove_file(&builder.queue).unwrap();
    let plain = exec("no-watch");
    let mut limited = Command::new("unshare");
    limited.args(["--user", "--map-root-user", "sh", "-c"]);
    limited.arg("echo 0 >/proc/sys/user/max_inotify_instances; exec \"$0\" \"$@\"");
    limited.arg(plain.get_program()).args(plain.get_args()).env_clear();
    limited.envs(plain.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let run = Run::of(&mut limited);
    assert!(run.stderr().contains("max_user_instances"), "{run}");
    assert!(is_in(&lab, run.succeeds().trim()), "{run}");
}

/// One machine, two servers with a cache of the same name: each build goes to the server that it
/// was queued for, whatever the process says that pushes.
#[test]
fn a_build_goes_to_the_server_that_it_was_queued_for() {
    let [lab, other] = [Lab::start(), Lab::start()];
    let builder = Builder::new(&lab, "builder", Nix::NEWEST);
    let [here, there] = ["here", "there"].map(|salt| builder.machine.build("empty", &[("salt", salt)]));
    builder.hook(std::slice::from_ref(&here));
    let with_other = |arguments: &[&str]| {
        let mut command = builder.command(arguments);
        command.env("DORMER_ENDPOINT", other.url()).env("DORMER_TOKEN", other.admin_token());
        command
    };
    // The hook of that job, and its drain, which serves both.
    Run::of(with_other(&["hook", "main"]).env("OUT_PATHS", &there)).succeeds();
    Run::of(&mut with_other(&["queue", "drain"])).succeeds();
    assert!(is_in(&lab, &here) && is_in(&other, &there));
    assert!(!is_in(&lab, &there) && !is_in(&other, &here));

    // The service has no variables: what it has no login for waits, at once and for nothing else.
    let [mine, theirs] = ["mine", "theirs"].map(|salt| builder.machine.build("empty", &[("salt", salt)]));
    builder.hook(std::slice::from_ref(&mine));
    Run::of(with_other(&["hook", "main"]).env("OUT_PATHS", &theirs)).succeeds();
    let drained = builder.dormer(&["queue", "drain", "--timeout", "10min"]);
    assert!(!drained.is_success() && drained.stderr().contains("there is no login for it here"), "{drained}");
    assert!(drained.stderr().contains(&format!("dormer login NAME {}", other.url())), "{drained}");
    assert!(is_in(&lab, &mine) && !is_in(&lab, &theirs) && !is_in(&other, &theirs));
    let listed = builder.dormer(&["queue", "list", "--json"]);
    let entry = lines(&listed).swap_remove(0);
    assert_eq!(entry["endpoint"], format!("{}/", other.url().trim_end_matches('/')), "{listed}");
    assert_eq!((&entry["cache"], &entry["tries"]), (&"main".into(), &0.into()), "{listed}");
    builder.dormer(&["login", "second", &other.url(), &other.admin_token()]).succeeds();
    builder.dormer(&["queue", "drain"]).succeeds();
    assert!(is_in(&other, &theirs) && !is_in(&lab, &theirs));
}

/// Without a server, the command's code stays, and so do the builds.
#[test]
fn hours_without_a_server_lose_nothing() {
    let mut lab = Lab::start();
    let builder = Builder::new(&lab, "builder", Nix::NEWEST);
    lab.kill();
    let words = builder.build_words("all", "away");
    let run =
        builder.dormer(&["exec", "main", "--drain-timeout", "0s", "--", "/bin/busybox", "sh", "-c", &words]);
    let all = run.succeeds().trim().to_owned();
    assert!(run.stderr().contains("stays in the queue"), "{run}");
    let drained = builder.dormer(&["queue", "drain"]);
    assert_eq!(drained.code(), Some(5), "{drained}");
    let listed = builder.list();
    assert!(listed["waiting"].as_u64().unwrap() > 0 && listed["dead"] == 0, "{listed}");
    lab.restart();
    builder.dormer(&["queue", "drain"]).succeeds();
    for path in builder.machine.closure(&all) {
        assert!(is_in(&lab, &path), "{path}");
    }

    // A token that does not help holds up no job.
    let words = builder.build_words("empty", "refused");
    let mut exec =
        builder.command(&["exec", "main", "--limit-rate", "1M", "--", "/bin/busybox", "sh", "-c", &words]);
    exec.env("DORMER_ENDPOINT", lab.url()).env("DORMER_TOKEN", lab.token(&["--pull", "main"]));
    let begun = Instant::now();
    let refused = Run::of(&mut exec);
    refused.succeeds();
    assert!(refused.stderr().contains("stays in the queue"), "{refused}");
    assert!(begun.elapsed() < Duration::from_mins(1), "{:?}: {refused}", begun.elapsed());
    assert!(builder.list()["waiting"].as_u64().unwrap() > 0, "it waits for another token");
}

#[test]
fn watch_pushes_what_appears_in_the_store_and_what_appeared_before_it_came_back() {
    let lab = Lab::start();
    for nix in [Nix::OLDEST, Nix::NEWEST] {
        let builder = Builder::new(&lab, nix.name(), nix);
        let is_marked = || names(&builder.queue).iter().any(|name| name.starts_with("watched-"));
        let watch = builder.spawn(&["watch", "main", "-v"]);
        wait_until(is_marked);
        let first = builder.machine.build("all", &[("salt", nix.name())]);
        wait_until(|| is_in(&lab, &first));
        for path in builder.machine.closure(&first) {
            assert!(is_in(&lab, &path), "{path}");
        }
        signal(&watch, "TERM");
        let ended = Run::wait_for(watch);
        assert!(ended.is_success(), "{ended}");
        assert!(!ended.stderr().contains(".drv"), "derivations stay here: {ended}");

        let second = builder.machine.build("empty", &[("salt", &format!("down-{}", nix.name()))]);
        let watch = builder.spawn(&["watch", "main"]);
        wait_until(|| is_in(&lab, &second));
        signal(&watch, "INT");
        Run::wait_for(watch).succeeds();
    }
}

/// The names in a folder; none if it is not there yet.
fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn wait_until(mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_mins(2), "it does not happen");
        thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn filters_of_the_settings_apply_to_pushes_and_to_the_queue() {
    let lab = Lab::start();
    let builder = Builder::new(&lab, "builder", Nix::NEWEST);
    let all = builder.machine.build("all", &[("salt", "filter")]);
    let by_name = |name: &str| {
        let closure = builder.machine.closure(&all);
        closure.into_iter().find(|path| path.contains(name)).unwrap()
    };
    let shown = builder.dormer(&["push", "main", &all, "--exclude", "library-*", "--dry-run", "--json"]);
    assert_eq!(shown.code(), Some(3), "{shown}");
    let states = |state: &str| -> Vec<String> {
        let found = lines(&shown).into_iter().filter(|line| line["state"] == state);
        found.map(|line| line["path"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!((states("excluded"), states("missing")), (vec![by_name("library")], vec![by_name("empty")]));
    assert_eq!(states("incomplete").len(), 4, "{shown}");

    let settings = builder.machine.home().join(".config/dormer/config.toml");
    let text = fs::read_to_string(&settings).unwrap();
    fs::write(&settings, format!("{text}\n[push.caches.main]\nexclude = [\"library-*\"]\n")).unwrap();
    let pushed = builder.dormer(&["push", "main", &all]);
    assert_eq!(pushed.code(), Some(3), "{pushed}");
    assert!(pushed.stderr().contains("--allow-incomplete"), "{pushed}");
    builder.hook(&[all.clone(), by_name("library")]);
    let drained = builder.dormer(&["queue", "drain", "--json"]);
    drained.succeeds();
    assert_eq!((count(&drained, "left_out"), builder.list()["waiting"].as_u64()), (2, Some(0)), "{drained}");
    for (name, expected) in [("empty", true), ("library", false), ("tool", false), ("all", false)] {
        assert_eq!(is_in(&lab, &by_name(name)), expected, "{name}");
    }
    let waited = builder.dormer(&["queue", "wait-for", &all, &by_name("empty"), "--cache", "main"]);
    waited.succeeds();
    assert!(
        waited.stderr().contains("left out of main: ") && !waited.stderr().contains("all of them"),
        "{waited}"
    );
    builder.dormer(&["push", "main", &all, "--allow-incomplete"]).succeeds();
    assert!(is_in(&lab, &all) && !is_in(&lab, &by_name("library")));
}

/// A hook that ended with success has queued its build, whatever else is killed meanwhile, and no
/// kill leaves a half entry.
#[test]
fn killed_hooks_queue_all_or_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let queue = folder.path().join("queue");
    let mut random = rand::rng();
    let (mut accepted, mut killed) = (Vec::new(), 0);
    for round in 0..times(10) {
        let path = format!("{PATH}-{round}");
        let mut command = Command::new(binary());
        command.args(["hook", "main", "--queue-dir"]).arg(&queue).env_clear().env("OUT_PATHS", &path);
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        // Longer and longer, so that some end by themselves on a slow machine too.
        thread::sleep(Duration::from_micros(random.random_range(0..8_000 * (1 + round as u64 % 10))));
        let _ = child.kill();
        let status = child.wait().unwrap();
        match status.signal() {
            None if status.success() => accepted.push(path),
            None => panic!("a hook ends with 0: {status}"),
            Some(_) => killed += 1,
        }
    }
    // At least this one, which nothing kills, is accepted. The owner of the queue alone can read
    // it, whatever the umask of the hook is, also if root runs it, as the daemon of Nix does.
    let owner = match fs::metadata(&queue).unwrap().uid() {
        0 => 65_534,
        own => own,
    };
    Run::of(Command::new("chown").args(["-R", &owner.to_string()]).arg(&queue)).succeeds();
    let mut command = Command::new("sh");
    let last = format!("{PATH}-last");
    command.args(["-c", "umask 077; exec \"$0\" hook main --queue-dir \"$1\""]).arg(binary()).arg(&queue);
    Run::of(command.env_clear().env("OUT_PATHS", &last)).succeeds();
    accepted.push(last);
    let mut others = Command::new("find");
    others.arg(queue.join("pending")).args(["-name", "*.json", "-not"]);
    others.args(["(", "-perm", "600", "-user", &owner.to_string(), ")"]);
    assert_eq!(Run::of(&mut others).succeeds(), "");
    assert!(killed > 0, "no hook was killed");
    let mut list = Command::new(binary());
    let listed = Run::of(list.args(["queue", "list", "--json", "--queue-dir"]).arg(&queue).env_clear());
    listed.succeeds();
    let entries: Vec<Value> =
        lines(&listed).into_iter().filter(|line| line["message_type"] == "queue_entry").collect();
    assert!(entries.iter().all(|entry| entry["state"] == "waiting"), "{listed}");
    for path in &accepted {
        let has_it = |entry: &&Value| entry["paths"][0] == path.as_str();
        assert_eq!(entries.iter().filter(has_it).count(), 1, "{path}: {listed}");
    }
}

/// Hooks are killed, then drainers, then both, and so on. At the end everything is pushed, once.
#[test]
fn killed_hooks_and_drainers_lose_nothing_and_push_nothing_twice() {
    const LEAVES: usize = 40;
    let lab = Lab::start();
    let proxy = Proxy::watching(lab.address());
    let builder = Builder::new(&lab, "builder", Nix::NEWEST);
    let url = proxy.cache_url("");
    builder.dormer(&["login", "proxied", &url, &lab.admin_token(), "--set-default"]).succeeds();
    let crowd = builder.machine.build("crowd", &[("salt", "kill"), ("leaves", &LEAVES.to_string())]);
    let closure = builder.machine.closure(&crowd);
    let before = lab.stored_bytes();
    let mut random = rand::rng();
    let (mut killed_hooks, mut killed_drainers, mut accepted) = (0, 0, Vec::new());
    let rounds = times(3);
    for round in 0..rounds {
        let (kills_hooks, kills_drainer) = (round % 3 != 1, round % 3 != 0);
        // One that does not end by itself: the first one finds an empty queue.
        let mut drainer = builder.spawn(&["queue", "drain", "--watch", "-j", "1"]);
        // Some of the paths, each by a hook that may be killed. A hook takes some 50 ms here.
        for path in closure.iter().skip(round).step_by(rounds) {
            let mut command = builder.command(&["hook", "main"]);
            let mut hook = command.env("OUT_PATHS", path).spawn().unwrap();
            if kills_hooks {
                thread::sleep(Duration::from_millis(random.random_range(0..200)));
                let _ = hook.kill();
            }
            let status = hook.wait().unwrap();
            if status.success() {
                accepted.push(path.clone());
            }
            killed_hooks += usize::from(status.signal().is_some());
        }
        if kills_drainer {
            let _ = drainer.kill();
            killed_drainers += usize::from(drainer.wait().unwrap().signal().is_some());
        } else {
            signal(&drainer, "TERM");
            Run::wait_for(drainer).succeeds();
        }
    }
    assert_eq!(killed_drainers, rounds - rounds.div_ceil(3), "a drainer ended by itself");
    assert!(killed_hooks > 0 && !accepted.is_empty(), "{killed_hooks} hooks killed, {accepted:?}");
    // Started twice: one drains, the other waits for it.
    let drain_twice = || {
        let both = [(); 2].map(|()| builder.spawn(&["queue", "drain", "--json", "-j", "2"]));
        for run in both.map(Run::wait_for) {
            run.succeeds();
        }
    };
    drain_twice();
    let listed = builder.list();
    assert_eq!((&listed["waiting"], &listed["dead"]), (&0.into(), &0.into()), "{listed}");
    for path in &accepted {
        assert!(is_in(&lab, path), "{path}: {} of {}", accepted.len(), closure.len());
    }
    // Each drainer goes on in the session of the last one. Its name is with the queue, because a
    // service has no home.
    let seen = proxy.seen();
    let sessions = seen.iter().filter_map(|seen| seen.line.split_once("/sessions/")).map(|(_, id)| &id[..32]);
    assert_eq!(sessions.collect::<std::collections::BTreeSet<_>>().len(), 1);
    assert!(!builder.machine.home().join(".local/state/dormer/push").exists());
    builder.hook(&closure);
    drain_twice();
    for path in &closure {
        assert!(is_in(&lab, path), "{path}");
    }
    // A killed drainer costs the part that was on its way. A part has a table beside its chunks.
    let parts = proxy.seen().into_iter().filter(|seen| seen.line.contains("/parts/"));
    let parts: Vec<u64> = parts.map(|seen| seen.body_bytes).collect();
    let (sent, stored) = (parts.iter().sum::<u64>(), lab.stored_bytes() - before);
    let largest = parts.iter().max().expect("chunks were sent");
    let allowed = stored + stored / 50 + killed_drainers as u64 * largest;
    assert!(sent <= allowed, "{sent} sent, {stored} stored, {killed_drainers} kills: {parts:?}");
    // What the cache has is not sent again.
    proxy.forget();
    builder.hook(&closure);
    let again = builder.dormer(&["queue", "drain", "--json"]);
    again.succeeds();
    assert_eq!(count(&again, "present"), closure.len(), "{again}");
    let sent: Vec<_> = proxy.seen().into_iter().filter(|seen| seen.line.starts_with("PUT ")).collect();
    assert!(sent.is_empty(), "{sent:?}");
}

/// A disk without space: the build goes on, the reason is said and counted, no entry is damaged,
/// and with space again everything works again.
#[test]
fn a_full_disk_refuses_builds_and_damages_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let script = r#"set -eu
        mount -t tmpfs -o size=256k tmpfs "$1"
        export DORMER_QUEUE_DIR=$1/queue
        OUT_PATHS=$2-one "$0" hook main
        head -c 1000000 /dev/zero >"$1/filler" 2>/dev/null || true
        for _ in 1 2; do OUT_PATHS=$2-two "$0" hook main; done
        "$0" queue list --json
        rm "$1/filler"
        OUT_PATHS=$2-three "$0" hook main
        "$0" queue list --json
        ls -A "$1"/queue/pending/*
    "#;
    let mut command = Command::new("unshare");
    if !Path::new("/proc/self").metadata().is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0) {
        command.arg("--map-root-user");
    }
    command.args(["--mount", "--propagation", "private", "sh", "-c", script]).arg(binary());
    let run = Run::of(command.arg(folder.path()).arg(PATH));
    let said = run.succeeds();
    assert_eq!(run.stderr().matches("not queued").count(), 2, "{run}");
    assert!(run.stderr().contains("No space left on device"), "{run}");
    assert!(!said.contains(".unfinished"), "{run}");
    let values: Vec<Value> = said.lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
    let sums: Vec<&Value> = values.iter().filter(|line| line["message_type"] == "queue").collect();
    assert_eq!((&sums[0]["waiting"], &sums[0]["refused"]), (&1.into(), &2.into()), "{run}");
    assert_eq!((&sums[1]["waiting"], &sums[1]["dead"]), (&2.into(), &0.into()), "{run}");
}

/// What a hook may never do: fail a build.
#[test]
fn a_hook_ends_with_success_whatever_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let good = folder.path().join("queue");
    for (queue, arguments, out, words) in [
        (&good, vec!["main"], "", "neither OUT_PATHS nor DRV_PATH"),
        (&good, vec!["main"], "result", "is not a store path"),
        (&good, vec!["a b"], PATH, "is not a cache"),
        (&good, vec!["--nonsense"], PATH, "--nonsense"),
        (&good, vec![], PATH, "no cache is named"),
        (&file, vec!["main"], PATH, "Not a directory"),
    ] {
        let mut command = Command::new(binary());
        command.arg("hook").args(&arguments).arg("--queue-dir").arg(queue).env_clear().env("OUT_PATHS", out);
        // Neither the settings of this machine nor those of its user.
        let run = Run::of(command.env("XDG_CONFIG_HOME", folder.path()));
        assert!(run.is_success() && run.stderr().contains(words), "{arguments:?}: {run}");
        assert_eq!(run.stdout(), "");
    }
    let mut list = Command::new(binary());
    let listed = Run::of(list.args(["queue", "list", "--json", "--queue-dir"]).arg(&good).env_clear());
    assert_eq!(lines(&listed).last().unwrap()["waiting"], 0, "{listed}");
}

#[test]
fn entries_are_retried_and_dropped_by_hand_and_waited_for() {
    let lab = Lab::start();
    let builder = Builder::new(&lab, "builder", Nix::NEWEST);
    let (kept, gone) = (
        builder.machine.build("empty", &[("salt", "kept")]),
        builder.machine.build("empty", &[("salt", "gone")]),
    );
    builder.hook(std::slice::from_ref(&gone));
    builder.machine.delete(std::slice::from_ref(&gone));
    let drained = builder.dormer(&["queue", "drain"]);
    assert_eq!(drained.code(), Some(3), "{drained}");
    let waited = builder.dormer(&["queue", "wait-for", &gone, "--cache", "main"]);
    assert!(waited.code() == Some(3) && waited.stderr().contains("not in the store any more"), "{waited}");

    // Built again, it is in the store again.
    builder.machine.build("empty", &[("salt", "gone")]);
    builder.dormer(&["queue", "retry", &gone]).succeeds();
    assert_eq!((&builder.list()["waiting"], &builder.list()["dead"]), (&1.into(), &0.into()));
    let waiting = builder.spawn(&["queue", "wait-for", &gone, "--cache", "main"]);
    builder.dormer(&["queue", "drain"]).succeeds();
    Run::wait_for(waiting).succeeds();
    assert!(is_in(&lab, &gone));

    builder.hook(std::slice::from_ref(&kept));
    assert_eq!(builder.dormer(&["queue", "drop", "nothing"]).code(), Some(2));
    builder.dormer(&["queue", "drop", &kept]).succeeds();
    builder.dormer(&["queue", "drain"]).succeeds();
    assert!(!is_in(&lab, &kept), "dropped is not pushed");
    let waited = builder.dormer(&["queue", "wait-for", &kept, "--cache", "main"]);
    assert!(waited.code() == Some(3) && waited.stderr().contains("is not in cache main"), "{waited}");
}
