//! `--endpoint`: which commands take it, and where their requests, tokens and builds go.

#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is the failure")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::binary::{fake_store, hostile_try, leaf_commands};
use crate::test_home::TestHome;

/// Longest wait for a request.
const WAIT_MAX: Duration = Duration::from_secs(20);

/// A server that refuses every token.
struct RefusingServer {
    address: String,
    /// The token of each request; an empty one if there was none.
    tokens: Arc<Mutex<BTreeSet<String>>>,
}

impl RefusingServer {
    fn start() -> Self {
        const BODY: &str = r#"{"code":401,"error":"Unauthorized","message":"no"}"#;
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let tokens = Arc::new(Mutex::new(BTreeSet::new()));
        let seen = Arc::clone(&tokens);
        thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { break };
                let mut head = [0; 8192];
                let length = stream.read(&mut head).unwrap_or_default();
                if length == 0 {
                    continue;
                }
                let head = String::from_utf8_lossy(&head[..length]).to_lowercase();
                let token = head.lines().find_map(|line| line.strip_prefix("authorization: bearer "));
                seen.lock().unwrap().insert(token.unwrap_or_default().to_owned());
                let length = BODY.len();
                let _ = write!(
                    stream,
                    "HTTP/1.1 401 X\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{BODY}"
                );
                // What is left unread would break the connection before its answer arrives.
                let _ = stream.shutdown(Shutdown::Write);
                let _ = stream.set_read_timeout(Some(Duration::from_secs(1)));
                let _ = std::io::copy(&mut stream, &mut std::io::sink());
            }
        });
        Self { address, tokens }
    }

    /// The tokens that came.
    fn tokens(&self) -> Vec<String> {
        self.tokens.lock().unwrap().iter().cloned().collect()
    }

    fn forget_tokens(&self) {
        self.tokens.lock().unwrap().clear();
    }
}

/// A home whose settings name one server, with a token of its own, and a path of its fake store.
fn home_with(lab: &RefusingServer) -> (TestHome, String) {
    let home = TestHome::new();
    fs::create_dir_all(home.path(".config/dormer")).unwrap();
    let settings = format!(
        "default-server = \"lab\"\n[servers.lab]\nendpoint = \"{}\"\ntoken = \"of-lab\"\n",
        lab.address
    );
    fs::write(home.path(".config/dormer/config.toml"), settings).unwrap();
    let hello = fake_nix(&home);
    (home, hello)
}

/// A fake store whose paths are all valid.
fn fake_nix(home: &TestHome) -> String {
    let hello = fake_store(home, "hello, world\n");
    let nix_store = home.path("bin/nix-store");
    fs::write(&nix_store, "#!/bin/sh\n").unwrap();
    fs::set_permissions(&nix_store, fs::Permissions::from_mode(0o755)).unwrap();
    hello
}

/// A command that has the token of `DORMER_TOKEN`, and a queue of this name.
fn command(home: &TestHome, queue: &str, words: &[&str]) -> Command {
    let mut command = home.command(words);
    let path = format!("{}:/usr/bin:/bin", home.path("bin").display());
    command.env("PATH", path).env("NIX_STORE_DIR", home.path("store")).env("NO_COLOR", "1");
    command.env("NIX_CONF_DIR", home.path("etc")).env("DORMER_QUEUE_DIR", home.path(queue));
    command.env("DORMER_TOKEN", "of-variable");
    command
}

/// How a command is tried with an address. `None` if it talks to no server, and queues nothing for
/// one. `login` has the address as an argument.
fn endpoint_try(name: &str, address: &str, hello: &str) -> Option<Vec<String>> {
    let more: &[&str] = match name {
        "login" | "queue list" | "queue retry" | "queue drop" => return None,
        "watch" | "hook" => &["main"],
        "install-hook" => &["main", "--system", "--dry-run"],
        "exec" => &["main", "--by", "store", "--", "true"],
        "queue drain" => &[],
        // In the fake store, so that the path has a meaning before a server is asked.
        "cache show" | "cache remove-path" => &["main", hello],
        "pin add" => &["main", "p", hello],
        "queue wait-for" => &["--cache", "main", "--timeout", "1s", hello],
        _ => return hostile_try(name, address, hello),
    };
    Some(name.split(' ').chain(more.iter().copied()).map(str::to_owned).collect())
}

#[test]
fn every_command_that_talks_to_a_server_takes_its_address() {
    let page = include_str!("../../../../docs/COMMANDS.md");
    for name in leaf_commands() {
        let talks = endpoint_try(name, "", "").is_some();
        let (_, part) = page.split_once(&format!("\n## dormer {name}\n")).unwrap();
        let part = part.split("\n## ").next().unwrap();
        assert_eq!(part.contains("--endpoint <URL>"), talks, "dormer {name}");
    }
}

#[test]
fn an_address_on_the_command_line_gets_the_requests_and_the_token_of_the_variable() {
    for name in leaf_commands() {
        let [lab, asked] = [(); 2].map(|()| RefusingServer::start());
        let (home, hello) = home_with(&lab);
        let Some(mut words) = endpoint_try(name, &asked.address, &hello) else { continue };
        let at = name.split(' ').count();
        words.splice(at..at, ["--endpoint".to_owned(), asked.address.clone()]);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        if matches!(name, "watch" | "exec" | "queue drain") {
            let queued = ["hook", "main", "--endpoint", &asked.address];
            assert!(command(&home, "queue", &queued).env("OUT_PATHS", &hello).status().unwrap().success());
        }
        let mut tried = command(&home, "queue", &words);
        tried.env("OUT_PATHS", &hello);
        let said = match name {
            // It goes on until a signal comes.
            "watch" => {
                let mut watch = tried.spawn().unwrap();
                let until = Instant::now() + WAIT_MAX;
                while asked.tokens().is_empty() && Instant::now() < until {
                    thread::sleep(Duration::from_millis(20));
                }
                watch.kill().unwrap();
                watch.wait().unwrap();
                String::new()
            }
            _ => home.shown(&tried.output().unwrap()),
        };
        let with_address = format!("main@{}/", asked.address);
        match name {
            // A build waits for no server.
            "hook" => {
                let listed = home.shown(&command(&home, "queue", &["queue", "list"]).output().unwrap());
                assert!(listed.contains(&format!("for main at {}/", asked.address)), "{said}{listed}");
            }
            "install-hook" => assert!(said.contains(&with_address), "{said}"),
            _ => {
                let tokens = asked.tokens();
                assert!(tokens.contains(&"of-variable".to_owned()), "dormer {name}: {tokens:?}: {said}");
                assert!(!tokens.contains(&"of-lab".to_owned()), "dormer {name}: {tokens:?}: {said}");
            }
        }
        assert_eq!(lab.tokens(), [""; 0], "dormer {name} asks the server of the settings: {said}");
    }
}

/// A name, or a host that is called like one, brings no token along.
#[test]
fn the_token_of_a_servers_own_variable_goes_to_no_address_of_the_command_line() {
    let [lab, asked] = [(); 2].map(|()| RefusingServer::start());
    let (home, _) = home_with(&lab);
    for cache in ["main", "lab:main"] {
        for (general, expected) in [(Some("of-variable"), "of-variable"), (None, "")] {
            for by_flag in [true, false] {
                let mut info = command(&home, "queue", &["cache", "info", cache]);
                info.env("DORMER_TOKEN_LAB", "of-lab").env("DORMER_TOKEN_127_0_0_1", "of-host");
                info.env_remove("DORMER_TOKEN").envs(general.map(|token| ("DORMER_TOKEN", token)));
                if by_flag {
                    info.args(["--endpoint", &asked.address]);
                } else {
                    info.env("DORMER_ENDPOINT", &asked.address);
                }
                let said = home.shown(&info.output().unwrap());
                let is_of_settings = !by_flag && cache == "lab:main";
                let (to_asked, to_lab) =
                    if is_of_settings { (vec![], vec!["of-lab"]) } else { (vec![expected], vec![]) };
                assert_eq!((asked.tokens(), lab.tokens()), (owned(&to_asked), owned(&to_lab)), "{said}");
                asked.forget_tokens();
                lab.forget_tokens();
            }
        }
    }
}

fn owned(tokens: &[&str]) -> Vec<String> {
    tokens.iter().map(ToString::to_string).collect()
}

/// The queue may hold builds for other servers, which keep their own tokens.
#[test]
fn a_drainer_with_an_address_sends_its_token_there_and_the_other_entries_where_they_belong() {
    let [lab, asked, elsewhere] = [(); 3].map(|()| RefusingServer::start());
    let (home, hello) = home_with(&lab);
    let hook = |more: &[&str], endpoint: Option<&str>| {
        let mut command = command(&home, "queue", &[&["hook", "main"], more].concat());
        command.envs(endpoint.map(|endpoint| ("DORMER_ENDPOINT", endpoint))).env("OUT_PATHS", &hello);
        assert!(command.status().unwrap().success());
    };
    hook(&["--endpoint", &asked.address], None);
    hook(&[], Some(&elsewhere.address));
    // Entries of the first version say nothing about servers.
    for (name, cache) in
        [("00000000000000000001-00000001", "lab:main"), ("00000000000000000002-00000001", "main")]
    {
        let entry = format!(
            "{{\"version\":1,\"queued_at\":1,\"caches\":{{\"{cache}\":{{\"tries\":0,\"not_before\":0}}}},\"paths\":[\"{hello}\"]}}"
        );
        fs::write(home.path("queue/pending/1").join(format!("{name}.json")), entry).unwrap();
    }
    let drain = |more: &[&str]| {
        let mut command = command(&home, "queue", &[&["queue", "drain"], more].concat());
        home.shown(&command.env("DORMER_ENDPOINT", &elsewhere.address).output().unwrap())
    };
    let drained = drain(&["--endpoint", &asked.address]);
    assert_eq!(asked.tokens(), ["of-variable"], "{drained}");
    assert_eq!(lab.tokens(), ["of-lab"], "{drained}");
    // The variable holds the token of the address on the command line, and no other is known.
    assert_eq!(elsewhere.tokens(), [""; 0], "{drained}");
    assert!(drained.contains(&format!("builds were queued for {}/", elsewhere.address)), "{drained}");

    // A drainer that knows no token for an address says what helps.
    for server in [&lab, &asked, &elsewhere] {
        server.forget_tokens();
    }
    let drained = drain(&[]);
    assert_eq!(elsewhere.tokens(), ["of-variable"], "{drained}");
    // Also without an address on the command line, the variable's token goes to its address only.
    assert_eq!(lab.tokens(), ["of-lab"], "{drained}");
    let said = format!("builds were queued for {}/, and there is no login for it here", asked.address);
    assert!(drained.contains(&said), "{drained}");
    assert_eq!(asked.tokens(), [""; 0], "{drained}");
    let listed = home.shown(&command(&home, "queue", &["queue", "list"]).output().unwrap());
    assert!(listed.contains("4 waiting, 0 given up"), "{listed}");
}

#[test]
fn a_drainer_without_a_token_for_an_address_says_how_to_give_one() {
    let [lab, asked] = [(); 2].map(|()| RefusingServer::start());
    let (home, hello) = home_with(&lab);
    let queued = ["hook", "main", "--endpoint", &asked.address];
    assert!(command(&home, "queue", &queued).env("OUT_PATHS", &hello).status().unwrap().success());
    let drained = home.shown(&command(&home, "queue", &["queue", "drain"]).output().unwrap());
    assert!(drained.starts_with("exit code: 1\n"), "{drained}");
    for hint in ["dormer login NAME", "set DORMER_TOKEN and push: dormer queue drain --endpoint"] {
        assert!(drained.contains(&format!("{hint} {}/", asked.address)), "{hint}: {drained}");
    }
    assert_eq!((asked.tokens().len(), lab.tokens().len()), (0, 0), "{drained}");
}

/// An address in place of the settings has no filter. Entries for other servers keep theirs.
#[test]
fn the_filters_of_the_settings_hold_for_their_own_servers() {
    let mut home = TestHome::new();
    home.serve();
    home.login();
    let hello = fake_nix(&home);
    let store = home.path("store").display().to_string();
    home.run(&["cache", "create", "local", "--store-dir", &store]);
    let settings = home.path(".config/dormer/config.toml");
    let text = fs::read_to_string(&settings).unwrap();
    fs::write(&settings, format!("{text}\n[push]\nexclude = [\"hello\"]\n")).unwrap();
    let mut hook = command(&home, "queue", &["hook", "lab:local"]);
    assert!(hook.env("OUT_PATHS", &hello).status().unwrap().success());
    let asked = RefusingServer::start();
    let drain = ["queue", "drain", "--endpoint", &asked.address];
    let drained = home.shown(&command(&home, "queue", &drain).output().unwrap());
    assert!(drained.starts_with("exit code: 0") && drained.contains("left out of lab:local"), "{drained}");

    // The same server by name and by address.
    let url = format!("http://127.0.0.1:{}", home.port);
    let token = fs::read_to_string(home.path(".local/share/dormer/admin-token")).unwrap();
    let by_flag = ["--endpoint", url.as_str()];
    for (queue, cache, more, is_left_out) in [
        ("named", "lab:local", &[][..], true),
        ("by-variable", "local", &[], false),
        ("by-flag", "local", &by_flag, false),
    ] {
        let run = |words: &[&str]| {
            let mut command = command(&home, queue, &[words, more].concat());
            command.env("DORMER_TOKEN", token.trim()).env("DORMER_ENDPOINT", &url);
            home.shown(&command.env("OUT_PATHS", &hello).output().unwrap())
        };
        run(&["hook", cache]);
        let drained = run(&["queue", "drain"]);
        assert!(drained.starts_with("exit code: 0"), "{queue}: {drained}");
        assert_eq!(drained.contains("left out of"), is_left_out, "{queue}: {drained}");
        let listed = home.shown(&command(&home, queue, &["queue", "list"]).output().unwrap());
        assert!(is_left_out || listed.contains("0 waiting, 0 given up"), "{queue}: {listed}");
    }
}

#[test]
fn doctor_asks_the_server_of_the_command_line_only() {
    let [lab, asked] = [(); 2].map(|()| RefusingServer::start());
    let (home, _) = home_with(&lab);
    let mut doctor = command(&home, "queue", &["doctor", "--endpoint", &asked.address]);
    let said = home.shown(&doctor.output().unwrap());
    assert!(said.contains("server: listing the caches"), "{said}");
    assert_eq!((asked.tokens(), lab.tokens().len()), (vec!["of-variable".to_owned()], 0), "{said}");
    let both = ["doctor", "--endpoint", &asked.address, "--config", "server.toml"];
    let said = home.shown(&command(&home, "queue", &both).output().unwrap());
    assert!(said.starts_with("exit code: 2"), "{said}");
}
