//! Machines: a `/nix`, a home and a Nix version each.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use crate::{Lab, Nix, parts};

/// A machine: one folder is its `/nix`, another its user's home.
#[derive(Debug, Clone)]
pub struct Machine {
    nix: Nix,
    tree: PathBuf,
    /// The lab's folder, which the machine sees under the same path.
    work: PathBuf,
    folder: PathBuf,
}

impl Machine {
    pub(crate) fn new(work: &Path, name: &str, nix: Nix) -> Self {
        let folder = work.join("machines").join(name);
        for name in ["nix", "home", "conf", "tmp"] {
            fs::create_dir_all(folder.join(name)).expect("a folder");
        }
        let machine = Self { nix, tree: nix.tree(), work: work.to_path_buf(), folder };
        fs::copy(parts::workspace_root().join("tests/nix/closure.nix"), machine.folder.join("closure.nix"))
            .expect("the expression of the test closures");
        machine.configure(&[]);
        machine
    }

    /// Writes nix.conf anew: signatures are required, these keys are trusted, and nothing is
    /// substituted unless a command asks for it.
    pub fn configure(&self, trusted_public_keys: &[String]) {
        let conf = format!(
            "build-users-group =\nsandbox = false\nsubstituters =\nexperimental-features = nix-command\n\
             require-sigs = true\ntrusted-public-keys = {}\nnetrc-file = {}\n",
            trusted_public_keys.join(" "),
            self.folder.join("netrc").display(),
        );
        fs::write(self.folder.join("conf/nix.conf"), conf).expect("nix.conf can be written");
    }

    /// Lets this machine sign what it builds from now on, with the key in this file.
    pub fn sign_builds(&self, secret_key: &Path) {
        let path = self.folder.join("conf/nix.conf");
        let conf = fs::read_to_string(&path).expect("nix.conf was written");
        fs::write(path, format!("{conf}secret-key-files = {}\n", secret_key.display()))
            .expect("nix.conf can be written");
    }

    /// Allows content-addressed derivations, which Nix takes for an experiment.
    pub fn allow_content_addressed(&self) {
        let path = self.folder.join("conf/nix.conf");
        let conf = fs::read_to_string(&path).expect("nix.conf was written");
        fs::write(path, format!("{conf}extra-experimental-features = ca-derivations\n"))
            .expect("nix.conf can be written");
    }

    /// The expression of the test closures, as the machine sees it.
    pub fn expression(&self) -> String {
        self.folder.join("closure.nix").to_str().expect("our folders are UTF-8").to_owned()
    }

    /// Gives this machine's nix a token for a host, the way Nix knows it: the password in netrc.
    pub fn set_netrc(&self, address: &str, token: &str) {
        let host = address.split(':').next().expect("split gives at least one part");
        fs::write(self.folder.join("netrc"), format!("machine {host} login anything password {token}\n"))
            .expect("netrc can be written");
    }

    /// Which Nix it has.
    pub fn nix_version(&self) -> Nix {
        self.nix
    }

    /// The machine's folder for a path as the machine sees it.
    pub fn host_path(&self, path: &str) -> PathBuf {
        match path.strip_prefix("/nix/") {
            Some(inside) => self.folder.join("nix").join(inside),
            None => PathBuf::from(path),
        }
    }

    /// The home of its user.
    pub fn home(&self) -> PathBuf {
        self.folder.join("home")
    }

    /// A command in this machine.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(parts::workspace_root().join("scripts/in-nix.sh"));
        command
            .arg(&self.tree)
            .arg(self.folder.join("nix"))
            .arg(&self.work)
            .arg(program)
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin")
            .env("HOME", self.home())
            .env("USER", "root")
            .env("TMPDIR", self.folder.join("tmp"))
            .env("NIX_CONF_DIR", self.folder.join("conf"))
            .env("NO_COLOR", "1");
        command
    }

    /// Runs a program in this machine.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Run {
        Run::of(&mut self.command(program, arguments))
    }

    /// Runs the `dormer` under test in this machine.
    pub fn dormer(&self, arguments: &[&str]) -> Run {
        self.run(&self.dormer_path(), arguments)
    }

    /// Where the machine sees the `dormer` under test.
    pub fn dormer_path(&self) -> String {
        self.work.join("bin/dormer").to_str().expect("our folders are UTF-8").to_owned()
    }

    /// Starts a program in this machine and does not wait for it.
    pub fn spawn(&self, program: &str, arguments: &[&str]) -> Child {
        self.command(program, arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the machine's program starts")
    }

    /// Logs this machine's `dormer` in to the lab, with the administrator's token.
    pub fn login(&self, lab: &Lab) {
        self.dormer(&["login", "lab", &lab.url(), &lab.admin_token(), "--set-default"]).succeeds();
    }

    /// Builds an attribute of tests/nix/closure.nix and gives its store path.
    pub fn build(&self, attribute: &str, arguments: &[(&str, &str)]) -> String {
        let expression = self.expression();
        let mut all = vec![expression.as_str(), "--no-out-link", "-A", attribute];
        for (name, value) in arguments {
            let numeric = value.bytes().all(|byte| byte.is_ascii_digit());
            all.extend([if numeric { "--arg" } else { "--argstr" }, name, value]);
        }
        self.run("nix-build", &all).succeeds().trim().to_owned()
    }

    /// All paths of a closure.
    pub fn closure(&self, path: &str) -> Vec<String> {
        self.run("nix-store", &["--query", "--requisites", path])
            .succeeds()
            .lines()
            .map(str::to_owned)
            .collect()
    }

    /// Fetches a path with its closure from a cache, as a build would.
    pub fn substitute(&self, cache_url: &str, path: &str) -> Run {
        self.run("nix-store", &["--realise", path, "--option", "substituters", cache_url])
    }

    /// Checks the contents and the signatures of everything in the store.
    pub fn verify_all(&self) {
        self.run("nix", &["store", "verify", "--all"]).succeeds();
    }

    /// Forgets what Nix remembers of caches, for 30 days of a narinfo and an hour of a miss.
    pub fn forget_caches(&self) {
        let folder = self.home().join(".cache/nix");
        if folder.exists() {
            fs::remove_dir_all(&folder).expect("our own folder can be removed");
        }
    }

    /// Deletes paths from the store, and nothing else: what Nix remembers of caches stays.
    pub fn delete(&self, paths: &[String]) {
        let mut all = vec!["--delete", "--ignore-liveness"];
        all.extend(paths.iter().map(String::as_str));
        self.run("nix-store", &all).succeeds();
    }
}

/// What a command said and how it ended.
#[derive(Debug)]
pub struct Run {
    command: String,
    output: Output,
}

impl Run {
    /// Runs a command to its end.
    pub fn of(command: &mut Command) -> Self {
        let words: Vec<_> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        let output = command.stdin(Stdio::null()).output().expect("the program starts");
        Self { command: words.join(" "), output }
    }

    /// Waits for a program that [`Machine::spawn`] started.
    pub fn wait_for(child: Child) -> Self {
        let output = child.wait_with_output().expect("our own child can be waited for");
        Self { command: "a program in the background".to_owned(), output }
    }

    /// Its standard output, after a success; panics with everything it said after a failure.
    #[track_caller]
    pub fn succeeds(&self) -> String {
        assert!(self.is_success(), "{self}");
        self.stdout()
    }

    /// Everything that it said, after a failure; panics if it succeeded.
    #[track_caller]
    pub fn fails(&self) -> String {
        assert!(!self.is_success(), "this should have failed: {self}");
        format!("{}{}", self.stdout(), self.stderr())
    }

    /// Whether it ended with 0.
    pub fn is_success(&self) -> bool {
        self.output.status.success()
    }

    /// Its exit code, unless a signal ended it.
    pub fn code(&self) -> Option<i32> {
        self.output.status.code()
    }

    /// What it wrote to standard output.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    /// What it wrote to standard error.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }
}

impl std::fmt::Display for Run {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut command = self.command.clone();
        if command.len() > 2000 {
            let mut end = 2000;
            while !command.is_char_boundary(end) {
                end -= 1;
            }
            command.truncate(end);
            let _ = write!(command, " …");
        }
        write!(
            f,
            "`{command}` ended with {}\n--- stdout\n{}\n--- stderr\n{}",
            self.output.status,
            self.stdout(),
            self.stderr()
        )
    }
}
