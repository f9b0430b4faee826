//! The flake and the modules for NixOS, evaluated by the real Nix versions against a small nixpkgs
//! of our own (`tests/nix/stubs`): options exist, units are hardened, mistakes are refused.
//!
//! The rest is real: systemd reads the units, the binary reads the settings, a shell runs the
//! script that makes netrc.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use dormer_tests::manifests::{items, text};
use dormer_tests::{Nix, Run, binary, part, workspace_root};
use serde_json::{Value, json};
use tempfile::TempDir;

/// A whole machine: server, publisher and client.
const EVERYTHING: &str = r#"{
  services.dormer = {
    enable = true;
    publisher.enable = true;
    credentials.master-key = "/run/secrets/master-key";
    environmentFile = "/run/secrets/dormer.env";
    openFirewall = true;
    settings = {
      listen = "0.0.0.0:8080";
      api-endpoint = "https://cache.example.org/";
      garbage-collection.default-retention-period = "90d";
      edge = [ { name = "r2"; bucket = "edge"; caches = [ "main" ]; region = "auto";
                 endpoint = "https://account.r2.cloudflarestorage.com"; } ];
    };
  };
  programs.dormer = {
    enable = true;
    caches = {
      main = {
        url = "https://cache.example.org/main";
        publicKeys = [ "main:kK3qGmZjtzvEwvdRgmIBvKEUQxWoKXpqwoBMpVu4JhQ=" ];
        tokenFile = "/run/secrets/token";
      };
      team = {
        url = "http://lab:8080/team";
        publicKeys = [ "team:kK3qGmZjtzvEwvdRgmIBvKEUQxWoKXpqwoBMpVu4JhQ=" ];
      };
    };
    queue = {
      enable = true;
      endpoint = "https://cache.example.org/";
      tokenFile = "/run/secrets/push-token";
      caches = [ "main" ];
      exclude = [ "*-source" ];
    };
  };
}"#;

/// What of the repository the machines of this file see.
struct Tree {
    folder: TempDir,
}

impl Tree {
    fn new() -> Self {
        let tree = Self { folder: tempfile::tempdir().unwrap() };
        let place = tree.folder.path();
        let copy = |from: &str, to: &str| {
            let from = workspace_root().join(from);
            Run::of(Command::new("cp").arg("-r").arg(from).arg(place.join(to))).succeeds();
        };
        fs::create_dir_all(place.join("flake/tests/nix")).unwrap();
        for name in ["flake.nix", "nix", "Cargo.toml", "Cargo.lock"] {
            copy(name, &format!("flake/{name}"));
        }
        copy("tests/nix/stubs", "flake/tests/nix/stubs");
        copy("tests/nix/system.nix", "flake/tests/nix/system.nix");
        copy("tests/nix/stubs", "nixpkgs");
        // Sources are only named.
        for name in sources() {
            let path = place.join("flake").join(&name);
            if !path.exists() {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, "").unwrap();
            }
        }
        fs::create_dir(place.join("conf")).unwrap();
        let conf = "build-users-group =\nsandbox = false\nsubstituters =\nexperimental-features = nix-command flakes\n";
        fs::write(place.join("conf/nix.conf"), conf).unwrap();
        tree
    }

    fn run(&self, nix: Nix, program: &str, arguments: &[&str]) -> Run {
        let place = self.folder.path();
        let mut command = Command::new(workspace_root().join("scripts/in-nix.sh"));
        command.arg(part(nix.name())).arg(place.join("nix").join(nix.name())).arg(place).arg(program);
        command.args(arguments).env("NIX_CONF_DIR", place.join("conf")).env("HOME", place.join("home"));
        Run::of(&mut command)
    }

    /// What a configuration of NixOS comes to.
    fn evaluate(&self, nix: Nix, configuration: &str) -> Run {
        let system = self.folder.path().join("flake/tests/nix/system.nix");
        let arguments = ["--eval", "--strict", "--json", system.to_str().unwrap()];
        let configuration = ["--arg", "configuration", configuration];
        self.run(nix, "nix-instantiate", &[arguments.as_slice(), &configuration].concat())
    }

    fn system(&self, nix: Nix, configuration: &str) -> Value {
        serde_json::from_str(&self.evaluate(nix, configuration).succeeds()).unwrap()
    }
}

/// What Cargo reads: the image is built from the same files, and from its script.
fn sources() -> Vec<String> {
    let ignore = fs::read_to_string(workspace_root().join("deploy/Containerfile.dockerignore")).unwrap();
    let kept = ignore.lines().filter_map(|line| line.strip_prefix('!'));
    kept.filter(|path| !path.starts_with("scripts/")).map(str::to_owned).collect()
}

/// A unit as NixOS would write it.
fn unit(system: &Value, kind: &str, name: &str) -> String {
    let unit = &system[kind][name];
    let mut lines = vec!["[Unit]".to_owned(), format!("Description={}", text(unit, "/description"))];
    for (key, word) in [("wants", "Wants"), ("before", "Before"), ("after", "After")] {
        let names: Vec<&str> = items(unit, &format!("/{key}")).filter_map(Value::as_str).collect();
        lines.push(format!("{word}={}", names.join(" ")));
    }
    let (section, settings) = match kind {
        "services" => ("[Service]", &unit["serviceConfig"]),
        _ => ("[Timer]", &unit["timerConfig"]),
    };
    lines.push(section.to_owned());
    for (name, value) in unit["environment"].as_object().into_iter().flatten() {
        lines.push(format!("Environment=\"{name}={}\"", value.as_str().unwrap()));
    }
    if !text(unit, "/script").is_empty() {
        lines.push("ExecStart=/bin/sh".to_owned());
    }
    for (key, value) in settings.as_object().unwrap() {
        let values = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
        for value in values {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            // systemd looks whether the program is there.
            let value = match value.split_once("/bin/dormer ") {
                Some((_, arguments)) => format!("{} {arguments}", binary().display()),
                None => value,
            };
            lines.push(format!("{key}={value}"));
        }
    }
    lines.join("\n") + "\n"
}

#[test]
fn every_nix_makes_the_same_hardened_units_and_systemd_reads_them() {
    let tree = Tree::new();
    let system = tree.system(Nix::OLDEST, EVERYTHING);
    for nix in [Nix::MIDDLE, Nix::NEWEST] {
        assert_eq!(tree.system(nix, EVERYTHING), system, "{}", nix.name());
    }
    let units = tempfile::tempdir().unwrap();
    let mut files = Vec::new();
    for (kind, ending) in [("services", "service"), ("timers", "timer")] {
        for name in system[kind].as_object().unwrap().keys() {
            let path = units.path().join(format!("{name}.{ending}"));
            fs::write(&path, unit(&system, kind, name)).unwrap();
            files.push(path);
        }
    }
    let names: Vec<&str> = files.iter().map(|path| path.file_name().unwrap().to_str().unwrap()).collect();
    let expected = [
        "dormer.service",
        "dormer-netrc.service",
        "dormer-publisher.service",
        "dormer-queue.service",
        "dormer-publisher.timer",
    ];
    assert_eq!(names, expected);
    let verify = |files: &[std::path::PathBuf]| {
        let mut verify = Command::new("systemd-analyze");
        Run::of(verify.args(["verify", "--man=no", "--recursive-errors=no"]).args(files))
    };
    let said = verify(&files);
    assert!(said.is_success() && said.stderr().is_empty(), "{said}");
    // Out of 10: what nixpkgs calls well hardened is below 2.
    for file in files.iter().filter(|file| file.extension().unwrap() == "service") {
        let mut security = Command::new("systemd-analyze");
        Run::of(security.args(["security", "--offline=true", "--threshold=15"]).arg(file)).succeeds();
    }
    // Both see.
    let text = fs::read_to_string(&files[0]).unwrap();
    fs::write(&files[0], text.replace("ProtectSystem=strict", "ProtectSytem=strict")).unwrap();
    assert!(verify(&files[..1]).stderr().contains("ProtectSytem"));
    fs::write(&files[0], text.replace("PrivateUsers=true", "").replace("RestrictNamespaces=true", ""))
        .unwrap();
    let mut security = Command::new("systemd-analyze");
    Run::of(security.args(["security", "--offline=true", "--threshold=15"]).arg(&files[0])).fails();
}

#[test]
fn modules_do_what_their_options_say_and_nothing_unless_enabled() {
    let tree = Tree::new();
    let nothing = tree.system(Nix::NEWEST, "{ }");
    for key in ["services", "timers", "nix"] {
        assert_eq!(nothing[key], json!({}), "{key}");
    }
    for key in ["ports", "users", "packages"] {
        assert_eq!(nothing[key], json!([]), "{key}");
    }

    let system = tree.system(Nix::NEWEST, EVERYTHING);
    assert_eq!(system["ports"], json!([8080]));
    assert_eq!(system["users"], json!(["dormer", "dormer-queue"]));
    assert_eq!(system["timers"]["dormer-publisher"]["timerConfig"]["OnCalendar"], "*:0/15");
    for name in ["dormer", "dormer-publisher"] {
        let service = &system["services"][name];
        assert_eq!(service["environment"], json!({"DORMER_MASTER_KEY_FILE": "%d/master-key"}));
        assert_eq!(service["serviceConfig"]["LoadCredential"], json!(["master-key:/run/secrets/master-key"]));
        assert_eq!(service["serviceConfig"]["EnvironmentFile"], json!(["/run/secrets/dormer.env"]));
        assert_eq!(service["serviceConfig"]["User"], "dormer");
    }
    let nix = &system["nix"];
    let substituters = json!(["https://cache.example.org/main", "http://lab:8080/team"]);
    assert_eq!(nix["extra-substituters"], substituters);
    assert_eq!(items(nix, "/extra-trusted-public-keys").count(), 2);
    assert_eq!(nix["netrc-file"], "/run/dormer-netrc/netrc");

    let queue = &system["services"]["dormer-queue"];
    assert!(text(queue, "/serviceConfig/ExecStart").ends_with("/bin/dormer queue drain --watch"), "{queue}");
    assert_eq!(queue["serviceConfig"]["LoadCredential"], json!(["token:/run/secrets/push-token"]));
    assert_eq!(queue["serviceConfig"]["User"], "dormer-queue");
    assert!(text(nix, "/post-build-hook").ends_with("-dormer-post-build-hook"), "{nix}");
    let by_store = tree.system(
        Nix::NEWEST,
        r#"{ programs.dormer.queue = { enable = true; endpoint = "https://a/"; tokenFile = "/t"; caches = [ "a" "b" ];
             noticedBy = "store"; }; }"#,
    );
    assert_eq!(by_store["nix"], json!({}));
    let queue = &by_store["services"]["dormer-queue"];
    assert!(text(queue, "/serviceConfig/ExecStart").ends_with("/bin/dormer watch lab:a lab:b"), "{queue}");

    // A cache that everybody may read needs no secret.
    let public = r#"{ programs.dormer.enable = true; programs.dormer.caches.main = {
        url = "https://cache.example.org/main";
        publicKeys = [ "main:kK3qGmZjtzvEwvdRgmIBvKEUQxWoKXpqwoBMpVu4JhQ=" ]; }; }"#;
    let public = tree.system(Nix::NEWEST, public);
    assert_eq!((&public["services"], &public["nix"]["netrc-file"]), (&json!({}), &Value::Null));

    // Continuously, instead of by a timer.
    let watch = tree.system(
        Nix::NEWEST,
        r#"{ services.dormer = { publisher = { enable = true; watch = true; target = "r2"; };
             settings.edge = [ { name = "r2"; } ]; }; }"#,
    );
    assert_eq!(watch["timers"], json!({}));
    let service = &watch["services"]["dormer-publisher"];
    assert!(text(service, "/serviceConfig/ExecStart").contains("/bin/dormer publish r2 --watch --config "));
    assert_eq!(service["serviceConfig"]["Restart"], "always");
    assert_eq!(service["wantedBy"], json!(["multi-user.target"]));
    assert_eq!(watch["services"].as_object().unwrap().len(), 1, "the server is not enabled");
}

/// The words of a shell's command line, each on a line of its own, come from a `systemd-run` that
/// only prints them: systemd is not the first process here. systemd itself judges the properties,
/// and a shell and the binary run what is behind them.
#[test]
fn the_administrators_command_has_the_settings_secrets_and_user_of_the_units() {
    let tree = Tree::new();
    let system = tree.system(Nix::NEWEST, EVERYTHING);
    assert!(items(&system, "/packages").any(|name| name == "dormer-admin"), "{}", system["packages"]);
    let script = items(&system, "/scripts").next().unwrap().as_str().unwrap().to_owned();
    let place = tempfile::tempdir().unwrap();
    let print = place.path().join("systemd-run");
    fs::write(&print, "#!/bin/sh\nprintf '%s\\0' \"$@\"\n").unwrap();
    fs::set_permissions(&print, fs::Permissions::from_mode(0o755)).unwrap();
    let mut shell = Command::new("/bin/sh");
    shell.args(["-euc", &script, "dormer-admin", "config", "show", "--json"]);
    let path = format!("{}:{}", place.path().display(), std::env::var("PATH").unwrap());
    let words = Run::of(shell.env("PATH", path)).succeeds();
    let words: Vec<&str> = words.split_terminator('\0').collect();
    let (flags, command) = words.split_at(words.iter().position(|word| *word == "--").unwrap());
    assert!(flags.contains(&"--pipe") && flags.contains(&"--wait"), "{flags:?}");

    let mut unit = "[Service]\nExecStart=/bin/true\n".to_owned();
    for property in flags.iter().filter_map(|flag| flag.strip_prefix("--property=")) {
        unit = format!("{unit}{property}\n");
        // The same as those of the server.
        let (name, value) = property.split_once('=').unwrap();
        let of_server = &system["services"]["dormer"]["serviceConfig"][name];
        let is_same = match of_server {
            Value::Array(values) => values.contains(&value.into()),
            Value::Bool(flag) => *flag == (value == "yes"),
            _ => of_server == value,
        };
        assert!(is_same, "{name}: {value} and {of_server}");
    }
    for secret in
        ["EnvironmentFile=/run/secrets/dormer.env", "LoadCredential=master-key:/run/secrets/master-key"]
    {
        assert!(unit.contains(secret), "{unit}");
    }
    let file = place.path().join("dormer-admin.service");
    fs::write(&file, unit).unwrap();
    let mut verify = Command::new("systemd-analyze");
    let said = Run::of(verify.args(["verify", "--man=no", "--recursive-errors=no"]).arg(file));
    assert!(said.is_success() && said.stderr().is_empty(), "{said}");

    // The names in the Nix store are those of nothing that was built.
    let settings = place.path().join("dormer.toml");
    fs::write(&settings, "listen = \"127.0.0.1:9999\"\n").unwrap();
    fs::write(place.path().join("master-key"), "").unwrap();
    let replaced = |word: &str| {
        let words = word.split(' ').map(|word| match word.split_once('=') {
            Some(("DORMER_CONFIG", _)) => format!("DORMER_CONFIG={}", settings.display()),
            _ if word.ends_with("/bin/dormer") => binary().display().to_string(),
            _ => word.to_owned(),
        });
        words.collect::<Vec<_>>().join(" ")
    };
    let mut run = Command::new(command[1]);
    run.args(command[2..].iter().map(|word| replaced(word)));
    run.env_clear().env("CREDENTIALS_DIRECTORY", place.path());
    let shown = Run::of(&mut run).succeeds();
    let key_file = place.path().join("master-key");
    assert!(shown.contains("127.0.0.1:9999") && shown.contains(key_file.to_str().unwrap()), "{shown}");
}

#[test]
fn mistakes_in_a_configuration_are_refused_with_a_reason() {
    const KEY: &str = r#"publicKeys = [ "a:kK3qGmZjtzvEwvdRgmIBvKEUQxWoKXpqwoBMpVu4JhQ=" ];"#;
    let tree = Tree::new();
    let server = |rest: &str| format!("{{ services.dormer = {{ enable = true; {rest} }}; }}");
    let publisher = |rest: &str| format!("{{ services.dormer = {{ publisher.enable = true; {rest} }}; }}");
    let client =
        |rest: &str| format!("{{ programs.dormer = {{ enable = true; caches.a = {{ {rest} }}; }}; }}");
    let queue = |endpoint: &str, rest: &str| {
        format!(r#"{{ programs.dormer.queue = {{ enable = true; endpoint = "{endpoint}"; {rest} }}; }}"#)
    };
    let cases = [
        (server("enabled = true;"), "option `services.dormer.enabled' does not exist"),
        (server("settings.listen = 8080;"), "`services.dormer.settings.listen' is not of type"),
        (server(r#"settings.listen = "localhost";"#), "`services.dormer.settings.listen' is not of type"),
        (server(r#"settings.listen = "0.0.0.0:80";"#), "port below 1024"),
        (server("openFirewall = true;"), "no other machine reaches it"),
        (server(r#"settings.master-key = "x";"#), "master-key. Put them into"),
        (
            server(r#"settings.storage.credentials.secret_access_key = "x";"#),
            "storage.credentials.secret_access_key",
        ),
        (server(r#"settings.database.url = "postgresql://me:word@db/dormer";"#), "holds a password"),
        (server(r#"environmentFile = "/nix/store/x.env";"#), "/nix/store/x.env is in the Nix store"),
        (server(r#"credentials.master-key = "/nix/store/key";"#), "/nix/store/key is in the Nix store"),
        (publisher(""), "services.dormer.settings.edge is empty"),
        (publisher(r#"publisher.target = "s4"; settings.edge = [ { name = "r2"; } ];"#), "has no target s4"),
        (
            publisher(r#"settings.edge = [ { name = "r2"; credentials.secret_access_key = "x"; } ];"#),
            "edge holds secret keys",
        ),
        (client(r#"url = "https://a.example.org/a";"#), "publicKeys' was accessed but has no value"),
        (client(&format!(r#"url = "ftp://a/a"; {KEY}"#)), "`programs.dormer.caches.a.url' is not of type"),
        (
            client(r#"url = "https://a.example.org/a"; publicKeys = [ "a:short=" ];"#),
            "publicKeys.*' is not of type",
        ),
        (
            client(&format!(r#"url = "http://a.example.org/a"; tokenFile = "/run/t"; {KEY}"#)),
            "the token would travel without TLS",
        ),
        (
            client(&format!(r#"url = "https://a.example.org/a"; tokenFile = "/nix/store/t"; {KEY}"#)),
            "tokenFile is in the Nix store",
        ),
        (
            client(&format!(
                r#"url = "https://a.example.org/a"; tokenFile = "/run/t"; {KEY} }}; caches.b = {{
                url = "https://a.example.org/b"; tokenFile = "/run/u"; {KEY}"#
            )),
            "one token for a host",
        ),
        (queue("https://a/", r#"tokenFile = "/t";"#), "queue.caches' was accessed but has no value"),
        (queue("https://a/", r#"tokenFile = "/t"; caches = [ ];"#), "queue.caches' is not of type"),
        (queue("http://a/", r#"tokenFile = "/t"; caches = [ "a" ];"#), "the token would travel without TLS"),
        (
            queue("https://a/", r#"tokenFile = "/nix/store/t"; caches = [ "a" ];"#),
            "queue.tokenFile is in the Nix store",
        ),
    ];
    for (number, (configuration, words)) in cases.iter().enumerate() {
        // Each mistake by one Nix, all Nix versions by turns.
        let said = tree.evaluate(Nix::ALL[number % 3], configuration).fails();
        assert!(said.contains(words), "{configuration}: {said}");
    }
}

#[test]
fn the_flake_passes_nix_flake_check_and_names_every_source() {
    let tree = Tree::new();
    let place = tree.folder.path();
    let (nixpkgs, flake) =
        (format!("path:{}/nixpkgs", place.display()), format!("path:{}/flake", place.display()));
    for nix in [Nix::MIDDLE, Nix::NEWEST] {
        let check = ["flake", "check", "--no-build", "--all-systems"];
        let inputs = ["--no-write-lock-file", "--override-input", "nixpkgs", &nixpkgs, &flake];
        let said = tree.run(nix, "nix", &[check.as_slice(), &inputs].concat());
        said.succeeds();
        for output in ["packages.aarch64-linux.default", "overlays.default", "nixosModules.client"] {
            assert!(said.stderr().contains(output), "{said}");
        }
    }
    let package = fs::read_to_string(workspace_root().join("nix/package.nix")).unwrap();
    let (_, named) = package.split_once("unions [").unwrap();
    let named: Vec<&str> = named
        .split(']')
        .next()
        .unwrap()
        .split_whitespace()
        .filter_map(|one| one.strip_prefix("../"))
        .collect();
    let mut expected = sources();
    expected.sort_unstable();
    let mut sorted = named.clone();
    sorted.sort_unstable();
    assert_eq!(sorted, expected, "the package is built from other files than the image");
}

/// What the binary makes of settings.
fn show(settings: &Value) -> Run {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), toml::to_string(settings).unwrap()).unwrap();
    let mut show = Command::new(binary());
    Run::of(show.args(["config", "show", "--json", "--config"]).arg(file.path()).env_clear())
}

#[test]
fn the_binary_takes_the_settings_that_the_modules_write() {
    let tree = Tree::new();
    let system = tree.system(Nix::NEWEST, EVERYTHING);
    // The build of a system does the same, with the script of the module.
    assert!(text(&system, "/check").contains("/bin/dormer config show --config "), "{system}");
    let said = show(&system["settings"]);
    let shown: Value = serde_json::from_str(&said.succeeds()).unwrap();
    assert_eq!(said.stderr(), "");
    assert_eq!(shown["data-dir"]["value"], "/var/lib/dormer");
    assert_eq!(shown["garbage-collection.default-retention-period"]["value"].as_f64(), Some(7_776_000.0));

    let mut wrong = system["settings"].clone();
    wrong["garbage-collection"]["intervall"] = "1h".into();
    assert!(show(&wrong).fails().contains("interval"));
}

/// In seconds, as systemd reads it.
fn stop_time(system: &Value, service: &str) -> f64 {
    let stop = text(system, &format!("/services/{service}/serviceConfig/TimeoutStopSec"));
    let mut span = Command::new("systemd-analyze");
    let span = Run::of(span.args(["timespan", stop])).succeeds();
    // The first letter of the unit depends on the locale.
    let micros = span.lines().find_map(|line| Some(line.trim().split_once("s: ")?.1)).unwrap();
    micros.parse::<f64>().unwrap() / 1e6
}

/// In every form of a time that the binary reads.
#[test]
fn systemd_waits_longer_for_what_stops_than_stopping_takes() {
    const MARGIN: f64 = 30.0;
    let tree = Tree::new();
    for (number, (limits, needed)) in [
        ("", 30.0),
        (r#"cpu-threads = 4; drain-delay = "5s";"#, 35.0),
        (r#"shutdown-timeout = "5 min"; drain-delay = 5;"#, 305.0),
        (r#"shutdown-timeout = "2mins 30 secs"; drain-delay = "2500 millis";"#, 152.5),
        (r#"shutdown-timeout = "1hr"; drain-delay = "1 minute";"#, 3_660.0),
        ("shutdown-timeout = 1200;", 1_200.0),
    ]
    .into_iter()
    .enumerate()
    {
        let configuration =
            format!("{{ services.dormer = {{ enable = true; settings.limits = {{ {limits} }}; }}; }}");
        let system = tree.system(Nix::ALL[number % 3], &configuration);
        let shown: Value = serde_json::from_str(&show(&system["settings"]).succeeds()).unwrap();
        let seconds = |key: &str| shown[key]["value"].as_f64().unwrap();
        let taken = seconds("limits.drain-delay") + seconds("limits.shutdown-timeout");
        assert!((taken - needed).abs() < 1e-6, "{limits}: {taken}");
        let stop = stop_time(&system, "dormer");
        assert!((stop - needed - MARGIN).abs() < 1e-6, "{limits}: {stop}");
    }
    // A publisher waits for its requests.
    let edge =
        |more: &str| format!(r#"{{ name = "a"; type = "local"; path = "/a"; caches = [ "main" ]; {more} }}"#);
    for (more, needed) in [("", 60.0), (r#"timeout = "5 mins";"#, 300.0)] {
        let configuration = format!(
            "{{ services.dormer = {{ publisher.enable = true; settings.edge = [ {} ]; }}; }}",
            edge(more)
        );
        let system = tree.system(Nix::NEWEST, &configuration);
        let shown: Value = serde_json::from_str(&show(&system["settings"]).succeeds()).unwrap();
        let taken = shown["edge"][0]["edge.timeout"]["value"].as_f64();
        assert_eq!(taken, Some(needed), "{more}: {shown}");
        let stop = stop_time(&system, "dormer-publisher");
        assert!((stop - needed - MARGIN).abs() < 1e-6, "{more}: {stop}");
    }
}

#[test]
fn the_script_writes_tokens_for_the_daemon_alone() {
    let tree = Tree::new();
    let system = tree.system(Nix::NEWEST, EVERYTHING);
    let script = text(&system, "/services/dormer-netrc/script");
    let place = tempfile::tempdir().unwrap();
    let run = |credentials: &Path| {
        let mut shell = Command::new("bash");
        shell.args(["-c", script]).env_clear().env("PATH", "/usr/bin:/bin");
        Run::of(shell.env("RUNTIME_DIRECTORY", place.path()).env("CREDENTIALS_DIRECTORY", credentials))
    };
    let netrc = place.path().join("netrc");
    let expected = "machine cache.example.org login dormer password eyJ.a.b\n";
    // With and without a line end, as secrets come.
    for token in ["eyJ.a.b\n", "eyJ.a.b"] {
        let credentials = tempfile::tempdir().unwrap();
        fs::write(credentials.path().join("main"), token).unwrap();
        run(credentials.path()).succeeds();
        assert_eq!(fs::read_to_string(&netrc).unwrap(), expected);
        assert_eq!(fs::metadata(&netrc).unwrap().permissions().mode() & 0o777, 0o600);
    }
    // Without a token the unit fails, and the file of before stays.
    let empty = tempfile::tempdir().unwrap();
    run(empty.path()).fails();
    fs::write(empty.path().join("main"), "").unwrap();
    run(empty.path()).fails();
    assert_eq!(fs::read_to_string(&netrc).unwrap(), expected);
}
