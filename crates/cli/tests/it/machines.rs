//! Machines as services find them: without a home, without a terminal, behind other programs.

#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is the failure")]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use crate::test_home::TestHome;

/// Longest wait for a process to end.
const END_MAX: Duration = Duration::from_secs(20);

/// Answers every request whose path begins with one of `paths`, and all others with 404.
fn answering(paths: &'static [(&'static str, u16, &'static str)]) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut head = [0; 4096];
            let length = stream.read(&mut head).unwrap_or_default();
            let head = String::from_utf8_lossy(&head[..length]).into_owned();
            let path = head.split(' ').nth(1).unwrap_or_default();
            let found = paths.iter().find(|(begin, ..)| path.starts_with(begin));
            let (status, body) =
                found.map_or((404, "<html>nothing</html>"), |(_, status, body)| (*status, body));
            let _ = write!(
                stream,
                "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
        }
    });
    url
}

#[test]
fn a_service_needs_an_address_and_a_token_and_neither_file_nor_home() {
    let mut home = TestHome::new();
    home.serve();
    home.login();
    home.run(&["cache", "create", "team"]);
    let url = format!("http://127.0.0.1:{}", home.port);
    let token = fs::read_to_string(home.path(".local/share/dormer/admin-token")).unwrap();
    // Every command that talks to a server. `use` also writes files, so it gets a folder for them.
    let commands: [&[&str]; 7] = [
        &["cache", "list"],
        &["cache", "info", "team"],
        &["cache", "create", "new"],
        &["cache", "configure", "new", "--public"],
        &["cache", "destroy", "new", "--no-confirm"],
        &["cache", "remove-path", "team", "f22352qy5d2vfxv22w7q3n7gz1ia47nx"],
        &["use", "team", "--system", "--dry-run"],
    ];
    for by_flag in [true, false] {
        for words in commands {
            let mut command = home.command(words);
            command
                .env_remove("HOME")
                .env("NIX_CONF_DIR", home.path("etc"))
                .env("DORMER_TOKEN", token.trim());
            if by_flag {
                command.args(["--endpoint", &url]).env("DORMER_ENDPOINT", "http://127.0.0.1:1");
            } else {
                command.env("DORMER_ENDPOINT", &url);
            }
            let said = home.shown(&command.output().unwrap());
            assert!(said.starts_with("exit code: 0"), "{words:?}: {said}");
        }
    }
    // The token of the settings goes to the server of the settings only.
    let said = home.run(&["cache", "info", "team", "--endpoint", &url]);
    assert!(said.starts_with("exit code: 4") && said.contains("without a token"), "{said}");
    // A named server is the one in the settings, whatever the variable says.
    let mut command = home.command(&["cache", "info", "lab:team"]);
    let said = home.shown(&command.env("DORMER_ENDPOINT", "http://127.0.0.1:1").output().unwrap());
    assert!(said.starts_with("exit code: 0"), "{said}");
}

#[test]
fn login_accepts_servers_only() {
    const ATTIC: &str = r#"{"code":404,"error":"NotFound","message":"The URL you requested was not found."}"#;
    const DORMER: &str = r#"{"caches":[]}"#;
    const INFO: &str = "WantMassQuery: 1\nStoreDir: /nix/store\n";
    let url = |paths| answering(paths);
    // What answers, the path of the address, the exit code and words of the message.
    for (paths, path, code, words) in [
        (&[("/_api/v2/caches", 200, DORMER)][..], "", 0, "logged in"),
        (&[("/base/_api/v2/caches", 200, DORMER)], "/base", 0, "logged in"),
        (&[("/", 404, ATTIC)], "", 0, "does not list"),
        (&[("/attic/", 404, ATTIC)], "/attic", 0, "does not list"),
        // Other programs, static files, login pages, proxies without this route.
        (&[], "", 1, "no server of Dormer or Attic answers"),
        (&[("/", 200, "<html>log in</html>")], "", 1, "does not come from a binary cache server"),
        (&[("/", 405, "")], "", 1, "no server of Dormer or Attic answers"),
        (&[("/", 404, "{}")], "", 1, "no server of Dormer or Attic answers"),
        (
            &[("/", 404, r#"{"code":404,"error":"Oops","message":"m"}"#)],
            "",
            1,
            "no server of Dormer or Attic answers",
        ),
        // The address of a cache.
        (
            &[("/main/nix-cache-info", 200, INFO), ("/", 404, ATTIC)],
            "/main",
            2,
            "is the address of the cache main",
        ),
        (
            &[("/main/nix-cache-info", 401, ""), ("/", 404, ATTIC)],
            "/main/",
            2,
            "is the address of the cache main",
        ),
        (&[("/main/nix-cache-info", 200, INFO)], "/main", 2, "is the address of the cache main"),
        (&[("/b/main/nix-cache-info", 200, INFO)], "/b/main", 2, "give the address of the server: http://"),
    ] {
        let home = TestHome::new();
        let said = home.run(&["login", "lab", &format!("{}{path}", url(paths))]);
        assert!(said.starts_with(&format!("exit code: {code}\n")), "{paths:?} {path}: {said}");
        assert!(said.contains(words), "{paths:?} {path}: {said}");
        assert_eq!(home.path(".config/dormer/config.toml").exists(), code == 0, "{paths:?} {path}: {said}");
    }
}

#[test]
fn login_at_the_address_of_a_real_cache_says_so() {
    let mut home = TestHome::new();
    home.serve();
    home.login();
    home.run(&["cache", "create", "team"]);
    for cache in ["main", "team"] {
        let url = format!("http://127.0.0.1:{}/{cache}", home.port);
        let said = home.run(&["login", "other", &url]);
        assert!(
            said.starts_with("exit code: 2") && said.contains("give the address of the server"),
            "{said}"
        );
    }
}

/// Waits for a line that begins like this, and leaves the rest of the output to a thread.
fn wait_for_line(child: &mut Child, begin: &str) {
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let found = lines.by_ref().any(|line| line.unwrap().starts_with(begin));
    assert!(found, "the process ended before it said {begin:?}");
    thread::spawn(move || lines.for_each(drop));
}

fn signal(child: &Child, name: &str) {
    assert!(Command::new("kill").args(["-s", name, &child.id().to_string()]).status().unwrap().success());
}

/// How the process ends, or `None` if it goes on.
fn ends(child: &mut Child, wait: Duration) -> Option<ExitStatus> {
    let end = Instant::now() + wait;
    while Instant::now() < end {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        thread::sleep(Duration::from_millis(20));
    }
    None
}

/// The commands that run until they are told to stop, each with its first line when it runs.
fn services(home: &TestHome) -> Vec<(Command, &'static str)> {
    let published = home.path("published");
    fs::create_dir_all(&published).unwrap();
    let settings = home.path("dormer.toml");
    let target = format!(
        "[[edge]]\nname = \"edge\"\ntype = \"local\"\npath = \"{}\"\ncaches = [\"main\"]\n",
        published.display()
    );
    fs::write(&settings, target).unwrap();
    let settings = settings.to_str().unwrap();
    let lines = [
        (&["serve", "--listen", "127.0.0.1:0"][..], "listening on "),
        (
            &["edge", "serve", "--dir", published.to_str().unwrap(), "--listen", "127.0.0.1:0"],
            "listening on ",
        ),
        (&["publish", "--watch", "--config", settings], "edge: "),
    ];
    let command = |(words, line): (&[&str], &'static str)| {
        let mut command = home.command(words);
        command.env("DORMER_METRICS_LISTEN", "off").stdout(Stdio::null()).stderr(Stdio::piped());
        (command, line)
    };
    lines.map(command).into()
}

#[test]
fn every_service_ends_in_order_after_any_signal_to_stop() {
    let mut home = TestHome::new();
    home.serve();
    assert_eq!(home.stop(), Some(0));
    for (mut command, line) in services(&home) {
        for name in ["TERM", "INT", "HUP"] {
            let mut child = command.spawn().unwrap();
            wait_for_line(&mut child, line);
            signal(&child, name);
            assert!(ends(&mut child, END_MAX).is_some_and(|status| status.success()), "{name}: {command:?}");
        }
    }
}

#[test]
fn a_service_that_must_survive_its_terminal_does() {
    let mut home = TestHome::new();
    home.serve();
    assert_eq!(home.stop(), Some(0));
    for (service, line) in services(&home) {
        let mut command = Command::new("nohup");
        command.arg(service.get_program()).args(service.get_args()).env_clear();
        command.envs(service.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command
            .current_dir(home.folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        wait_for_line(&mut child, line);
        signal(&child, "HUP");
        assert_eq!(ends(&mut child, Duration::from_millis(500)), None, "{command:?}");
        signal(&child, "TERM");
        assert!(ends(&mut child, END_MAX).is_some_and(|status| status.success()), "{command:?}");
    }
}
