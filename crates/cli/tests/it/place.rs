//! The real binary in a home of its own, and what it says with ports, keys and paths filtered.

#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is the failure")]

use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// A home folder of its own, and perhaps a server in it.
pub(crate) struct Place {
    pub(crate) folder: TempDir,
    pub(crate) server: Option<Child>,
    pub(crate) port: String,
}

impl Place {
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

    /// Runs a command and shows all that it did, filtered.
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
        // Each request has another id.
        let mut from = 0;
        while let Some(start) = text[from..].find("(request ").map(|at| from + at) {
            let end = start + text[start..].find(')').expect("the id ends");
            text.replace_range(start..=end, "(request ID)");
            from = start + 1;
        }
        // A public key is 44 characters of base64 behind a colon, the last of them `=`.
        for name in ["main:", "team:"] {
            while let Some(start) = text.match_indices(name).map(|(at, _)| at + name.len()).find(|start| {
                text.get(*start..start + 44).is_some_and(|key| key.ends_with('=') && !key.contains(' '))
            }) {
                text.replace_range(start..start + 44, "KEY");
            }
        }
        text
    }

    /// Starts a server; all that it says up to the line with its address. Nobody listens to what it says afterwards, which
    /// must not trouble it.
    pub(crate) fn serve(&mut self) -> String {
        let mut command = self.command(&["serve", "--listen", "127.0.0.1:0"]);
        // Other tests' servers want the default one, too.
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

    /// Asks the server to stop, as systemd and Kubernetes do; its exit code.
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

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(server) = &mut self.server {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

/// What a run of the doctor said.
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

    /// Subjects and messages of what has this status.
    pub(crate) fn with(&self, status: &str) -> Vec<String> {
        let wanted = self.checks.iter().filter(|check| check["status"] == status);
        wanted
            .map(|check| {
                format!("{}: {}", check["subject"].as_str().unwrap(), check["message"].as_str().unwrap())
            })
            .collect()
    }

    /// The only failure is this one, it has advice, and the exit code says so.
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
