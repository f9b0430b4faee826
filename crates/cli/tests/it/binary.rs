//! The output of the real binary: exit code, standard output and standard error, with ports, keys
//! and paths filtered.
//!
//! The workspace's `tests/` uses a real Nix. Here a server runs, and a script stands in for
//! `nix`.

#![expect(clippy::unwrap_used, reason = "helpers of tests: a panic is the failure")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;
use std::process::Stdio;

use crate::test_home::TestHome;

#[test]
fn help_teaches() {
    let home = TestHome::new();
    insta::assert_snapshot!("help", home.run(&["--help"]));
    insta::assert_snapshot!("help_serve", home.run(&["serve", "--help"]));
    insta::assert_snapshot!("help_push", home.run(&["push", "--help"]));
    // Every command has an example, or only one line of help.
    for command in [
        "login",
        "push",
        "watch",
        "exec",
        "install-hook",
        "queue retry",
        "queue drop",
        "use",
        "unuse",
        "cache create",
        "cache configure",
        "cache remove-path",
        "token create",
        "config show",
        "gc",
        "backup",
        "restore",
        "recover",
        "adopt",
        "scrub",
        "stats",
    ] {
        let words: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        let help = home.run(&words);
        assert!(help.starts_with("exit code: 0"), "{help}");
        assert!(help.contains("Examples:") || command == "unuse", "{help}");
    }
}

/// What was there at the backup is there after the restoration, and nothing is overwritten.
#[test]
fn a_backup_is_made_beside_a_server_and_brings_its_caches_back() {
    let mut home = TestHome::new();
    let refused = home.run(&["backup", "early"]);
    assert!(refused.contains("there is no installation here"), "{refused}");
    home.serve();
    home.login();
    home.run(&["cache", "create", "before"]);
    let made = home.run(&["backup", "backup.sqlite", "--json"]);
    assert!(made.starts_with("exit code: 0") && made.contains(r#""objects":0"#), "{made}");
    home.run(&["cache", "create", "after"]);
    let again = home.run(&["backup", "backup.sqlite"]);
    assert!(again.starts_with("exit code: 1") && again.contains("is there already"), "{again}");
    let running = home.run(&["restore", "backup.sqlite"]);
    assert!(running.starts_with("exit code: 1") && running.contains("is there already"), "{running}");
    assert_eq!(home.stop(), Some(0));

    fs::remove_file(home.path(".local/share/dormer/index.sqlite")).unwrap();
    let restored = home.run(&["restore", "backup.sqlite"]);
    assert!(restored.starts_with("exit code: 0") && restored.contains("--reconcile"), "{restored}");
    home.serve();
    home.login();
    let caches = home.run(&["cache", "list"]);
    assert!(caches.contains("before") && !caches.contains("after"), "{caches}");
    assert_eq!(home.stop(), Some(0));

    let postgres =
        home.command(&["backup", "x"]).env("DORMER_DATABASE_URL", "postgresql://db/dormer").output();
    let postgres = home.shown(&postgres.unwrap());
    assert!(postgres.contains("pg_dump") && postgres.contains("OPERATING.md"), "{postgres}");
}

/// A server refuses the store of another database until a person says that they belong together.
#[test]
fn a_foreign_store_is_refused_until_it_is_adopted() {
    let mut home = TestHome::new();
    home.serve();
    assert_eq!(home.stop(), Some(0));
    let with_other_data = |arguments: &[&str]| {
        let mut command = home.command(arguments);
        command.env("DORMER_DATA_DIR", home.path("other")).env("DORMER_METRICS_LISTEN", "off");
        command.env("DORMER_STORAGE_PATH", home.path(".local/share/dormer/storage"));
        home.shown(&command.output().unwrap())
    };
    let refused = with_other_data(&["serve", "--listen", "127.0.0.1:0"]);
    assert!(refused.starts_with("exit code: 1"), "{refused}");
    assert!(
        refused.contains("belongs to another installation") && refused.contains("dormer adopt"),
        "{refused}"
    );
    let unasked = with_other_data(&["adopt"]);
    assert!(unasked.starts_with("exit code: 2") && unasked.contains("--no-confirm"), "{unasked}");
    let told = with_other_data(&["doctor"]);
    assert!(told.contains("belongs to another installation"), "{told}");
    let adopted = with_other_data(&["adopt", "--no-confirm", "--json"]);
    assert!(adopted.starts_with("exit code: 0") && adopted.contains("store_adopted"), "{adopted}");
    let told = with_other_data(&["doctor"]);
    assert!(told.contains("carry the same id"), "{told}");
    let first = home.run(&["serve", "--listen", "127.0.0.1:0"]);
    assert!(
        first.starts_with("exit code: 1") && first.contains("belongs to another installation"),
        "{first}"
    );
}

/// Beside a server, the server collects; without one, the command does.
#[test]
fn gc_works_beside_a_server_and_without_one() {
    let mut home = TestHome::new();
    let refused = home.run(&["gc", "--dry-run"]);
    assert!(refused.contains("there is no installation here"), "{refused}");
    home.serve();
    insta::assert_snapshot!(home.run(&["gc", "--dry-run"]), @"
    exit code: 0
    --- stdout
    paths that the rules of 0 caches let go: 0, 0 B
    graces that are over: 0; uploads that are over: 0
    NARs to remove: 0, 0 B uncompressed
    to condemn: 0 packs, 0 B, 0 chunks
    condemned, waiting for the longest upload: 0 packs, 0 B, 0 chunks
    to free: 0 packs, 0 B, 0 chunks
    to compact: 0 packs, 0 B; 0 B read and 0 B written into 0 packs by 0 requests
    ");
    let beside = home.run(&["gc"]);
    assert!(beside.contains("another process collects; waiting for it"), "{beside}");
    assert!(beside.contains("freed: 0 packs"), "{beside}");
    assert_eq!(home.stop(), Some(0));
    let alone = home.run(&["gc", "--json"]);
    assert!(alone.contains(r#""message_type":"collection""#), "{alone}");
    assert!(!alone.contains("another process"), "{alone}");
}

/// Beside a server, the server scrubs; without one, the command does.
#[test]
fn scrub_works_beside_a_server_and_without_one() {
    let mut home = TestHome::new();
    let refused = home.run(&["scrub"]);
    assert!(refused.contains("there is no installation here"), "{refused}");
    let usage = home.run(&["scrub", "--sample", "0%"]);
    assert!(usage.starts_with("exit code: 2") && usage.contains("such as 5%"), "{usage}");
    home.serve();
    insta::assert_snapshot!(home.run(&["scrub", "--full"]), @"
    exit code: 0
    --- stdout
    checked: 0 packs with 0 chunks, 0 NARs; 0 B read
    damaged: 0 packs, 0 chunks, 0 NARs; missing: 0 packs
    --- stderr
    a server has the database; it does the work
    ");
    assert_eq!(home.stop(), Some(0));
    let alone = home.run(&["scrub", "--json"]);
    assert!(
        alone.contains(r#""message_type":"scrub""#) && alone.contains(r#""found_damage":false"#),
        "{alone}"
    );
}

#[test]
fn stats_shows_a_cache_and_the_whole_server() {
    let mut home = TestHome::new();
    home.serve();
    home.login();
    insta::assert_snapshot!(home.run(&["stats", "main"]), @"
    exit code: 0
    --- stdout
    0 paths, 0 B uncompressed
    ");
    insta::assert_snapshot!(home.run(&["stats"]), @"
    exit code: 0
    --- stdout
    0 paths in all caches, 0 B uncompressed
    0 NARs, in 0 packs of 0 B
    saved by NARs that several paths have: 0 B
    saved by equal chunks: 0 B
    saved by holes: 0 B
    saved by compression: 0 B
    ");
    let json = home.run(&["stats", "--json"]);
    assert!(json.contains(r#""message_type":"stats""#) && json.contains(r#""complete":true"#), "{json}");
}

#[test]
fn the_first_start_says_what_it_made_and_the_second_that_it_is_there() {
    let mut home = TestHome::new();
    insta::assert_snapshot!(home.serve(), @"
    made in HOME/.local/share/dormer:
      index.sqlite   what the caches hold (SQLite)
      storage/       their contents, in packs
      master-key     seals the signing keys in the index; keep a copy apart from the index's backup
      token-secret   signs tokens
      cache main     public, with a signing key of its own
      admin-token    a token that may do everything, valid for 2 years

    next, in another terminal:
      dormer login lab http://127.0.0.1:PORT --token-file HOME/.local/share/dormer/admin-token
      dormer push main ./result
      dormer use main

    or without this program, in the nix.conf of each client:
      extra-substituters = http://127.0.0.1:PORT/main
      extra-trusted-public-keys = main:KEY

    listening on http://127.0.0.1:PORT
    ");
    // The commands that the start printed work.
    home.login();
    assert!(home.run(&["use", "main"]).starts_with("exit code: 0"));
    insta::assert_snapshot!(home.run(&["serve"]), @"
    exit code: 1
    --- stderr
    error: HOME/.local/share/dormer/index.sqlite is in use by another process
    hint: another `dormer serve` is running on this data folder; choose another --data-dir
    ");
    assert_eq!(home.stop(), Some(0), "SIGTERM is an orderly end");
    insta::assert_snapshot!(home.serve(), @"
    using HOME/.local/share/dormer
    listening on http://127.0.0.1:PORT
    ");
    // The token of the first start still opens the second.
    home.login();
    assert_eq!(home.stop(), Some(0));
}

#[test]
fn log_lines_for_collectors_are_json_throughout() {
    let home = TestHome::new();
    let mut server = home
        .command(&["serve", "--listen", "127.0.0.1:0", "--log-format", "json"])
        .env("DORMER_METRICS_LISTEN", "off")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(server.stderr.take().unwrap()).lines();
    let listening = lines.any(|line| {
        let value: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
        value["message"].as_str().unwrap().starts_with("listening on http://127.0.0.1:")
    });
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(listening);
}

#[test]
fn mistakes_are_explained() {
    let home = TestHome::new();
    fs::write(home.path("dormer.toml"), "[chunks]\nagv = \"64 KiB\"\n").unwrap();
    insta::assert_snapshot!(home.run(&["serve", "--config", "dormer.toml"]), @"
    exit code: 2
    --- stderr
    error: unknown key 'chunks.agv' in dormer.toml
    hint: did you mean 'chunks.avg'?
    ");
    insta::assert_snapshot!(home.run(&["serve", "--config", "nowhere.toml"]), @"
    exit code: 2
    --- stderr
    error: failed to read settings file nowhere.toml: No such file or directory (os error 2)
    ");
    insta::assert_snapshot!(home.run(&["cache", "list"]), @"
    exit code: 2
    --- stderr
    error: no server is named and no default server is set
    hint: log in first: dormer login NAME URL --token-file FILE; with several servers write SERVER:CACHE, or set a default with --set-default
    hint: or, for a service, set DORMER_ENDPOINT and DORMER_TOKEN, or write /etc/dormer/config.toml for its user
    ");
    insta::assert_snapshot!(home.run(&["cache", "list", "--json"]), @r#"
    exit code: 2
    --- stderr
    {"exit_code":2,"hints":["log in first: dormer login NAME URL --token-file FILE; with several servers write SERVER:CACHE, or set a default with --set-default","or, for a service, set DORMER_ENDPOINT and DORMER_TOKEN, or write /etc/dormer/config.toml for its user"],"message":"no server is named and no default server is set","message_type":"error"}
    "#);
    insta::assert_snapshot!(home.run(&["cache", "list", "-qq"]), @"exit code: 2");
    insta::assert_snapshot!(home.run(&["token", "create", "--sub", "ci", "--validity", "1d", "--pull", "*"]), @"
    exit code: 1
    --- stderr
    error: no token secret in HOME/.local/share/dormer/token-secret: the server was never started with these settings
    hint: start `dormer serve` once with the same settings, or set jwt.signing.token-hs256-secret-base64
    hint: `dormer token create` runs where the server's settings are, not on its clients
    ");
    insta::assert_snapshot!(home.run(&["login", "lab", "ftp://x", "t"]), @"
    exit code: 2
    --- stderr
    error: invalid value 'ftp://x' for '<URL>': \"ftp://x\" is not the address of a server: it must begin with http:// or https://

    For more information, try '--help'.
    ");
    // Nobody listens on port 1.
    let away = home.run(&["login", "lab", "http://127.0.0.1:1", "t"]);
    assert!(away.starts_with("exit code: 5") && away.contains("hint: is the server running"), "{away}");
    assert!(
        !home.path(".config/dormer/config.toml").exists(),
        "nothing is stored before the server answered"
    );
}

#[test]
fn a_name_of_another_tool_gets_the_command_here() {
    let home = TestHome::new();
    for (words, here) in [
        (&["watch-exec", "main"][..], "dormer exec CACHE -- COMMAND"),
        (&["cache", "delete", "main"], "dormer cache destroy CACHE"),
        (&["garbage-collector-once"], "dormer gc"),
    ] {
        let said = home.run(words);
        assert!(said.starts_with("exit code: 2") && said.contains(here), "{said}");
    }
    assert!(!home.run(&["nonsense"]).contains("the command here"));
}

/// A server that sends everybody to another address.
fn redirecting(to: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let answer =
        format!("HTTP/1.1 301 Moved\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    address
}

#[test]
fn a_login_at_an_address_that_moved_names_the_new_one() {
    let home = TestHome::new();
    for base in ["https://cache.example.org/", "https://cache.example.org:8443/nix/"] {
        let address = redirecting(&format!("{base}_api/v2/caches"));
        let said = home.run(&["login", "lab", &address, "t"]);
        assert!(said.starts_with("exit code: 2"), "{said}");
        assert!(said.contains(&format!("hint: log in there: dormer login lab {base} ")), "{said}");
    }
    let said = home.run(&["login", "lab", &redirecting("https://portal.example.org/"), "t"]);
    assert!(said.starts_with("exit code: 1") && said.contains("it redirects to https://portal"), "{said}");
    assert!(!home.path(".config/dormer/config.toml").exists());
}

/// Nothing that is wrong with the push keeps a command from its work, and its code counts. Here
/// there is no Nix, so nobody can tell what was built.
#[test]
fn exec_runs_its_command_whatever_is_wrong_with_the_push() {
    let home = TestHome::new();
    fs::write(home.path("file"), "").unwrap();
    let (file, good) = (home.path("file"), home.path("queue"));
    for (queue, words) in [(&file, "--queue-dir"), (&good, "install Nix")] {
        let mut command = home.command(&["exec", "main", "--", "sh", "-c", "echo built; exit 7"]);
        command.env("DORMER_ENDPOINT", "http://127.0.0.1:1").env("TMPDIR", home.folder.path());
        command.env("DORMER_QUEUE_DIR", queue);
        let said = home.shown(&command.output().unwrap());
        assert!(said.starts_with("exit code: 7") && said.contains("built"), "{said}");
        assert!(said.contains(words) && said.contains("the command runs all the same"), "{said}");
        assert!(said.contains("nothing of what the command built is pushed"), "{said}");
    }
}

#[test]
fn a_folder_of_attics_is_refused_with_advice() {
    let home = TestHome::new();
    let chunk = home.path("theirs/a/b/2b9d04a6-9b2b-4a4b-8a3f-0c1d2e3f4a5b.chunk");
    fs::create_dir_all(chunk.parent().unwrap()).unwrap();
    fs::write(&chunk, "theirs").unwrap();
    fs::write(home.path("server.toml"), "[storage]\ntype = \"local\"\npath = \"theirs\"\n").unwrap();
    insta::assert_snapshot!(home.run(&["serve", "--config", "server.toml"]), @"
    exit code: 1
    --- stderr
    error: theirs is a folder of Attic
    hint: Dormer uses another format and changed nothing there; give Dormer its own folder (--data-dir, or path under [storage])
    ");
    assert!(!home.path(".local/share/dormer").exists());
}

#[test]
fn caches_are_created_changed_listed_and_destroyed() {
    let mut home = TestHome::new();
    home.serve();
    home.login();
    insta::assert_snapshot!(home.run(&["cache", "create", "team", "--priority", "30"]), @"
    exit code: 0
    --- stderr
    created the private cache team on lab
    ");
    insta::assert_snapshot!(home.run(&["cache", "create", "team"]), @"
    exit code: 1
    --- stderr
    error: creating cache team: cache 'team' exists already (request ID)
    hint: `dormer cache configure` changes it
    ");
    insta::assert_snapshot!(
        home.run(&["cache", "configure", "lab:team", "--retention-period", "3 months", "--upstream-cache-key-name", "a-1"]), @"
    exit code: 0
    --- stderr
    configured the cache team on lab
    ");
    insta::assert_snapshot!(home.run(&["cache", "info", "team"]), @"
    exit code: 0
    --- stdout
    cache          lab:team
    visibility     private
    public key     team:KEY
    substituter    http://127.0.0.1:PORT/team
    api            http://127.0.0.1:PORT/
    store folder   /nix/store
    priority       30
    upstream keys  a-1
    retention      3 months
    replacement    forbidden: the first NAR of a path stays
    ");
    insta::assert_snapshot!(home.run(&["cache", "list"]), @"
    exit code: 0
    --- stdout
    main  public   priority 41   main:KEY
    team  private  priority 30   team:KEY
    ");
    insta::assert_snapshot!(home.run(&["cache", "configure", "team"]), @"
    exit code: 2
    --- stderr
    error: nothing to change
    hint: `dormer cache configure --help` lists what can be changed
    ");
    insta::assert_snapshot!(home.run(&["cache", "destroy", "team"]), @"
    exit code: 2
    --- stderr
    error: there is nobody to ask whether to destroy the cache
    hint: --no-confirm destroys it without asking
    ");
    insta::assert_snapshot!(home.run(&["cache", "destroy", "team", "--no-confirm"]), @"
    exit code: 0
    --- stderr
    destroyed the cache team on lab
    ");
    insta::assert_snapshot!(home.run(&["cache", "remove-path", "main", "1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5"]), @"
    exit code: 0
    --- stderr
    warning: 1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5 was not in main
    removed 0 of 1 path from main
    ");
}

#[test]
fn a_key_brought_along_is_the_one_that_signs() {
    let mut home = TestHome::new();
    home.serve();
    home.login();
    let secret = concat!(env!("CARGO_MANIFEST_DIR"), "/../nix/tests/data/signing-key.secret");
    let public =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../nix/tests/data/signing-key.public"))
            .unwrap();
    let created = home.run(&["cache", "create", "moved", "--keypair-file", secret]);
    assert!(created.starts_with("exit code: 0"), "{created}");
    assert!(home.run(&["cache", "info", "moved"]).contains(public.trim()));
}

#[test]
fn a_token_permits_what_it_says_and_no_more() {
    let mut home = TestHome::new();
    home.serve();
    home.login();
    home.run(&["cache", "create", "team"]);
    let created = home
        .command(&["token", "create", "--sub", "ci", "--validity", "1d", "--pull", "*", "--push", "main"])
        .output()
        .unwrap();
    assert!(created.status.success() && created.stderr.is_empty(), "{}", home.shown(&created));
    let token = String::from_utf8(created.stdout).unwrap();
    let with_token = |arguments: &[&str]| {
        home.shown(&home.command(arguments).env("DORMER_TOKEN_LAB", token.trim()).output().unwrap())
    };
    assert!(with_token(&["cache", "info", "team"]).starts_with("exit code: 0"));
    insta::assert_snapshot!(with_token(&["cache", "configure", "team", "--public"]), @"
    exit code: 4
    --- stderr
    error: configuring cache team: the token does not permit this: the token does not allow to configure-cache here (request ID)
    hint: ask for a token with this permission: dormer token create, on the server
    ");
    // A variable overrides the settings, even with nonsense.
    let nonsense = home.command(&["cache", "info", "team"]).env("DORMER_TOKEN", "nonsense").output().unwrap();
    assert_eq!(nonsense.status.code(), Some(4));
}

#[test]
fn use_and_unuse_leave_the_files_as_they_were() {
    let mut home = TestHome::new();
    home.serve();
    home.login();
    home.run(&["cache", "create", "team"]);
    let conf = home.path(".config/nix/nix.conf");
    let netrc = home.path(".config/nix/netrc");
    fs::create_dir_all(conf.parent().unwrap()).unwrap();
    let before = "# mine\nsubstituters = https://cache.nixos.org\nmax-jobs = 4";
    fs::write(&conf, before).unwrap();

    let dry = home.run(&["use", "team", "--dry-run"]);
    assert_eq!(fs::read_to_string(&conf).unwrap(), before);
    insta::assert_snapshot!(dry, @"
    exit code: 0
    --- stdout
    HOME/.config/nix/netrc:
    + # >>> dormer use lab
    + machine 127.0.0.1 login dormer password [redacted]
    + # <<< dormer use lab
    HOME/.config/nix/nix.conf:
    + # >>> dormer use lab:team
    + extra-substituters = http://127.0.0.1:PORT/team
    + extra-trusted-public-keys = team:KEY
    + netrc-file = HOME/.config/nix/netrc
    + # <<< dormer use lab:team
    --- stderr
    would let Nix use lab:team (http://127.0.0.1:PORT/team)
    ");
    home.run(&["use", "team"]);
    home.run(&["use", "main"]);
    let used = fs::read_to_string(&conf).unwrap();
    let token = fs::read_to_string(home.path(".local/share/dormer/admin-token")).unwrap();
    assert!(fs::read_to_string(&netrc).unwrap().contains(token.trim()));
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        assert_eq!(fs::metadata(&netrc).unwrap().permissions().mode() & 0o777, 0o600);
    }
    insta::assert_snapshot!(home.run(&["use", "main"]), @"
    exit code: 0
    --- stderr
    nothing to do: HOME/.config/nix/nix.conf uses lab:main already
    ");
    assert_eq!(fs::read_to_string(&conf).unwrap(), used);

    // `unuse` needs no server.
    assert_eq!(home.stop(), Some(0));
    insta::assert_snapshot!(home.run(&["unuse", "main"]), @"
    exit code: 0
    --- stdout
    HOME/.config/nix/nix.conf:
    - # >>> dormer use lab:main
    - extra-substituters = http://127.0.0.1:PORT/main
    - extra-trusted-public-keys = main:KEY
    - # <<< dormer use lab:main
    --- stderr
    Nix does not use lab:main any more
    ");
    assert!(netrc.exists(), "another cache of the server needs it");
    home.run(&["unuse", "team"]);
    assert_eq!(fs::read_to_string(&conf).unwrap(), before);
    assert!(!netrc.exists());
    insta::assert_snapshot!(home.run(&["unuse", "team"]), @"
    exit code: 0
    --- stderr
    nothing to do: HOME/.config/nix/nix.conf has nothing from `dormer use lab:team`
    ");
}

#[test]
fn a_password_that_somebody_else_wrote_is_left_alone() {
    let mut home = TestHome::new();
    home.serve();
    home.login();
    home.run(&["cache", "create", "team"]);
    let netrc = home.path("my-netrc");
    fs::write(&netrc, "machine 127.0.0.1 login me password mine\n").unwrap();
    let conf = home.path(".config/nix/nix.conf");
    fs::create_dir_all(conf.parent().unwrap()).unwrap();
    fs::write(&conf, format!("netrc-file = {}\n", netrc.display())).unwrap();
    let used = home.run(&["use", "team"]);
    assert!(used.contains("warning: HOME/my-netrc already has an entry for 127.0.0.1"), "{used}");
    assert_eq!(fs::read_to_string(&netrc).unwrap(), "machine 127.0.0.1 login me password mine\n");
    assert!(!used.contains("+ netrc-file"), "{used}");
}

/// An entry of ours from before goes to the front, so all lines change.
#[test]
fn no_change_of_a_netrc_file_shows_the_passwords_of_others() {
    let mut home = TestHome::new();
    home.serve();
    home.login();
    home.run(&["cache", "create", "team"]);
    let netrc = home.path(".config/nix/netrc");
    fs::create_dir_all(netrc.parent().unwrap()).unwrap();
    let theirs = "machine x login a\n  password MARKER\n\tmachine\ty\tpassword\tMARKER account MARKER\n\
                  machine z password\n  MARKER\ndefault login a password MARKER\n";
    let ours = "# >>> dormer use lab\nmachine 127.0.0.1 login dormer password MARKER\n# <<< dormer use lab\n";
    fs::write(&netrc, format!("{theirs}{ours}")).unwrap();
    for json in [None, Some("--json")] {
        let words: Vec<&str> = ["use", "team", "--dry-run"].into_iter().chain(json).collect();
        let said = home.run(&words);
        assert!(said.starts_with("exit code: 0"), "{said}");
        assert!(said.contains("default login a password [redacted]"), "{said}");
        assert!(!said.contains("MARKER"), "{said}");
    }
}

/// A store folder with one file, and a program that describes the file like `nix path-info`.
pub(crate) fn fake_store(home: &TestHome, contents: &str) -> String {
    let store = home.path("store");
    let path = store.join("f22352qy5d2vfxv22w7q3n7gz1ia47nx-hello");
    fs::create_dir_all(&store).unwrap();
    fs::write(&path, contents).unwrap();
    let nar = dormer_nix::nar::encode_tree(&dormer_nix::nar::Node::File {
        executable: false,
        contents: contents.as_bytes().to_vec(),
    });
    let mut hasher = dormer_nix::NarHasher::new();
    hasher.update(&nar);
    let (hash, size) = hasher.finish();
    let info = serde_json::json!([{
        "path": path.display().to_string(), "narHash": hash.to_string(), "narSize": size, "references": [], "valid": true,
    }]);
    let nix = home.path("bin/nix");
    fs::create_dir_all(nix.parent().unwrap()).unwrap();
    fs::write(&nix, format!("#!/bin/sh\ncat <<'END'\n{info}\nEND\n")).unwrap();
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        fs::set_permissions(&nix, fs::Permissions::from_mode(0o755)).unwrap();
    }
    path.display().to_string()
}

fn push(home: &TestHome, arguments: &[&str]) -> String {
    let path = format!("{}:/usr/bin:/bin", home.path("bin").display());
    let mut command = home.command(&["push", "local"]);
    command.args(arguments).env("PATH", path).env("NIX_STORE_DIR", home.path("store"));
    // Times differ: the last item of the last line, and a field of the summary. So do the bytes
    // that are sent, because they hold the home's name.
    let shown = home.shown(&command.output().unwrap());
    let timeless = |line: &str| match (line.starts_with("pushed "), line.split_once("\"seconds\":")) {
        (true, _) => {
            let (line, _time) = line.rsplit_once(", ").unwrap();
            let (read, rest) = line.split_once(" read, ").unwrap();
            format!("{read} read, N sent{}, N s", rest.split_once(" sent").unwrap().1)
        }
        (false, Some((before, after))) => {
            format!("{before}\"seconds\":N,{}", after.split_once(',').unwrap().1)
        }
        (false, None) => line.to_owned(),
    };
    shown.lines().map(timeless).collect::<Vec<_>>().join("\n")
}

#[test]
fn a_push_ends_with_a_line_that_stands_alone() {
    let mut home = TestHome::new();
    home.serve();
    home.login();
    let hello = fake_store(&home, "hello, world\n");
    let store = home.path("store").display().to_string();
    assert!(home.run(&["cache", "create", "local", "--store-dir", &store]).starts_with("exit code: 0"));
    std::os::unix::fs::symlink(&hello, home.path("result")).unwrap();

    insta::assert_snapshot!(push(&home, &["./result", "--dry-run"]), @"
    exit code: 0
    --- stdout
    HOME/store/f22352qy5d2vfxv22w7q3n7gz1ia47nx-hello
    --- stderr
    would push 1 of 1 path, 128 B
    ");
    insta::assert_snapshot!(push(&home, &["./result"]), @"
    exit code: 0
    --- stderr
    pushed 1 of 1 path, 128 B read, N sent, 0 B deduplicated, N s
    ");
    insta::assert_snapshot!(push(&home, &["./result", "-v"]), @"
    exit code: 0
    --- stderr
    asking lab which paths local lacks
    already there: HOME/store/f22352qy5d2vfxv22w7q3n7gz1ia47nx-hello
    pushed 0 of 1 path (1 already there), 0 B read, N sent, 0 B deduplicated, N s
    ");
    insta::assert_snapshot!(push(&home, &["./result", "--json", "-q"]), @r#"
    exit code: 0
    --- stdout
    {"cache":"local","excluded":0,"incomplete":0,"invalid":0,"message_type":"plan","missing":0,"missing_bytes":0,"paths":1,"present":1,"upstream":0}
    {"cache":"local","message_type":"path","path":"HOME/store/f22352qy5d2vfxv22w7q3n7gz1ia47nx-hello","state":"present"}
    {"api":null,"bytes_read":0,"bytes_saved":0,"bytes_sent":0,"cache":"local","excluded":0,"failed":0,"incomplete":0,"kept":0,"message_type":"summary","not_tried":0,"paths":1,"present":1,"pushed":0,"seconds":N,"upstream":0}
    "#);
    insta::assert_snapshot!(home.run(&["cache", "remove-path", "local", "f22352qy5d2vfxv22w7q3n7gz1ia47nx-hello"]), @"
    exit code: 0
    --- stderr
    removed 1 of 1 path from local
    ");
}

#[test]
fn a_lost_path_is_named_and_counted() {
    let mut home = TestHome::new();
    home.serve();
    home.login();
    let hello = fake_store(&home, "hello, world\n");
    let store = home.path("store").display().to_string();
    home.run(&["cache", "create", "local", "--store-dir", &store]);
    // Makes the file on the disk differ from what Nix says.
    fs::write(&hello, "jello, world\n").unwrap();
    let lost = push(&home, &[&hello]);
    assert!(lost.starts_with("exit code: 3"), "{lost}");
    assert!(lost.contains("error: HOME/store/f22352qy5d2vfxv22w7q3n7gz1ia47nx-hello: "), "{lost}");
    assert!(lost.contains("pushed 0 of 1 path (1 lost)"), "{lost}");
    assert!(lost.contains("error: 1 path of 1 path could not be pushed"), "{lost}");
}

#[test]
fn a_reader_that_goes_away_is_a_success() {
    let home = TestHome::new();
    let mut shown =
        home.command(&["config", "reference"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(shown.stdout.take());
    let output = shown.wait_with_output().unwrap();
    assert_eq!((output.status.code(), String::from_utf8_lossy(&output.stderr).as_ref()), (Some(0), ""));
}

/// Attic takes a secret of any length, so a server that moves here may have a short one.
#[test]
fn a_server_with_a_short_token_secret_does_not_start_and_says_how_to_make_a_long_one() {
    for variable in ["ATTIC_SERVER_TOKEN_HS256_SECRET_BASE64", "DORMER_JWT_SIGNING_TOKEN_HS256_SECRET_BASE64"]
    {
        // "x", and 31 bytes.
        for (secret, bytes) in
            [("eA==", "1 bytes"), ("eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eHh4eA==", "31 bytes")]
        {
            let home = TestHome::new();
            let mut command = home.command(&["serve", "--data-dir", "data", "--listen", "127.0.0.1:0"]);
            let shown = home.shown(&command.env(variable, secret).output().unwrap());
            assert!(shown.contains("exit code: 1"), "{shown}");
            assert!(
                shown.contains(&format!("the HS256 secret has {bytes}; it needs at least 32")),
                "{shown}"
            );
            assert!(shown.contains("hint: make one: openssl rand -base64 64"), "{shown}");
            assert!(!shown.contains("listening"), "{shown}");
        }
    }
}

#[test]
fn settings_are_shown_with_their_origin() {
    let home = TestHome::new();
    let mut command = home.command(&["config", "show", "--data-dir", "/srv/dormer"]);
    command
        .env("DORMER_CHUNKS_ZSTD_LEVEL", "9")
        .env("ATTIC_SERVER_TOKEN_HS256_SECRET_BASE64", "aHVudGVyMg==");
    let shown = home.shown(&command.output().unwrap());
    for line in [
        "data-dir = \"/srv/dormer\"  # flag --data-dir",
        "zstd-level = 9  # env DORMER_CHUNKS_ZSTD_LEVEL",
        "token-hs256-secret-base64 = \"[redacted]\"  # env ATTIC_SERVER_TOKEN_HS256_SECRET_BASE64",
    ] {
        let (setting, origin) = line.split_once("  # ").unwrap();
        let found = shown.lines().any(|line| line.starts_with(setting) && line.ends_with(origin));
        assert!(found, "{line} is not in\n{shown}");
    }
    assert!(!shown.contains("aHVudGVy"));
}

/// All files below a folder of the workspace.
fn files_below(folder: &Path) -> Vec<std::path::PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files_below(&path)) } else { found.push(path) }
    }
    found
}

/// The message types that a source names.
fn message_types(source: &str) -> impl Iterator<Item = &str> {
    source.split("\"message_type\"").skip(1).filter_map(|piece| {
        let value = piece.trim_start_matches([':', ',', ' ', ')']).strip_prefix('"')?;
        value.split('"').next()
    })
}

#[test]
fn the_pages_of_the_reference_are_there() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs");
    let page = fs::read_to_string(docs.join("SETTINGS.md")).unwrap();
    let home = TestHome::new();
    let printed = home.command(&["config", "reference"]).output().unwrap();
    assert_eq!(String::from_utf8(printed.stdout).unwrap().trim_end(), page.trim_end());
    // docs/CLI.md describes every message type that the program prints.
    let contract = fs::read_to_string(docs.join("CLI.md")).unwrap();
    let sources = files_below(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    let texts: Vec<String> = sources.iter().filter_map(|source| fs::read_to_string(source).ok()).collect();
    let types: BTreeSet<&str> = texts.iter().flat_map(|text| message_types(text)).collect();
    assert!(types.len() >= 20, "{types:?}");
    let absent: Vec<_> = types.iter().filter(|name| !contract.contains(&format!("`{name}`"))).collect();
    assert!(absent.is_empty(), "docs/CLI.md lacks {absent:?}");
}

/// A server that gives the same answer to every request.
fn hostile_server(status: u16, body: String) -> String {
    use std::io::{Read as _, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { break };
            let mut head = [0; 8192];
            let _ = stream.read(&mut head);
            let _ = write!(
                stream,
                "HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                body.len()
            );
        }
    });
    address
}

#[test]
fn nothing_that_a_server_says_reaches_the_terminal_as_a_command() {
    // Clears the screen, in both encodings; turns the direction of text; ends a line; has no shape.
    const EVIL: &str = r"\u001b[2J\u009b2J\u202e\u2066\u2028\u007f\u200b\udb40\udc41\nerror: forged";
    let config = format!(
        r#"{{"substituter_endpoint":"{EVIL}","api_endpoint":"{EVIL}","is_public":true,"public_key":"{EVIL}",
            "upstream_cache_key_names":["{EVIL}"],"priority":40}}"#
    );
    let list = format!(
        r#"{{"caches":[{{"name":"main","is_public":true,"priority":40,"store_dir":"/nix/store","public_keys":["{EVIL}"],
            "upstream_cache_key_names":["{EVIL}"]}}]}}"#
    );
    let raw_evil: String = serde_json::from_str(&format!("\"{EVIL}\"")).unwrap();
    let answers = [
        (200, config),
        (200, list),
        (200, format!(r#"{{"is_public":"{EVIL}"}}"#)),
        (200, format!(r#"{{"retention_period":{{"{EVIL}":1}}}}"#)),
        (200, raw_evil.clone()),
        (400, format!(r#"{{"code":400,"error":"{EVIL}","message":"{EVIL}"}}"#)),
        (400, format!(r#"{{"code":400,"error":"{EVIL}","message":""}}"#)),
        (401, format!(r#"{{"code":401,"error":"Unauthorized","message":"{EVIL}"}}"#)),
        (403, raw_evil),
    ];
    for (status, body) in answers {
        let address = hostile_server(status, body.clone());
        let home = TestHome::new();
        fs::create_dir_all(home.path(".config/dormer")).unwrap();
        let settings = format!("default-server = \"lab\"\n[servers.lab]\nendpoint = \"{address}\"\n");
        fs::write(home.path(".config/dormer/config.toml"), settings).unwrap();
        let hello = fake_store(&home, "hello, world\n");
        let tries: Vec<_> =
            leaf_commands().into_iter().filter_map(|name| hostile_try(name, &address, &hello)).collect();
        assert!(tries.len() >= 18, "{tries:?}");
        let (home, body) = (&home, body.as_str());
        std::thread::scope(|scope| {
            let of_queue = || queue_obeys_nothing(home, &hello, body, (status == 400).then_some("forged"));
            scope.spawn(of_queue);
            for some in tries.chunks(tries.len().div_ceil(4)) {
                scope.spawn(move || some.iter().for_each(|words| obeys_nothing(home, words, body)));
            }
        });
    }
}

/// The commands without others below them, from the page that a test compares with the code.
pub(crate) fn leaf_commands() -> Vec<&'static str> {
    let page = include_str!("../../../../docs/COMMANDS.md");
    let commands = page.split("\n## dormer ").skip(1).filter_map(|part| {
        let (name, rest) = part.split_once('\n')?;
        let usage = rest.lines().find(|line| line.starts_with("Usage: "))?;
        let is_group = usage == format!("Usage: dormer {name} <COMMAND>")
            || usage == format!("Usage: dormer {name} [OPTIONS] <COMMAND>");
        (!is_group).then_some(name)
    });
    commands.collect()
}

/// How a command is tried against a hostile server. A new command has to be told about here.
pub(crate) fn hostile_try(name: &str, address: &str, hello: &str) -> Option<Vec<String>> {
    const PATH: &str = "/nix/store/3n58xw4373jp0ljirf06d8077j15pc4j-hello-2.12";
    let more: &[&str] = match name {
        "login" => &["other", address],
        "use" => &["main", "--dry-run"],
        "cache create" | "cache info" | "cache ls" | "stats" | "pin list" => &["main"],
        "cache configure" => &["main", "--public"],
        "cache list" => &[],
        "cache destroy" => &["main", "--no-confirm"],
        "push" => &["main", hello],
        "cache show" | "cache remove-path" => &["main", PATH],
        "cat" => &["main", "3n58xw4373jp0ljirf06d8077j15pc4j/bin/hello"],
        "pin add" => &["main", "p", PATH],
        "pin remove" => &["main", "p"],
        "import" => &["--from", address, "main", PATH],
        "top" => &["--count", "1"],
        "doctor" => &["--client"],
        // See `queue_obeys_nothing`; then those that ask no server; then those that are parts of
        // the server, and believe their own database and store.
        name if QUEUE_COMMANDS.contains(&name) => return None,
        "hook" | "install-hook" | "unuse" | "token create" | "config show" | "config reference"
        | "secrets init" | "completions" | "man" | "serve" | "publish" | "publish status" | "export"
        | "edge serve" | "jobs" | "gc" | "backup" | "restore" | "recover" | "adopt" | "scrub" | "rekey"
        | "check" | "migrate" => return None,
        other => panic!("`dormer {other}` is new: does it show what a server says?"),
    };
    Some(name.split(' ').chain(more.iter().copied()).map(str::to_owned).collect())
}

/// Commands that push from the queue, or show why a push failed.
const QUEUE_COMMANDS: [&str; 7] =
    ["exec", "watch", "queue drain", "queue list", "queue retry", "queue drop", "queue wait-for"];

/// Runs the commands of the queue, one after the other, with an entry in it. A push of the entry
/// shows these words of the server.
fn queue_obeys_nothing(home: &TestHome, hello: &str, body: &str, words_of_server: Option<&str>) {
    use std::os::unix::fs::PermissionsExt as _;
    // The closure of the path is the path.
    let nix_store = home.path("bin/nix-store");
    fs::write(&nix_store, format!("#!/bin/sh\necho {hello}\n")).unwrap();
    fs::set_permissions(&nix_store, fs::Permissions::from_mode(0o755)).unwrap();
    let run =
        |words: &[&str]| of_home(&mut home.command(words), home).env("OUT_PATHS", hello).output().unwrap();
    assert!(run(&["hook", "main"]).status.success());
    let drained = home.shown(&run(&["queue", "drain"]));
    let says = words_of_server.is_none_or(|words| drained.contains(words));
    assert!(!drained.starts_with("exit code: 0") && says, "{body}: {drained}");
    let listed = home.shown(&run(&["queue", "list"]));
    assert!(listed.contains("hello"), "{body}: {listed}");
    for name in QUEUE_COMMANDS {
        let more: &[&str] = match name {
            "exec" => &["main", "--by", "store", "--", "true"],
            // It goes on until a signal comes.
            "watch" => continue,
            "queue retry" | "queue drop" => &["--all"],
            "queue wait-for" => &["--cache", "main", "--timeout", "1s", hello],
            _ => &[],
        };
        let words: Vec<_> = name.split(' ').chain(more.iter().copied()).map(str::to_owned).collect();
        obeys_nothing(home, &words, body);
    }
    // A process that goes on for ever drains the queue by the same code: one look is enough.
    if words_of_server.is_some() {
        assert!(run(&["hook", "main"]).status.success());
        let mut watch = std::process::Command::new("timeout");
        watch.args(["--signal=INT", "1", env!("CARGO_BIN_EXE_dormer"), "watch", "main"]).env_clear();
        let output = of_home(&mut watch, home).output().unwrap();
        assert!(String::from_utf8_lossy(&output.stderr).contains("forged"), "{output:?}");
        shows_nothing_to_obey(&output, "watch", body);
    }
}

/// A command in this home, with the fake store.
fn of_home<'c>(command: &'c mut std::process::Command, home: &TestHome) -> &'c mut std::process::Command {
    let path = format!("{}:/usr/bin:/bin", home.path("bin").display());
    command.env("HOME", home.folder.path()).env("PATH", path).env("NIX_STORE_DIR", home.path("store"));
    command.env("NO_COLOR", "1").env("DORMER_QUEUE_DIR", home.path("queue"));
    command.envs(["DORMER_TOKEN", "DORMER_TOKEN_LAB", "DORMER_SOURCE_TOKEN"].map(|name| (name, "MARKER")))
}

/// Runs a command, as text and as JSON. `cat` is run on a terminal: a file or a pipe gets the
/// bytes.
fn obeys_nothing(home: &TestHome, words: &[String], body: &str) {
    for json in [None, Some("--json")] {
        let all: Vec<&str> = words.iter().map(String::as_str).chain(json).collect();
        let output = if all[0] == "cat" {
            let mut terminal = std::process::Command::new("script");
            let line = format!("{} {}", env!("CARGO_BIN_EXE_dormer"), all.join(" "));
            terminal.args(["--quiet", "--command", &line, "/dev/null"]).env_clear();
            of_home(&mut terminal, home).stdin(std::process::Stdio::null()).output().unwrap()
        } else {
            of_home(&mut home.command(&all), home).output().unwrap()
        };
        shows_nothing_to_obey(&output, &all.join(" "), body);
    }
}

fn shows_nothing_to_obey(output: &std::process::Output, command: &str, body: &str) {
    for bytes in [&output.stdout, &output.stderr] {
        // A terminal ends each line with both.
        let text = String::from_utf8(bytes.clone()).unwrap().replace("\r\n", "\n");
        let obeyed = text.chars().find(|c| dormer_pages::is_hidden(*c) && *c != '\n');
        assert_eq!(obeyed, None, "{command} with {body}:\n{text}");
        let forged =
            !command.starts_with("cat ") && text.lines().any(|line| line.starts_with("error: forged"));
        assert!(!forged, "{command} with {body}:\n{text}");
        assert!(!text.contains("MARKER"), "{command} shows a token:\n{text}");
    }
}

#[test]
fn nothing_that_a_client_says_reaches_the_terminal_of_the_server() {
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    use std::process::{Command, Stdio};
    for format in ["text", "json"] {
        let home = TestHome::new();
        let mut command = home.command(&["serve", "--listen", "127.0.0.1:0"]);
        command
            .env("DORMER_METRICS_LISTEN", "off")
            .env("DORMER_LOG_FORMAT", format)
            .env("RUST_LOG", "info,dormer_server=debug");
        let mut server = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut log = BufReader::new(server.stderr.take().unwrap());
        let address = loop {
            let mut line = String::new();
            assert!(log.read_line(&mut line).unwrap() > 0, "the server ended");
            if let Some((_, rest)) = line.split_once("listening on http://") {
                let is_of_address = |c: &char| c.is_ascii_digit() || ".:".contains(*c);
                break rest.chars().take_while(is_of_address).collect::<String>();
            }
        };
        // A path of UTF-8, which our HTTP library lets through.
        let mut client = std::net::TcpStream::connect(address).unwrap();
        let head = "GET /main/nar/\u{202e}gpj\u{2028}\u{200b}\u{e0041}\u{9b}31m HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
        client.write_all(head.as_bytes()).unwrap();
        client.read_to_string(&mut String::new()).unwrap();
        Command::new("kill").arg(server.id().to_string()).status().unwrap();
        let mut said = String::new();
        log.read_to_string(&mut said).unwrap();
        server.wait().unwrap();
        assert!(said.contains("202e"), "{format}: the request is logged: {said}");
        let obeyed = said.chars().find(|c| dormer_pages::is_hidden(*c) && *c != '\n');
        assert_eq!(obeyed, None, "{format}: {said}");
    }
}

/// Whether a line runs a client with a token as an argument: other users of the machine see the
/// words of a command. A variable in front of the command does not count.
fn puts_a_token_on_a_command_line(line: &str) -> bool {
    let behind =
        ["dormer ", "attic login "].iter().filter_map(|name| line.split_once(name)).map(|(_, rest)| rest);
    behind.flat_map(str::split_whitespace).take_while(|word| !matches!(*word, "|" | "#" | "&&" | ";")).any(
        |word| {
            let word = word.trim_start_matches(['"', '\'', '`']);
            word.starts_with("eyJ")
                || word.starts_with("$TOKEN")
                || word.starts_with("${TOKEN")
                || word == "TOKEN"
        },
    )
}

#[test]
fn no_hint_puts_a_token_on_a_command_line() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folders = ["crates/cli/src", "crates/pages/src", "docs", "deploy", "nix", "examples"];
    let mut files: Vec<_> = folders.iter().flat_map(|folder| files_below(&root.join(folder))).collect();
    files.extend(["README.md", "CHANGELOG.md"].map(|file| root.join(file)));
    assert!(files.len() > 150, "{}", files.len());
    for path in files {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        for (number, line) in text.lines().enumerate() {
            assert!(!puts_a_token_on_a_command_line(line), "{}:{}: {line}", path.display(), number + 1);
        }
    }
    for line in [
        "$ dormer login lab https://h eyJ…",
        "attic login lab https://h \"$TOKEN\"",
        "dormer login l u TOKEN",
    ] {
        assert!(puts_a_token_on_a_command_line(line), "{line}");
    }
}

/// The answer of a server about its cache `main`, which is public.
fn cache_config(address: &str, key: &str) -> String {
    serde_json::json!({ "substituter_endpoint": address, "public_key": key, "is_public": true }).to_string()
}

#[test]
fn use_writes_no_address_that_is_more_than_an_address_of_this_server() {
    let key = format!("main:{}=", "A".repeat(43));
    let home = TestHome::new();
    fs::create_dir_all(home.path(".config/dormer")).unwrap();
    let use_main = |body: String, more: &[&str]| {
        let address = hostile_server(200, body);
        let settings = format!("default-server = \"lab\"\n[servers.lab]\nendpoint = \"{address}\"\n");
        fs::write(home.path(".config/dormer/config.toml"), settings).unwrap();
        let arguments: Vec<&str> = ["use", "main"].iter().chain(more).copied().collect();
        home.run(&arguments)
    };
    for address in [
        "http://127.0.0.1:9/x?trusted=1",
        "http://127.0.0.1:9/x#y",
        "http://ada:MARKER@127.0.0.1:9/x",
        "file:///tmp/x",
        "ssh://h",
        "http://127.0.0.1:9/x y",
        "http://127.0.0.1:9/x\nsubstituters = http://evil",
        "http://example.org/main",
        // Nobody listens there.
        "http://127.0.0.1:9/main",
    ] {
        let said = use_main(cache_config(address, &key), &[]);
        assert!(said.starts_with("exit code: 1") && said.contains("api-endpoint"), "{address}: {said}");
        assert!(!said.contains("MARKER"), "{said}");
        assert!(!home.path(".config/nix/nix.conf").exists(), "{address}");
    }
    let said = use_main(cache_config("http://example.org/main", &key), &[]);
    assert!(said.contains("--allow-other-host"), "{said}");
    // The flag allows another host, and nothing else.
    let said = use_main(cache_config("http://localhost:9/x?trusted=1", &key), &["--allow-other-host"]);
    assert!(said.starts_with("exit code: 1"), "{said}");
    // Another host that is a cache: `localhost` is another name than 127.0.0.1.
    let other = hostile_server(200, "StoreDir: /nix/store\n".to_owned()).replace("127.0.0.1", "localhost");
    for bad in ["a#b", "a b", "a\nx"] {
        let said = use_main(cache_config(&other, &key.replace("main", bad)), &["--allow-other-host"]);
        assert!(said.starts_with("exit code: 1"), "{bad}: {said}");
    }
    assert!(!home.path(".config/nix/nix.conf").exists());
    let said = use_main(cache_config(&other, &key), &["--allow-other-host"]);
    assert!(said.starts_with("exit code: 0"), "{said}");
    let conf = fs::read_to_string(home.path(".config/nix/nix.conf")).unwrap();
    assert!(conf.contains(&format!("extra-substituters = {other}\n")), "{conf}");
}

/// Every command whose files are for its user alone, as the code says.
fn private_commands() -> Vec<&'static str> {
    let source = include_str!("../../src/commands/mod.rs");
    let (_, rest) = source.split_once("fn makes_private_files").unwrap();
    let (arm, _) = rest.split_once("=> true").unwrap();
    arm.split("Self::").skip(1).map(|name| name.split('(').next().unwrap()).collect()
}

#[test]
fn files_of_a_server_are_private_also_in_a_folder_that_others_may_read() {
    use std::os::unix::fs::PermissionsExt as _;
    fn check(folder: &Path, command: &str, seen: &mut usize) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let metadata = fs::symlink_metadata(&path).unwrap();
            let mode = metadata.permissions().mode() & 0o777;
            assert_eq!(mode & 0o077, 0, "{command}: {}: {mode:o}", path.display());
            *seen += 1;
            if metadata.is_dir() {
                check(&path, command, seen);
            }
        }
    }
    let mut home = TestHome::new();
    let data = home.path(".local/share/dormer");
    fs::create_dir_all(&data).unwrap();
    fs::set_permissions(&data, fs::Permissions::from_mode(0o755)).unwrap();
    home.serve();
    home.login();
    home.run(&["cache", "create", "team"]);
    let mut seen = 0;
    check(&data, "serve", &mut seen);
    assert!(seen >= 5, "{seen}");
    home.stop();

    let copy = data.join("copy.sqlite").display().to_string();
    let new_key = home.path("new-key");
    let set_aside = |number: u8| {
        for file in ["index.sqlite", "index.sqlite-wal", "index.sqlite-shm"] {
            let _ = fs::rename(data.join(file), home.path(&format!("{number}-{file}")));
        }
    };
    fs::write(&new_key, "AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcYGRobHB0eHyA=\n").unwrap();
    fs::set_permissions(&new_key, fs::Permissions::from_mode(0o600)).unwrap();
    for name in private_commands() {
        let arguments: &[&str] = match name {
            // It ran above.
            "Serve" => continue,
            "Edge" => {
                fs::create_dir_all(home.path("published")).unwrap();
                let cache = data.join("edge").display().to_string();
                let serve =
                    ["edge", "serve", "--dir", "published", "--listen", "127.0.0.1:0", "--cache-dir", &cache];
                let mut edge = home.command(&serve);
                edge.env("DORMER_METRICS_LISTEN", "off");
                let mut edge = edge.stderr(Stdio::piped()).spawn().unwrap();
                let mut said = std::io::BufReader::new(edge.stderr.take().unwrap());
                let mut line = String::new();
                while !line.contains("listening on ") {
                    line.clear();
                    assert!(std::io::BufRead::read_line(&mut said, &mut line).unwrap() > 0, "it ended");
                }
                edge.kill().unwrap();
                edge.wait().unwrap();
                &[]
            }
            "Jobs" => &["jobs"],
            "Gc" => &["gc"],
            "Backup" => &["backup", &copy],
            "Restore" => {
                set_aside(1);
                &["restore", &copy]
            }
            "Recover" => {
                set_aside(2);
                &["recover", "--from-store"]
            }
            "Adopt" => &["adopt", "--no-confirm"],
            "Scrub" => &["scrub"],
            "Rekey" => &["rekey"],
            "Migrate" => &["migrate"],
            other => panic!("`{other}` is new: how does it make a file?"),
        };
        if !arguments.is_empty() {
            let mut command = home.command(arguments);
            if name == "Rekey" {
                command.env("DORMER_MASTER_KEY_FILE", &new_key);
                command.env("DORMER_PREVIOUS_MASTER_KEY_FILE", data.join("master-key"));
            }
            let said = home.shown(&command.output().unwrap());
            assert!(said.starts_with("exit code: 0"), "{name}: {said}");
        }
        check(&data, name, &mut seen);
    }
}

#[test]
fn a_token_goes_into_no_netrc_that_everybody_can_read() {
    use std::os::unix::fs::PermissionsExt as _;
    let mut home = TestHome::new();
    home.serve();
    home.login();
    home.run(&["cache", "create", "team"]);
    let netrc = home.path(".config/nix/netrc");
    fs::create_dir_all(netrc.parent().unwrap()).unwrap();
    fs::write(&netrc, "machine other.example login a password b\n").unwrap();
    fs::set_permissions(&netrc, fs::Permissions::from_mode(0o644)).unwrap();
    let said = home.run(&["use", "team"]);
    assert!(said.starts_with("exit code: 2") && said.contains("chmod o-rwx"), "{said}");
    assert!(!fs::read_to_string(&netrc).unwrap().contains("127.0.0.1"));
    assert!(!home.path(".config/nix/nix.conf").exists());
    fs::set_permissions(&netrc, fs::Permissions::from_mode(0o640)).unwrap();
    let said = home.run(&["use", "team"]);
    assert!(said.starts_with("exit code: 0") && said.contains("chmod g-r"), "{said}");
    fs::set_permissions(&netrc, fs::Permissions::from_mode(0o600)).unwrap();
    home.run(&["unuse", "team"]);
    let said = home.run(&["use", "team"]);
    assert!(said.starts_with("exit code: 0") && !said.contains("chmod"), "{said}");
    // Not the address of this machine by name, and nobody answers there.
    let key = format!("team:{}=", "A".repeat(43));
    fs::write(home.path("token"), "a.b.c").unwrap();
    let edge = ["use", "team", "--edge", "http://0.0.0.0:9", "--public-key", &key, "--token-file", "token"];
    let said = home.run(&edge.into_iter().chain(["--dry-run"]).collect::<Vec<_>>());
    assert!(said.contains("the token will travel unencrypted"), "{said}");
}

#[test]
fn a_token_that_is_too_long_for_netrc_files_is_pointed_out() {
    let mut home = TestHome::new();
    home.serve();
    let create = |patterns: usize| {
        let names: Vec<String> = (0..patterns).map(|number| format!("{number:0>45}")).collect();
        let mut arguments = vec!["token", "create", "--sub", "ada", "--validity", "1d"];
        arguments.extend(names.iter().flat_map(|name| ["--pull", name.as_str()]));
        home.run(&arguments)
    };
    let said = create(80);
    assert!(said.starts_with("exit code: 0") && said.contains("4,000 bytes"), "{said}");
    assert!(!create(10).contains("4,000 bytes"));
}
