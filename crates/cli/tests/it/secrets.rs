//! A marker in every text setting, and a search for it in everything that the program prints.
//!
//! docs/SETTINGS.md lists all settings; a test of the crate holds it equal to their declaration. So
//! a new text setting is tested here without another line. The same goes for the variables of other
//! programs that the page names.

#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is the failure")]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::thread;

use crate::binary::leaf_commands;
use crate::test_home::TestHome;

/// How a command is run that reads the server's settings and ends by itself. With `true` it is run
/// with every value, with `false` with some of them, in turns: it reads settings as the others do.
/// A new command has to be told about here.
fn try_of(name: &'static str) -> Option<(bool, Vec<&'static str>)> {
    let (always, more): (bool, &[&str]) = match name {
        "config show" | "jobs" | "migrate" => (true, &[]),
        "doctor" => (true, &["--json"]),
        "publish" => (true, &["--dry-run"]),
        "token create" => (true, &["--sub", "ada", "--validity", "1d", "--pull", "main"]),
        "publish status" | "scrub" | "rekey" => (false, &[]),
        "gc" => (false, &["--dry-run"]),
        "export" => (false, &["main", "exported"]),
        "backup" => (false, &["copy.db"]),
        "restore" => (false, &["absent.db"]),
        "recover" => (false, &["--accept-loss"]),
        "adopt" => (false, &["--no-confirm"]),
        // See `start_of_serve` and `start_of_edge`; then those that read no settings of a server.
        "serve" | "edge serve" | "check" | "config reference" | "secrets init" | "completions" | "man" => {
            return None;
        }
        "login" | "push" | "watch" | "exec" | "hook" | "install-hook" | "use" | "unuse" | "cat"
        | "import" | "stats" | "top" => return None,
        name if ["queue ", "cache ", "pin "].iter().any(|group| name.starts_with(group)) => return None,
        other => panic!("`dormer {other}` is new: does it read the settings of the server?"),
    };
    Some((always, name.split(' ').chain(more.iter().copied()).collect()))
}

/// The commands to run with the value of this number.
fn commands(number: usize) -> Vec<Vec<&'static str>> {
    let tries: Vec<_> = leaf_commands().into_iter().filter_map(try_of).collect();
    let (always, in_turn): (Vec<_>, Vec<_>) = tries.into_iter().partition(|(always, _)| *always);
    let turn = in_turn[number % in_turn.len()].1.clone();
    let as_json = vec!["config", "show", "--json"];
    always.into_iter().map(|(_, words)| words).chain([as_json, turn]).collect()
}

/// Beginnings of the kinds whose values are no texts, or, for a path, no secret.
const OTHER_KINDS: [&str; 5] = ["a size ", "a time ", "a number", "true or false", "a path"];

/// A secret that is good: 32 bytes in base64, with the marker in its text.
const SOUND_SECRET: &str = "MARKERMARKERMARKERMARKERMARKERMARKERMARKERA=";

/// Addresses that hold secrets as users put them there. The database is one of the texts.
const ADDRESSES: [&str; 2] = [
    "http://ada:MARKER@127.0.0.1:9/x?password=MARKER&token=MARKER#MARKER",
    "postgresql://ada:MARKER@127.0.0.1:9/d?password=MARKER",
];

/// A target, so that its settings count.
const TARGET: &str = "[[edge]]\nname = \"r2\"\n";

/// One text setting, as its entry in docs/SETTINGS.md declares it.
#[derive(Debug)]
struct TextSetting {
    variable: String,
    is_secret: bool,
}

const PAGE: &str = include_str!("../../../../docs/SETTINGS.md");

/// Variables of others that may hold an address with a secret, and that no setting names.
const OF_OTHERS: [&str; 5] =
    ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "http_proxy", "HTTPS_PROXY", "all_proxy"];

/// The keys and bounds of the tokens that `dormer edge serve` accepts.
fn of_edge_host() -> Vec<TextSetting> {
    const SOURCE: &str = include_str!("../../src/commands/edge_serve.rs");
    let words = SOURCE.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let named: BTreeSet<&str> = words.filter(|word| is_of_edge_host(word)).collect();
    assert!(named.len() >= 5, "{named:?}");
    let setting = |variable: &str| TextSetting {
        variable: variable.to_owned(),
        is_secret: variable.contains("BASE64"),
    };
    named.into_iter().map(setting).collect()
}

fn is_of_edge_host(variable: &str) -> bool {
    variable.starts_with("DORMER_EDGE_TOKEN_")
}

/// The variables of other programs that count for a store, and a value that works.
const OF_STORES: [(&str, &str); 4] = [
    ("AWS_ENDPOINT_URL", "http://127.0.0.1:9"),
    ("AWS_REGION", "r"),
    ("AWS_ACCESS_KEY_ID", "id"),
    ("AWS_SECRET_ACCESS_KEY", "key"),
];

/// The variables of other programs that the program reads.
fn variables_of_others() -> Vec<TextSetting> {
    let words = PAGE.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let named = words.filter(|word| word.starts_with("AWS_")).collect::<BTreeSet<_>>();
    for (variable, _) in OF_STORES {
        assert!(named.contains(variable), "the page names {variable} no longer");
    }
    let all = named.into_iter().chain(OF_OTHERS);
    all.map(|variable| TextSetting { variable: variable.to_owned(), is_secret: variable.contains("KEY") })
        .collect()
}

fn text_settings() -> Vec<TextSetting> {
    let lines: Vec<&str> = PAGE.lines().collect();
    let mut settings = Vec::new();
    for pair in lines.windows(2).filter(|pair| pair[0].starts_with("- **`")) {
        let facts: Vec<&str> = pair[1].trim().trim_start_matches("<br>").split(" · ").collect();
        let variable = facts[0].trim_matches('`').replace("<NAME>", "R2");
        assert!(variable.starts_with("DORMER_"), "{}", pair[1]);
        // Flags and the variables of Attic are in backquotes, too.
        let kind = facts[1..].iter().find(|fact| !fact.starts_with('`')).unwrap();
        if !OTHER_KINDS.iter().any(|other| kind.starts_with(other)) {
            settings.push(TextSetting { variable, is_secret: facts.contains(&"secret") });
        }
    }
    settings
}

/// The variables that let a setting count: a store for the settings of stores, a target for those
/// of targets.
fn variables_around(setting: &TextSetting) -> BTreeMap<String, String> {
    let mut variables = BTreeMap::new();
    let mut set = |name: &str, value: &str| variables.insert(name.to_owned(), value.to_owned());
    set("DORMER_DATABASE_ACQUIRE_TIMEOUT", "1s");
    set("DORMER_METRICS_LISTEN", "127.0.0.1:0");
    if is_of_edge_host(&setting.variable) {
        for (name, value) in OF_STORES {
            set(name, value);
        }
    }
    if !setting.variable.starts_with("DORMER_") {
        for (name, value) in OF_STORES {
            set(name, value);
        }
        for prefix in ["DORMER_STORAGE_", "DORMER_EDGE_R2_"] {
            for (name, value) in [("TYPE", "s3"), ("BUCKET", "b"), ("RETRY_TIME", "0")] {
                set(&format!("{prefix}{name}"), value);
            }
        }
        set("DORMER_EDGE_R2_CACHES", "main");
        set("DORMER_CONFIG", "target.toml");
    }
    for prefix in ["DORMER_STORAGE_", "DORMER_EDGE_R2_"] {
        if !setting.variable.starts_with(prefix) {
            continue;
        }
        let values = [
            ("TYPE", "s3"),
            ("BUCKET", "b"),
            ("ENDPOINT", "http://127.0.0.1:9"),
            ("REGION", "r"),
            ("RETRY_TIME", "0"),
            ("CREDENTIALS_ACCESS_KEY_ID", "id"),
            ("CREDENTIALS_SECRET_ACCESS_KEY", "key"),
        ];
        for (name, value) in values {
            set(&format!("{prefix}{name}"), value);
        }
        if prefix.contains("EDGE") {
            set(&format!("{prefix}CACHES"), "main");
            set("DORMER_CONFIG", "target.toml");
        }
    }
    variables
}

/// What `serve` prints up to its first line as a server, or all of it if it does not become one;
/// and the page of its metrics.
fn start_of_serve(command: &mut Command) -> String {
    let mut server =
        command.args(["serve", "--listen", "127.0.0.1:0"]).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    let mut metrics = None;
    let mut lines = BufReader::new(server.stderr.take().unwrap()).lines().map_while(Result::ok);
    for line in lines.by_ref() {
        let _ = writeln!(said, "{line}");
        if let Some(rest) = line.strip_prefix("metrics on http://") {
            metrics = rest.split('/').next().map(str::to_owned);
        }
        if line.starts_with("listening on ") {
            break;
        }
    }
    if let Some(address) = metrics {
        let mut stream = TcpStream::connect(&address).unwrap();
        write!(stream, "GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        stream.read_to_string(&mut said).unwrap();
        assert!(said.contains("dormer_"), "no metrics: {said}");
        Command::new("kill").arg(server.id().to_string()).status().unwrap();
        lines.for_each(|line| writeln!(said, "{line}").unwrap());
    }
    server.wait().unwrap();
    said
}

/// The port of a store that refuses everything, so that no call is repeated.
fn refusing_store() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let mut head = BufReader::new(stream.try_clone().unwrap()).lines().map_while(Result::ok);
            while head.next().is_some_and(|line| !line.is_empty()) {}
            let answer = "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
            // The client may be gone.
            let _ = (&stream).write_all(answer.as_bytes());
        }
    });
    port
}

/// What `edge serve` prints while it serves from a bucket that it cannot read.
fn start_of_edge(command: &mut Command) -> String {
    let arguments = ["edge", "serve", "--bucket", "s3://b/p", "--listen", "127.0.0.1:0"];
    let mut server = command.args(arguments).stderr(Stdio::piped()).spawn().unwrap();
    let mut said = String::new();
    let mut lines = BufReader::new(server.stderr.take().unwrap()).lines().map_while(Result::ok);
    for line in lines.by_ref() {
        let _ = writeln!(said, "{line}");
        let Some(address) = line.strip_prefix("listening on http://") else { continue };
        let mut stream = TcpStream::connect(address.trim_end_matches('/')).unwrap();
        write!(stream, "GET /main/nix-cache-info HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        stream.read_to_string(&mut said).unwrap();
        break;
    }
    Command::new("kill").arg(server.id().to_string()).status().unwrap();
    lines.for_each(|line| writeln!(said, "{line}").unwrap());
    server.wait().unwrap();
    said
}

/// Whether a server started with this value; and every output with the secret in it.
fn check(home: &TestHome, number: usize, setting: &TextSetting, value: &str) -> (bool, Vec<String>) {
    let mut leaks = Vec::new();
    let mut variables = variables_around(setting);
    variables.insert(setting.variable.clone(), value.to_owned());
    let what = format!("{}={value}", setting.variable);
    for arguments in commands(number) {
        let said = home.shown(&home.command(&arguments).envs(&variables).output().unwrap());
        if said.contains("MARKER") {
            leaks.push(format!("{what} {arguments:?}:\n{said}"));
        }
    }
    let said = start_of_serve(home.command(&[]).envs(&variables));
    if said.contains("MARKER") {
        leaks.push(format!("{what} serve:\n{said}"));
    }
    if is_of_edge_host(&setting.variable) || !setting.variable.starts_with("DORMER_") {
        // Behind this port is a store.
        let store = format!("127.0.0.1:{}", refusing_store());
        let variables = variables.iter().map(|(name, value)| (name, value.replace("127.0.0.1:9", &store)));
        let said = start_of_edge(home.command(&[]).envs(variables));
        assert!(!said.contains("listening on ") || said.contains("503"), "{what}: {said}");
        if said.contains("MARKER") {
            leaks.push(format!("{what} edge serve:\n{said}"));
        }
    }
    (said.contains("listening on "), leaks)
}

#[test]
fn no_output_shows_the_secret_of_any_text_setting() {
    let mut settings = text_settings();
    settings.extend(variables_of_others());
    settings.extend(of_edge_host());
    assert!(settings.iter().filter(|setting| setting.is_secret).count() >= 7, "{settings:?}");
    let cases: Vec<(&TextSetting, &str)> = settings
        .iter()
        .flat_map(|setting| {
            let secret = setting.is_secret.then_some(SOUND_SECRET);
            // A secret of its own needs no address.
            let addresses = ADDRESSES.into_iter().filter(|_| !setting.is_secret);
            // No store has the address of a database.
            let addresses = addresses
                .filter(|address| setting.variable.starts_with("DORMER_") || address.starts_with("http"));
            secret.into_iter().chain(addresses).map(move |value| (setting, value))
        })
        .collect();
    let checked: Vec<(bool, Vec<String>)> = thread::scope(|scope| {
        let workers: Vec<_> = (0..4)
            .map(|worker| {
                let cases = &cases;
                scope.spawn(move || {
                    let home = TestHome::new();
                    std::fs::write(home.path("target.toml"), TARGET).unwrap();
                    let own = cases.iter().enumerate().skip(worker).step_by(4);
                    own.map(|(number, (setting, value))| check(&home, number, setting, value))
                        .collect::<Vec<_>>()
                })
            })
            .collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    let leaks: Vec<&str> = checked.iter().flat_map(|(_, leaks)| leaks).map(String::as_str).collect();
    assert!(leaks.is_empty(), "{}", leaks.join("\n\n"));
    let started = checked.iter().filter(|(started, _)| *started).count();
    // Values that every command refuses would show little.
    assert!(started >= 10, "a server started with only {started} of {} values", cases.len());
}
