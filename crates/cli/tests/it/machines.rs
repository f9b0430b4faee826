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

/// Answers every request whose path begins with one of `paths`, and all others with 404. The body
/// of a 401 is also the realm that it asks for.
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
            let challenge = match status {
                401 => format!("WWW-Authenticate: Basic realm=\"{body}\"\r\n"),
                _ => String::new(),
            };
            let _ = write!(
                stream,
                "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n{challenge}\r\n{body}",
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
            &[("/main/nix-cache-info", 401, "dormer"), ("/", 404, ATTIC)],
            "/main/",
            2,
            "is the address of the cache main",
        ),
        // A proxy that refuses everything says nothing about the address.
        (&[("/", 401, "proxy")], "/main", 4, "without a token"),
        (&[("/", 403, "no")], "/main", 4, "the token does not permit this"),
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
fn no_server_keeps_a_command_for_ever() {
    const OBJECT: &str = "/_api/v2/caches/main/objects/f22352qy5d2vfxv22w7q3n7gz1ia47nx";
    const REFERRERS: &str = "/_api/v2/caches/main/objects/f22352qy5d2vfxv22w7q3n7gz1ia47nx/referrers";
    const PINS: &str = r#"{"pins":[{"name":"n","store_path":"f22352qy5d2vfxv22w7q3n7gz1ia47nx-a","created_at":1}],"more":true}"#;
    let url = answering(&[
        (REFERRERS, 200, r#"{"removed":0,"more":true}"#),
        (OBJECT, 200, r#"{"removed":true}"#),
        ("/_api/v2/caches/main/objects", 200, r#"{"objects":[],"next":"here"}"#),
        ("/_api/v2/caches/main/pins", 200, PINS),
        ("/_api/v2/caches", 200, r#"{"caches":[],"next":"main"}"#),
    ]);
    let home = TestHome::new();
    for words in [
        &["cache", "list"][..],
        &["cache", "ls", "main"],
        &["cache", "remove-path", "main", "f22352qy5d2vfxv22w7q3n7gz1ia47nx", "--with-referrers"],
        &["pin", "list", "main"],
    ] {
        let mut command = home.command(words);
        command.env("DORMER_ENDPOINT", &url).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let end = ends(&mut child, END_MAX);
        // Best effort: it has ended unless the test fails.
        let _ = child.kill();
        let mut said = String::new();
        child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
        assert_eq!(end.and_then(|end| end.code()), Some(1), "{words:?}: {said}");
        assert!(said.contains("pages of the server's answer do not end"), "{words:?}: {said}");
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

/// Starts a service by a program that sets what the service inherits.
fn started_by(home: &TestHome, starter: &[&str], service: &Command) -> Command {
    let mut command = Command::new(starter[0]);
    command.args(&starter[1..]).arg(service.get_program()).args(service.get_args()).env_clear();
    command.envs(service.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.current_dir(home.folder.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

#[test]
fn every_service_ends_in_order_after_any_signal_to_stop() {
    let mut home = TestHome::new();
    home.serve();
    assert_eq!(home.stop(), Some(0));
    for (service, line) in services(&home) {
        // The tests themselves may run under `nohup`, whose services would ignore SIGHUP.
        let mut command = started_by(&home, &["env", "--default-signal=HUP"], &service);
        for name in ["TERM", "INT", "HUP"] {
            let mut child = command.spawn().unwrap();
            wait_for_line(&mut child, line);
            signal(&child, name);
            let status = ends(&mut child, END_MAX);
            assert!(status.is_some_and(|status| status.success()), "{name}, {status:?}: {command:?}");
        }
    }
}

#[test]
fn a_service_that_must_survive_its_terminal_does() {
    let mut home = TestHome::new();
    home.serve();
    assert_eq!(home.stop(), Some(0));
    for (service, line) in services(&home) {
        let mut command = started_by(&home, &["nohup"], &service);
        let mut child = command.spawn().unwrap();
        wait_for_line(&mut child, line);
        signal(&child, "HUP");
        assert_eq!(ends(&mut child, Duration::from_millis(500)), None, "{command:?}");
        signal(&child, "TERM");
        assert!(ends(&mut child, END_MAX).is_some_and(|status| status.success()), "{command:?}");
    }
}

/// Asks a Unix socket for its health.
fn is_healthy(socket: &std::path::Path) -> bool {
    let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(END_MAX)).unwrap();
    stream.write_all(b"GET /healthz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.starts_with("HTTP/1.1 200 ")
}

/// The services that listen, without their address.
fn listeners(home: &TestHome) -> [Vec<String>; 2] {
    let published = home.path("published");
    fs::create_dir_all(&published).unwrap();
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    [words(&["serve"]), words(&["edge", "serve", "--dir", published.to_str().unwrap()])]
}

#[test]
fn services_listen_on_unix_sockets_and_tell_the_service_manager() {
    let home = TestHome::new();
    let socket = home.path("socket");
    let address = format!("unix:{}", socket.display());
    let manager = std::os::unix::net::UnixDatagram::bind(home.path("notify")).unwrap();
    manager.set_read_timeout(Some(END_MAX)).unwrap();
    let hears = || {
        let mut message = [0; 64];
        let length = manager.recv(&mut message).unwrap();
        String::from_utf8_lossy(&message[..length]).into_owned()
    };
    for words in listeners(&home) {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let mut command = home.command(&words);
        command.args(["--listen", &address]).env("DORMER_METRICS_LISTEN", "off");
        command.env("NOTIFY_SOCKET", home.path("notify")).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        wait_for_line(&mut child, &format!("listening on {address}"));
        assert_eq!(hears(), "READY=1", "{words:?}");
        assert!(is_healthy(&socket), "{words:?}");
        signal(&child, "TERM");
        assert_eq!(hears(), "STOPPING=1", "{words:?}");
        assert!(ends(&mut child, END_MAX).is_some_and(|status| status.success()), "{words:?}");
        assert!(!socket.exists(), "{words:?}: the file goes with its service");
    }
}

#[test]
fn services_take_the_socket_that_the_service_manager_opened() {
    let home = TestHome::new();
    let socket = home.path("socket");
    let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    for words in listeners(&home) {
        // The first socket is number 3, and the process must find its own number.
        let script = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$0\" \"$@\"";
        let mut command = Command::new("sh");
        command.args(["-c", script, env!("CARGO_BIN_EXE_dormer")]).args(&words).env_clear();
        command
            .env("HOME", home.folder.path())
            .env("PATH", "/usr/bin:/bin")
            .env("DORMER_METRICS_LISTEN", "off");
        let passed: std::os::fd::OwnedFd = listener.try_clone().unwrap().into();
        command.stdin(Stdio::from(passed)).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        wait_for_line(&mut child, "listening on unix:");
        assert!(is_healthy(&socket), "{words:?}");
        signal(&child, "TERM");
        assert!(ends(&mut child, END_MAX).is_some_and(|status| status.success()), "{words:?}");
        assert!(socket.exists(), "{words:?}: the file is the service manager's");
    }
}

/// A `nix` that always reports these settings.
fn nix_says(home: &TestHome, netrc: &str, substituters: &[&str], keys: &[&str]) {
    use std::os::unix::fs::PermissionsExt as _;
    let settings = serde_json::json!({
        "netrc-file": { "value": netrc }, "substituters": { "value": substituters },
        "trusted-public-keys": { "value": keys },
    });
    let program = home.path("bin/nix");
    fs::create_dir_all(program.parent().unwrap()).unwrap();
    let text = format!(
        "#!/bin/sh\ncase \"$*\" in *--version) echo 'nix (Nix) 2.26.3';; *) echo '{settings}';; esac\n"
    );
    fs::write(&program, text).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
}

fn with_nix(home: &TestHome, words: &[&str]) -> String {
    let mut command = home.command(words);
    command.env("PATH", format!("{}:/usr/bin:/bin", home.path("bin").display()));
    command.env("NIX_CONF_DIR", home.path("etc"));
    home.shown(&command.output().unwrap())
}

#[test]
fn the_token_goes_into_the_netrc_file_that_nix_reads() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut home = TestHome::new();
    home.serve();
    home.login();
    home.run(&["cache", "create", "team"]);
    fs::create_dir_all(home.path("etc")).unwrap();
    let token = fs::read_to_string(home.path(".local/share/dormer/admin-token")).unwrap();
    let holds_token =
        |name: &str| fs::read_to_string(home.path(name)).is_ok_and(|text| text.contains(token.trim()));
    let own = home.path(".config/nix/netrc");
    // The setting in force, a netrc file that is there, and the file for the token.
    for (in_force, before, file) in [
        ("included/netrc", None, "included/netrc"),
        ("included/netrc", Some("default login a password b\n"), "included/netrc"),
        ("etc/netrc", Some("machine other login a password b\n"), "etc/netrc"),
        ("etc/netrc", None, ".config/nix/netrc"),
    ] {
        let in_force = home.path(in_force);
        if let Some(text) = before {
            fs::create_dir_all(in_force.parent().unwrap()).unwrap();
            fs::write(&in_force, text).unwrap();
            fs::set_permissions(&in_force, fs::Permissions::from_mode(0o600)).unwrap();
        }
        nix_says(&home, in_force.to_str().unwrap(), &[], &[]);
        let used = with_nix(&home, &["use", "team"]);
        assert!(used.starts_with("exit code: 0") && holds_token(file), "{in_force:?}: {used}");
        let conf = fs::read_to_string(home.path(".config/nix/nix.conf")).unwrap();
        assert_eq!(conf.contains("netrc-file"), home.path(file) == own, "{used}");
        // Nix obeys neither file here, and the command says so.
        assert!(used.contains("Nix does not use it yet"), "{used}");
        // A second time is the same, and the file that a setting names stays.
        let effective = if home.path(file) == own { own.clone() } else { in_force.clone() };
        nix_says(&home, effective.to_str().unwrap(), &[], &[]);
        assert!(with_nix(&home, &["use", "team"]).contains("nothing to do"));
        assert!(with_nix(&home, &["unuse", "team"]).starts_with("exit code: 0"));
        let after = fs::read_to_string(&in_force).ok();
        let must_exist = file == "included/netrc";
        assert_eq!(after.as_deref(), before.or(must_exist.then_some("")), "{in_force:?}");
        assert!(!own.exists() && !home.path(".config/nix/nix.conf").exists());
        let _ = fs::remove_file(&in_force);
    }
}

#[test]
fn a_cache_that_nix_uses_already_needs_no_lines() {
    let mut home = TestHome::new();
    home.serve();
    home.login();
    let info: serde_json::Value =
        serde_json::from_slice(&home.command(&["cache", "info", "main", "--json"]).output().unwrap().stdout)
            .unwrap();
    let url = format!("http://127.0.0.1:{}/main", home.port);
    nix_says(&home, "/etc/nix/netrc", &[&format!("{url}/")], &[info["public_key"].as_str().unwrap()]);
    let used = with_nix(&home, &["use", "main"]);
    assert!(used.starts_with("exit code: 0") && used.contains("already"), "{used}");
    assert!(!home.path(".config/nix/nix.conf").exists());
}

#[test]
fn use_writes_what_nix_remembers_and_unuse_takes_it_back() {
    let mut home = TestHome::new();
    home.serve();
    home.login();
    nix_says(&home, "/etc/nix/netrc", &[], &[]);
    let times = ["--narinfo-cache-negative-ttl", "1min", "--narinfo-cache-positive-ttl", "2h"];
    let used = with_nix(&home, &[&["use", "main"][..], &times].concat());
    assert!(used.starts_with("exit code: 0"), "{used}");
    let conf = fs::read_to_string(home.path(".config/nix/nix.conf")).unwrap();
    assert!(
        conf.contains("\nnarinfo-cache-negative-ttl = 60\nnarinfo-cache-positive-ttl = 7200\n"),
        "{conf}"
    );
    // Nix 2.26 would only warn about a setting that it does not know.
    let used = with_nix(&home, &["use", "main", "--retry-attempts", "9"]);
    assert!(used.starts_with("exit code: 2") && used.contains("download-attempts"), "{used}");
    // Where Nix cannot be asked, the user knows.
    let used = home.run(&["use", "main", "--retry-attempts", "9"]);
    assert!(used.starts_with("exit code: 0"), "{used}");
    let conf = fs::read_to_string(home.path(".config/nix/nix.conf")).unwrap();
    let url = format!("http://127.0.0.1:{}/main?retry-attempts=9\n", home.port);
    assert!(conf.contains(&url) && !conf.contains("negative-ttl"), "{conf}");
    let report = with_nix(&home, &["doctor", "--client"]);
    assert!(report.contains("lab:main answers at http://127.0.0.1:PORT/main\n"), "{report}");
    with_nix(&home, &["unuse", "main"]);
    assert!(!home.path(".config/nix/nix.conf").exists());
}

#[test]
fn installers_that_write_nix_conf_keep_theirs() {
    let mut home = TestHome::new();
    home.serve();
    home.login();
    home.run(&["cache", "create", "team"]);
    let etc = home.path("etc");
    fs::create_dir_all(&etc).unwrap();
    let generated = "# Generated\n!include nix.custom.conf\n";
    fs::write(etc.join("nix.conf"), generated).unwrap();
    nix_says(&home, "/nix/var/determinate/netrc", &[], &[]);
    let used = with_nix(&home, &["use", "team", "--system"]);
    assert!(used.starts_with("exit code: 0") && used.contains("additionalNetrcSources"), "{used}");
    assert_eq!(fs::read_to_string(etc.join("nix.conf")).unwrap(), generated);
    let custom = fs::read_to_string(etc.join("nix.custom.conf")).unwrap();
    assert!(custom.contains("/team\n") && !custom.contains("netrc-file"), "{custom}");
    assert!(fs::read_to_string(etc.join("netrc")).unwrap().contains("machine 127.0.0.1"));
    with_nix(&home, &["unuse", "team", "--system"]);
    assert!(!etc.join("nix.custom.conf").exists());
}

#[test]
fn a_token_too_long_for_a_netrc_line_is_reported_where_it_is_made_and_used() {
    let mut home = TestHome::new();
    home.serve();
    home.login();
    home.run(&["cache", "create", "team"]);
    let names: Vec<String> = (0..150).map(|number| format!("a-cache-with-a-long-name-{number}")).collect();
    let mut words = vec!["token", "create", "--sub", "ci", "--validity", "1d", "--pull", "team"];
    words.extend(names.iter().flat_map(|name| ["--pull", name.as_str()]));
    let output = home.command(&words).output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("drop a netrc line"));
    let token = String::from_utf8(output.stdout).unwrap();
    let mut command = home.command(&["use", "team"]);
    let used = home.shown(&command.env("DORMER_TOKEN", token.trim()).output().unwrap());
    assert!(used.starts_with("exit code: 0") && used.contains("drop a netrc line"), "{used}");
    let netrc = home.path(".config/nix/netrc");
    nix_says(&home, netrc.to_str().unwrap(), &[], &[]);
    let report = with_nix(&home, &["doctor", "--client"]);
    assert!(report.contains("drop the lines over"), "{report}");
    fs::write(&netrc, "default password a\nmachine hidden password b\n").unwrap();
    let report = with_nix(&home, &["doctor", "--client"]);
    assert!(report.contains("hides those behind it: hidden"), "{report}");
}
