//! `dormer push` on a terminal.

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use dormer_tests::{Lab, Nix};

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
