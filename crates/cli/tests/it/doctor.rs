//! `dormer doctor`: a healthy installation, and each failure on purpose. The test reads the report
//! as JSON lines.

#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is the failure")]

use std::fs;
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::thread;

use crate::test_home::{Report, TestHome};
use serde_json::Value;

fn doctor(home: &TestHome, variables: &[(&str, &str)]) -> Report {
    let mut command = home.command(&["doctor"]);
    command
        .env("DORMER_LISTEN", format!("127.0.0.1:{}", if home.port.is_empty() { "1" } else { &home.port }));
    Report::of(command.envs(variables.iter().copied()))
}

fn data(home: &TestHome) -> std::path::PathBuf {
    home.path(".local/share/dormer")
}

/// Answers every request with this text until the test ends.
fn answer_everything(answer: String) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    url
}

#[test]
fn an_installation_is_healthy_before_its_first_start_while_it_runs_and_afterwards() {
    let mut home = TestHome::new();
    let before = doctor(&home, &[]);
    before.is_healthy();
    assert!(!data(&home).exists(), "looking makes nothing");
    assert!(before.with("warn").iter().any(|line| line.contains("no server answers")), "{before:?}");

    home.serve();
    let running = doctor(&home, &[]);
    running.is_healthy();
    assert_eq!(running.with("warn"), [""; 0]);
    let ok = running.with("ok").join("\n");
    for words in ["a server runs on it", "it is the key of this database", "accepts our tokens"] {
        assert!(ok.contains(words), "{words}: {ok}");
    }
    // Also checks the public address, and then compares clocks.
    let url = format!("http://127.0.0.1:{}", home.port);
    let public = doctor(&home, &[("DORMER_API_ENDPOINT", &url)]);
    public.is_healthy();
    assert!(public.with("ok").iter().any(|line| line.starts_with("clock: ")), "{public:?}");

    let files = || {
        let mut names: Vec<_> =
            fs::read_dir(data(&home)).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    };
    let names = files();
    assert_eq!(doctor(&home, &[]).code, Some(0));
    assert_eq!(files(), names, "nothing is left behind");
    // What a probe in a container runs, with a proxy for other addresses.
    let listen = format!("127.0.0.1:{}", home.port);
    let check = |arguments: &[&str]| {
        let mut command = home.command(&[&["check"], arguments].concat());
        command.env("DORMER_LISTEN", &listen).env("DORMER_METRICS_LISTEN", "off");
        home.shown(&command.env("http_proxy", "http://127.0.0.1:1").output().unwrap())
    };
    for (arguments, path) in [(&[][..], "/healthz"), (&["--ready"], "/readyz")] {
        let answered = format!("exit code: 0\n--- stderr\n127.0.0.1:PORT answers {path}\n");
        assert_eq!(check(arguments), answered);
    }
    assert_eq!(home.stop(), Some(0));
    let silent = home.run(&["check"]);
    assert!(silent.starts_with("exit code: 5") && silent.contains("no answer from"), "{silent}");
    doctor(&home, &[]).is_healthy();
    // The server still starts after all these checks.
    home.serve();
}

#[test]
fn people_get_lines_and_advice() {
    let home = TestHome::new();
    let mut command = home.command(&["doctor", "--data-dir", "data"]);
    command
        .env("DORMER_LISTEN", "127.0.0.1:1")
        .env("DORMER_JWT_SIGNING_TOKEN_HS256_SECRET_BASE64", "aHVudGVyMg==");
    let shown = home.shown(&command.output().unwrap());
    insta::assert_snapshot!(shown, @r"
    exit code: 1
    --- stdout
    ok    settings: all settings are valid
    ok    folders: data does not exist yet: the first start makes it
    fail  tokens: the secret has 7 bytes; it needs at least 32
          -> make another one: openssl rand -base64 64 | tr -d '\n' (then make all tokens again)
    ok    database: SQLite, data/index.sqlite is empty: the first start creates the schema
    ok    master key: there is none yet: the first start makes one
    ok    store: packs are kept in data/storage
    warn  endpoint: no server answers at http://127.0.0.1:1
          -> start it: dormer serve; behind a proxy, set api-endpoint to the address that its users see
    --- stderr
    5 ok, 1 warning, 1 failure
    ");
    assert!(!shown.contains("hunter2") && !shown.contains("aHVudGVy"));
    let help = home.run(&["doctor", "--help"]);
    assert!(help.contains("Examples:"), "{help}");
}

#[test]
fn secrets_that_are_weak_wrong_lost_or_open_are_found() {
    let mut home = TestHome::new();
    home.serve();
    assert_eq!(home.stop(), Some(0));
    doctor(&home, &[("DORMER_JWT_SIGNING_TOKEN_HS256_SECRET_BASE64", "aHVudGVyMg==")]).fails_only("7 bytes");
    doctor(&home, &[("DORMER_JWT_SIGNING_TOKEN_RS256_SECRET_BASE64", "aHVudGVyMg==")]).fails_only("tokens: ");
    let zeros = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=";
    doctor(&home, &[("DORMER_MASTER_KEY", zeros)]).fails_only("a different master key");

    let key = data(&home).join("master-key");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    doctor(&home, &[]).fails_only("master-key can be read by other users");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(&key, home.path("elsewhere")).unwrap();
    doctor(&home, &[]).fails_only("master key of this database is missing");
    assert!(!key.exists(), "looking makes no key");
    fs::rename(home.path("elsewhere"), &key).unwrap();

    let secret = data(&home).join("token-secret");
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o640)).unwrap();
    doctor(&home, &[]).fails_only("token-secret can be read by other users");
}

#[test]
fn folders_and_databases_that_cannot_serve_are_found() {
    let mut home = TestHome::new();
    home.serve();
    assert_eq!(home.stop(), Some(0));
    let storage = home.path("file");
    fs::write(&storage, "").unwrap();
    doctor(&home, &[("DORMER_STORAGE_PATH", storage.to_str().unwrap())]).fails_only("cannot be written");

    let other = home.path("other.sqlite");
    fs::write(&other, "dear diary").unwrap();
    let url = format!("sqlite://{}", other.display());
    let theirs = doctor(&home, &[("DORMER_DATABASE_URL", &url)]);
    theirs.fails_only("is a database of another program");
    assert_eq!(fs::read(&other).unwrap(), b"dear diary");

    let chunk = home.path("theirs/a/b/2b9d04a6-9b2b-4a4b-8a3f-0c1d2e3f4a5b.chunk");
    fs::create_dir_all(chunk.parent().unwrap()).unwrap();
    fs::write(&chunk, "x").unwrap();
    let folder = home.path("theirs");
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o700)).unwrap();
    doctor(&home, &[("DORMER_STORAGE_PATH", folder.to_str().unwrap())]).fails_only("is a folder of Attic");
}

#[test]
fn a_folder_that_this_user_may_not_write_is_found() {
    let home = TestHome::new();
    let folder = home.path("read-only");
    fs::create_dir(&folder).unwrap();
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o555)).unwrap();
    // Root may write anywhere, so root runs the check as another user. Any other user runs it
    // directly.
    let is_root =
        fs::metadata("/proc/self").map(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0).unwrap();
    let binary = home.path("dormer");
    fs::copy(env!("CARGO_BIN_EXE_dormer"), &binary).unwrap();
    fs::set_permissions(home.folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let mut command = if is_root {
        let mut command = Command::new("setpriv");
        command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&binary);
        command
    } else {
        Command::new(&binary)
    };
    command.args(["doctor", "--data-dir"]).arg(&folder).env_clear().env("DORMER_LISTEN", "127.0.0.1:1");
    command.env("HOME", home.folder.path()).env("PATH", "/usr/bin:/bin").current_dir("/");
    let report = Report::of(&mut command);
    let failures = report.with("fail");
    // The folder, and the folder for packs that would be made in it.
    assert_eq!(failures.len(), 2, "{report:#?}");
    assert!(
        failures[0].contains("cannot be written") && failures[1].contains("cannot make it"),
        "{failures:?}"
    );
}

#[test]
fn endpoints_that_lead_elsewhere_are_found() {
    let mut home = TestHome::new();
    home.serve();
    let url = format!("http://127.0.0.1:{}", home.port);
    doctor(&home, &[("DORMER_API_ENDPOINT", "http://127.0.0.1:1")]).fails_only("no answer");
    // 64 other bytes.
    let other = "MDEyMzQ1Njc4OWFiY2RlZmdoaWprbG1ub3BxcnN0dXZ3eHl6QUJDREVGR0hJSktMTU5PUFFSU1RVVldYWVotKw==";
    let variables =
        [("DORMER_API_ENDPOINT", url.as_str()), ("DORMER_JWT_SIGNING_TOKEN_HS256_SECRET_BASE64", other)];
    doctor(&home, &variables).fails_only("refuses a token made here");

    let login_page = answer_everything(
        "HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\n<html>".to_owned(),
    );
    doctor(&home, &[("DORMER_API_ENDPOINT", &login_page)]).fails_only("endpoint: ");
    let proxy = answer_everything(
        "HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned(),
    );
    doctor(&home, &[("DORMER_API_ENDPOINT", &proxy)]).fails_only("answers 502");
    let wrong_clock = answer_everything(
        "HTTP/1.1 404 Not Found\r\nDate: Thu, 01 Jan 2026 00:00:00 GMT\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".to_owned(),
    );
    let late = doctor(&home, &[("DORMER_API_ENDPOINT", &wrong_clock)]);
    assert!(late.with("fail").iter().any(|line| line.starts_with("clock: ours is ")), "{late:#?}");
}

#[test]
fn wrong_settings_are_told_as_everywhere() {
    let home = TestHome::new();
    fs::write(home.path("dormer.toml"), "[chunks]\nagv = \"64 KiB\"\n").unwrap();
    let said = home.run(&["doctor", "--config", "dormer.toml"]);
    assert!(said.starts_with("exit code: 2") && said.contains("did you mean 'chunks.avg'?"), "{said}");
    fs::write(home.path("open.toml"), "listen = \"0.0.0.0:1\"\n").unwrap();
    let said = home.run(&["doctor", "--config", "open.toml"]);
    assert!(said.contains("warn  settings: others reach 0.0.0.0:1 without TLS"), "{said}");
}

/// A `nix` that answers like a real one with these settings.
fn fake_nix(home: &TestHome, settings: &Value) {
    let settings: serde_json::Map<String, Value> = settings
        .as_object()
        .unwrap()
        .iter()
        .map(|(name, value)| (name.clone(), serde_json::json!({ "value": value })))
        .collect();
    fs::write(home.path("settings.json"), Value::Object(settings).to_string()).unwrap();
    let script = format!(
        "#!/bin/sh\ncase \"$*\" in *--version) echo 'nix (Nix) 2.26.3';; *'config show'*) exit 1;; *) cat {}/settings.json;; esac\n",
        home.folder.path().display()
    );
    fs::create_dir_all(home.path("bin")).unwrap();
    fs::write(home.path("bin/nix"), script).unwrap();
    fs::set_permissions(home.path("bin/nix"), fs::Permissions::from_mode(0o755)).unwrap();
}

fn client(home: &TestHome) -> Report {
    let mut command = home.command(&["doctor", "--client"]);
    command.env("PATH", format!("{}:/usr/bin:/bin", home.path("bin").display()));
    command.env("NIX_CONF_DIR", home.path("etc"));
    Report::of(&mut command)
}

/// A machine that uses two caches of a running server, `main` (public) and `team` (private), and
/// the resulting settings of Nix.
fn client_of_two_caches() -> (TestHome, Value) {
    let mut home = TestHome::new();
    home.serve();
    home.login();
    for words in [&["cache", "create", "team"][..], &["use", "main"], &["use", "team"]] {
        let said = home.run(words);
        assert!(said.starts_with("exit code: 0"), "{said}");
    }
    let conf = fs::read_to_string(home.path(".config/nix/nix.conf")).unwrap();
    let all = |key: &str| -> Vec<Value> {
        conf.lines().filter_map(|line| line.strip_prefix(key)?.strip_prefix(" = ")).map(Value::from).collect()
    };
    let settings = serde_json::json!({
        "substituters": all("extra-substituters"),
        "trusted-public-keys": all("extra-trusted-public-keys"),
        "trusted-users": ["root"],
        "netrc-file": home.path(".config/nix/netrc"),
    });
    fake_nix(&home, &settings);
    (home, settings)
}

#[test]
fn a_client_is_healthy_after_dormer_use() {
    let (home, _) = client_of_two_caches();
    let report = client(&home);
    report.is_healthy();
    let ok = report.with("ok").join("\n");
    for words in [
        "nix (Nix) 2.26.3",
        "netrc can be read by this user",
        "lab answers, with 2 caches",
        "lab:main answers",
        "lab:team answers",
    ] {
        assert!(ok.contains(words), "{words}: {ok}");
    }
}

#[test]
fn what_keeps_a_client_from_its_caches_is_found() {
    let (mut home, settings) = client_of_two_caches();
    let netrc = home.path(".config/nix/netrc");
    let text = fs::read_to_string(&netrc).unwrap();

    let mut overridden = settings.clone();
    overridden["substituters"].as_array_mut().unwrap().remove(0);
    fake_nix(&home, &overridden);
    client(&home).fails_only("not in Nix's substituters");
    overridden.clone_from(&settings);
    overridden["trusted-public-keys"].as_array_mut().unwrap().remove(1);
    fake_nix(&home, &overridden);
    client(&home).fails_only("not in Nix's trusted-public-keys");
    fake_nix(&home, &settings);

    fs::set_permissions(&netrc, fs::Permissions::from_mode(0o644)).unwrap();
    client(&home).fails_only("every user of this machine can read the tokens");
    // As `dormer use` accepts it.
    fs::set_permissions(&netrc, fs::Permissions::from_mode(0o640)).unwrap();
    client(&home).is_healthy();
    fs::set_permissions(&netrc, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&netrc, text.replace("password ey", "password xx")).unwrap();
    client(&home).fails_only("does not accept the token in the netrc file");
    fs::write(&netrc, "").unwrap();
    client(&home).fails_only("Nix has none for 127.0.0.1");
    fs::remove_file(&netrc).unwrap();
    let lost = client(&home).with("fail");
    assert!(lost.len() == 2 && lost[0].contains("cannot be read"), "{lost:?}");
    fs::write(&netrc, &text).unwrap();
    fs::set_permissions(&netrc, fs::Permissions::from_mode(0o600)).unwrap();

    // A new signing key. This machine trusts the old one.
    let said = home.run(&["cache", "configure", "main", "--regenerate-keypair"]);
    assert!(said.starts_with("exit code: 0"), "{said}");
    let changed = client(&home);
    changed.is_healthy();
    assert!(
        changed.with("warn").iter().any(|line| line.contains("now has another signing key")),
        "{changed:?}"
    );

    assert_eq!(home.stop(), Some(0));
    let away = client(&home).with("fail");
    assert_eq!(away.len(), 3, "the server and both caches: {away:?}");
    let shown = format!("{away:?}{lost:?}");
    assert!(!shown.contains("eyJ"), "no token is shown: {shown}");
}

#[test]
fn a_token_in_the_netrc_file_is_warned_about_before_it_expires() {
    let (home, _) = client_of_two_caches();
    let netrc = home.path(".config/nix/netrc");
    let long = fs::read_to_string(home.path(".local/share/dormer/admin-token")).unwrap();
    let create = ["token", "create", "--sub", "ada", "--validity", "1d", "--pull", "*"];
    let short = home.command(&create).output().unwrap();
    assert!(short.status.success(), "{short:?}");
    let short = String::from_utf8(short.stdout).unwrap();
    let text = fs::read_to_string(&netrc).unwrap();
    assert!(text.contains(long.trim()));
    fs::write(&netrc, text.replace(long.trim(), short.trim())).unwrap();
    let report = client(&home);
    report.is_healthy();
    let warnings = report.with("warn").join("\n");
    let expected = "cache: the token for lab:team in the netrc file expires within a day";
    assert!(warnings.contains(expected), "{warnings}");
}

#[test]
fn a_machine_without_nix_or_caches_is_told_so() {
    let home = TestHome::new();
    let mut command = home.command(&["doctor"]);
    command.env("PATH", home.path("nothing"));
    let report = Report::of(&mut command);
    report.fails_only("\"nix\" was not found");
    assert!(report.with("warn").iter().any(|line| line.contains("uses no cache")), "{report:?}");
    assert!(!Path::new(&data(&home)).exists());
}
