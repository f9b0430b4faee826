//! What commands draw on a terminal, and how they leave it.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use dormer_nix::NarHash;
use dormer_tests::{Lab, Nix, http};
use serde_json::json;

/// Of the first bar, and of the end.
const TIMEOUT: Duration = Duration::from_mins(1);

/// A `^C` that the terminal writes moves the cursor away from where the bars believe it to be, and
/// one of them stays.
#[test]
fn ctrl_c_leaves_no_trace_of_the_bars() {
    let lab = Lab::start();
    let machine = lab.machine("pusher", Nix::NEWEST);
    machine.login(&lab);
    let path = machine.build("noise", &[("salt", "terminal"), ("megabytes", "400")]);

    let push = machine.command(&machine.dormer_path(), &["push", "main", &path]);
    let words = std::iter::once(push.get_program()).chain(push.get_args());
    let line: Vec<_> = words.map(|word| word.to_str().expect("our words are UTF-8")).collect();
    // The trap keeps the shell alive, which is in the same group, to tell how the terminal was
    // left.
    let line =
        format!("trap : INT; {}; echo ended with $?; stty -a | grep -o -- '-*echoctl'", line.join(" "));
    let mut session = Command::new("script")
        .args(["--quiet", "--command", &line, "/dev/null"])
        .env_clear()
        .envs(push.get_envs().filter_map(|(name, value)| Some((name, value?))))
        .env("TERM", "xterm")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("script is part of every Debian");
    let mut keys = session.stdin.take().expect("it is piped");
    let mut screen = session.stdout.take().expect("it is piped");
    let (sender, pieces) = mpsc::channel();
    thread::spawn(move || {
        let mut piece = [0; 4096];
        while let Ok(length @ 1..) = screen.read(&mut piece) {
            if sender.send(piece[..length].to_vec()).is_err() {
                break;
            }
        }
    });

    let mut written = Vec::new();
    let mut interrupted = false;
    let end = Instant::now() + TIMEOUT;
    loop {
        match pieces.recv_timeout(end.saturating_duration_since(Instant::now())) {
            Ok(piece) => written.extend(piece),
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                session.kill().expect("our own child can be ended");
                break;
            }
        }
        if !interrupted && String::from_utf8_lossy(&written).contains("0/1 paths") {
            keys.write_all(b"\x03").expect("the terminal is there");
            interrupted = true;
        }
    }
    session.wait().expect("our own child can be waited for");
    let written = String::from_utf8_lossy(&written);
    let (drawn, after) = written.split_once("ended with 130").unwrap_or_else(|| panic!("{written}"));
    assert!(drawn.contains("interrupted: 0 of 1 path pushed") && !drawn.contains("^C"), "{written}");
    assert_eq!(after.trim(), "echoctl", "the terminal is left as it was");
}

/// A real terminal: a session of tmux, which ends with this.
struct Terminal {
    folder: tempfile::TempDir,
}

impl Terminal {
    /// Runs a line of shell in a terminal of this size.
    fn run(line: &str, columns: u32, rows: u32) -> Self {
        let terminal = Self { folder: tempfile::tempdir().unwrap() };
        let size = [columns.to_string(), rows.to_string()];
        terminal.tmux(&["-f", "/dev/null", "new-session", "-d", "-x", &size[0], "-y", &size[1], line]);
        terminal
    }

    fn tmux(&self, arguments: &[&str]) -> String {
        let output = Command::new("tmux")
            .args(arguments)
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .env("LANG", "C.UTF-8")
            .env("TMUX_TMPDIR", self.folder.path())
            .output()
            .expect("tmux is part of every Debian");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// What the terminal shows as soon as it shows this text.
    fn shows(&self, text: &str) -> String {
        self.becomes(text, |screen| screen.contains(text))
    }

    /// What the terminal shows as soon as that is so.
    fn becomes(&self, what: &str, is_so: impl Fn(&str) -> bool) -> String {
        let end = Instant::now() + TIMEOUT;
        loop {
            let screen = self.tmux(&["capture-pane", "-p"]);
            if is_so(&screen) {
                return screen;
            }
            assert!(Instant::now() < end, "{what} in\n{screen}");
            thread::sleep(Duration::from_millis(50));
        }
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

/// Sends a signal to processes.
fn signal(name: &str, processes: &[u32]) {
    let processes = processes.iter().map(u32::to_string);
    let status = Command::new("kill").args(["-s", name]).args(processes).status().unwrap();
    assert!(status.success(), "kill -s {name}");
}

/// A command with its environment as a line of shell.
fn line(command: &Command) -> String {
    let quoted = |text: &str| format!("'{}'", text.replace('\'', r"'\''"));
    let variables = command.get_envs().filter_map(|(name, value)| {
        Some(quoted(&format!("{}={}", name.to_str().unwrap(), value?.to_str().unwrap())))
    });
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words = words.map(|word| quoted(word.to_str().unwrap()));
    let all: Vec<String> = variables.chain(words).collect();
    format!("env -i TERM=xterm {}", all.join(" "))
}

/// `dormer top` fills a terminal and leaves it as it was; charts are drawn on a terminal only.
#[test]
fn top_and_charts_are_drawn_on_a_terminal_and_are_lines_without_one() {
    let lab = Lab::start();
    lab.login();
    let nar = dormer_nix::nar::encode_tree(&dormer_nix::nar::Node::file(vec![7; 3 << 20]));
    let hash = "1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5";
    let info = json!({
        "cache": "main", "store_path_hash": hash, "store_path": format!("/nix/store/{hash}-big-1.0"), "references": [],
        "system": null, "deriver": null, "sigs": [], "ca": null,
        "nar_hash": format!("sha256:{}", NarHash::digest(&nar).to_hex()), "nar_size": nar.len(),
    });
    let headers =
        [("X-Attic-Nar-Info", info.to_string()), ("Authorization", format!("Bearer {}", lab.admin_token()))];
    let headers: Vec<_> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let pushed = http::ask(lab.address(), "PUT", "/_api/v1/upload-path", &headers, &nar);
    assert_eq!(pushed.status, 200, "{pushed:?}");

    let client = |arguments: &[&str]| line(&lab.client_process(arguments));
    let session = [
        client(&["top", "--interval", "500ms"]),
        "echo q ended with $?; read enter".to_owned(),
        client(&["top", "--interval", "500ms"]),
        "echo ctrl-c ended with $?; stty -a | grep -o -- ' -*echo '; read enter; clear".to_owned(),
        client(&["stats"]),
        client(&["stats", "main"]),
        client(&["cache", "ls", "main"]),
        client(&["cache", "show", "main", hash]),
        format!("{}; echo all ended with $?; sleep 60", line(&lab.server_process(&["gc", "--dry-run"]))),
    ];
    let terminal = Terminal::run(&session.join("; "), 100, 60);
    // The last row is drawn last.
    let screen = terminal.shows("q quits");
    for text in
        ["database and store answer", "reads", "pushes", "jobs", "nothing was published yet", "q quits"]
    {
        assert!(screen.contains(text), "{text} in\n{screen}");
    }
    assert_eq!(terminal.tmux(&["display-message", "-p", "#{alternate_on}"]).trim(), "1");
    // A second answer brings rates.
    terminal.shows("/s");
    // A server that hangs keeps nobody waiting: the screen follows the size of the terminal.
    signal("STOP", &lab.process_ids());
    thread::sleep(Duration::from_millis(1_500));
    terminal.tmux(&["resize-window", "-x", "80", "-y", "40"]);
    let ends_at_the_bottom = |screen: &str| screen.lines().nth(39).is_some_and(|row| row == "q quits");
    terminal.becomes("drawn anew", ends_at_the_bottom);
    signal("CONT", &lab.process_ids());
    terminal.tmux(&["resize-window", "-x", "100", "-y", "60"]);
    terminal.tmux(&["send-keys", "q"]);
    terminal.shows("q ended with 0");
    terminal.tmux(&["send-keys", "Enter"]);
    terminal.shows("since the start");
    terminal.tmux(&["send-keys", "C-c"]);
    let screen = terminal.shows("echo");
    assert!(screen.contains("ctrl-c ended with 0") && !screen.contains("-echo"), "{screen}");
    terminal.tmux(&["send-keys", "Enter"]);
    let screen = terminal.shows("all ended with 0");
    let state = terminal.tmux(&["display-message", "-p", "#{alternate_on} #{cursor_flag}"]);
    assert_eq!(state.trim(), "0 1", "the terminal is as it was");
    let with_bars = screen.lines().filter(|line| line.contains('█')).count();
    assert!(with_bars >= 4, "{screen}");
    for text in ["saved by compression", "big-1.0", "1 path up to 10 MiB", "NARs of the closure"] {
        assert!(screen.contains(text), "{text} in\n{screen}");
    }

    // Without a terminal: lines, or the whole status.
    let lines = lab.dormer(&["top", "--count", "2", "--interval", "500ms"]).succeeds();
    let lines: Vec<&str> = lines.lines().collect();
    assert!(lines.len() == 2 && lines[0].contains("1 push since the start"), "{lines:?}");
    assert!(lines[1].starts_with("reads ") && lines[1].contains("/s"), "{lines:?}");
    let status = lab.dormer(&["top", "--count", "1", "--json"]).succeeds();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert_eq!((&status["message_type"], &status["pushes"]["nars"]), (&json!("status"), &json!(1)));
    assert!(!lab.dormer(&["stats"]).succeeds().contains('█'), "no chart for a pipe");
    let reader = lab.token(&["--pull", "*"]);
    let mut refused = lab.client_process(&["top", "--count", "1", "--endpoint", &lab.url()]);
    let refused = refused.env("DORMER_TOKEN", reader).output().unwrap();
    assert_eq!(refused.status.code(), Some(4), "{}", String::from_utf8_lossy(&refused.stderr));
}
