//! The real binary in its own home, and its output with ports, keys and paths filtered.

#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is the failure")]

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// A home folder for one test, perhaps with a server in it.
pub(crate) struct TestHome {
    pub(crate) folder: TempDir,
    pub(crate) server: Option<Child>,
    pub(crate) port: String,
}

impl TestHome {
    pub(crate) fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), server: None, port: String::new() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_dormer"));
        command.args(arguments).env_clear().env("HOME", self.folder.path()).env("PATH", "/usr/bin:/bin");
        command.env("COLUMNS", "100").current_dir(self.folder.path()).stdin(Stdio::null());
        command
    }

    /// Runs a command and shows its exit code and output, filtered.
    pub(crate) fn run(&self, arguments: &[&str]) -> String {
        self.shown(&self.command(arguments).output().unwrap())
    }

    pub(crate) fn shown(&self, output: &Output) -> String {
        let mut shown = format!("exit code: {}\n", output.status.code().unwrap());
        for (name, bytes) in [("stdout", &output.stdout), ("stderr", &output.stderr)] {
            if !bytes.is_empty() {
                let _ = write!(shown, "--- {name}\n{}", String::from_utf8_lossy(bytes));
            }
        }
        self.filtered(&shown)
    }

    pub(crate) fn filtered(&self, text: &str) -> String {
        let mut text = text.replace(&self.folder.path().display().to_string(), "HOME");
        if !self.port.is_empty() {
            text = text.replace(&self.port, "PORT");
        }
        // Each request has a different id.
        let mut from = 0;
        while let Some(start) = text[from..].find("(request ").map(|at| from + at) {
            let end = start + text[start..].find(')').expect("the id ends");
            text.replace_range(start..=end, "(request ID)");
            from = start + 1;
        }
        // A public key is 44 characters of base64 after a colon, the last of them `=`.
        for name in ["main:", "team:"] {
            while let Some(start) = text.match_indices(name).map(|(at, _)| at + name.len()).find(|start| {
                text.get(*start..start + 44).is_some_and(|key| key.ends_with('=') && !key.contains(' '))
            }) {
                text.replace_range(start..start + 44, "KEY");
            }
        }
        text
    }

    /// Starts a server. Returns its output up to the line with its address. Nobody reads the later
    /// output, which must not disturb the server.
    pub(crate) fn serve(&mut self) -> String {
        let mut command = self.command(&["serve", "--listen", "127.0.0.1:0"]);
        // The servers of other tests want the default address, too.
        command.env("DORMER_METRICS_LISTEN", "off");
        let mut server = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        for line in BufReader::new(server.stderr.take().unwrap()).lines() {
            let line = line.unwrap();
            let _ = writeln!(said, "{line}");
            if let Some(address) = line.strip_prefix("listening on http://127.0.0.1:") {
                address.clone_into(&mut self.port);
                break;
            }
        }
        self.server = Some(server);
        self.filtered(&said)
    }

    /// Asks the server to stop, like systemd and Kubernetes. Returns its exit code.
    pub(crate) fn stop(&mut self) -> Option<i32> {
        let mut server = self.server.take().unwrap();
        assert!(Command::new("kill").arg(server.id().to_string()).status().unwrap().success());
        server.wait().unwrap().code()
    }

    pub(crate) fn login(&self) {
        let url = format!("http://127.0.0.1:{}", self.port);
        let token = self.path(".local/share/dormer/admin-token");
        let login = self.run(&["login", "lab", &url, "--token-file", token.to_str().unwrap()]);
        assert!(login.starts_with("exit code: 0"), "{login}");
    }
}

impl Drop for TestHome {
    fn drop(&mut self) {
        if let Some(server) = &mut self.server {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

/// The report of a doctor run.
#[derive(Debug)]
pub(crate) struct Report {
    pub(crate) code: Option<i32>,
    pub(crate) checks: Vec<Value>,
}

impl Report {
    pub(crate) fn of(command: &mut Command) -> Self {
        let output = command.arg("--json").output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let checks = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        Self { code: output.status.code(), checks }
    }

    /// Subjects and messages of the findings with this status.
    pub(crate) fn with(&self, status: &str) -> Vec<String> {
        let wanted = self.checks.iter().filter(|check| check["status"] == status);
        wanted
            .map(|check| {
                format!("{}: {}", check["subject"].as_str().unwrap(), check["message"].as_str().unwrap())
            })
            .collect()
    }

    /// Checks that this is the only failure, that it has advice, and that the exit code matches.
    #[track_caller]
    pub(crate) fn fails_only(&self, words: &str) {
        let failures = self.with("fail");
        assert!(failures.len() == 1 && failures[0].contains(words), "{words}: {self:#?}");
        let failure = self.checks.iter().find(|check| check["status"] == "fail").unwrap();
        assert!(!failure["hints"].as_array().unwrap().is_empty(), "{failure}");
        assert_eq!(self.code, Some(1));
    }

    #[track_caller]
    pub(crate) fn is_healthy(&self) {
        assert!(self.with("fail").is_empty() && self.code == Some(0), "{self:#?}");
        assert!(!self.with("ok").is_empty());
    }
}
