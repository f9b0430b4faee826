//! From a build to a reader far away: nix builds, `dormer push`, `dormer publish` to a bucket; that
//! bucket's objects in the real Worker in workerd, and the bucket itself behind
//! `dormer edge serve`; `dormer use --edge`; nix substitutes. Then the lab changes.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

use std::collections::BTreeMap;
use std::fs;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dormer_testkit::services::SeaweedFs;
use dormer_tests::edge::{Host, Published, Workerd, WorkerdOptions};
use dormer_tests::{Lab, LabOptions, Machine, Nix, binary, http};
use jsonwebtoken::{EncodingKey, Header, encode};
use serde_json::json;

/// The edge's own secret: nothing signed with it counts in the lab.
const SECRET: [u8; 32] = [9; 32];

/// Far longer than a miss is remembered.
const PATIENCE: Duration = Duration::from_mins(1);

struct Story {
    lab: Lab,
    s3: SeaweedFs,
    bucket: String,
    worker: Workerd,
    host: Host,
    /// What the Worker's bucket holds.
    copied: BTreeMap<String, Vec<u8>>,
}

impl Story {
    fn start() -> Self {
        let s3 = SeaweedFs::start();
        let bucket = s3.new_bucket();
        let access = s3.access().clone();
        let settings = format!(
            "[[edge]]\nname = \"edge\"\ntype = \"s3\"\nbucket = {bucket:?}\nprefix = \"caches\"\nregion = {:?}\n\
             endpoint = {:?}\ncaches = [\"main\", \"secret\"]\nsettle-time = \"0s\"\n\
             [edge.credentials]\naccess_key_id = {:?}\nsecret_access_key = {:?}\n",
            access.region, access.endpoint, access.access_key_id, access.secret_access_key
        );
        let lab = Lab::start_with(LabOptions { settings: Some(settings), ..LabOptions::default() });
        let variables = vec![
            ("TOKEN_HS256_SECRET_BASE64".to_owned(), STANDARD.encode(SECRET)),
            ("BUCKET_PREFIX".to_owned(), "caches".to_owned()),
        ];
        let worker =
            Workerd::start(&Published::new(), &WorkerdOptions { variables, ..WorkerdOptions::default() });
        let host = serve(&s3, &bucket);
        Self { lab, s3, bucket, worker, host, copied: BTreeMap::new() }
    }

    /// Publishes, and copies what changed in the bucket to the Worker's, object by object.
    fn publish(&mut self) {
        self.lab.server_command(&["publish", "edge"]).succeeds();
        let objects: BTreeMap<String, Vec<u8>> = self
            .s3
            .access()
            .objects(&self.bucket)
            .into_iter()
            .map(|(name, bytes)| (name, bytes.to_vec()))
            .collect();
        let file = self.lab.folder().join("object");
        for (name, bytes) in &objects {
            if self.copied.get(name) != Some(bytes) {
                fs::write(&file, bytes).unwrap();
                self.worker.put(name, &file);
            }
        }
        for name in self.copied.keys().filter(|name| !objects.contains_key(*name)) {
            self.worker.delete(name);
        }
        self.copied = objects;
    }

    fn edges(&self) -> [&str; 2] {
        [self.worker.address(), self.host.address()]
    }
}

/// `dormer edge serve` on the bucket.
fn serve(s3: &SeaweedFs, bucket: &str) -> Host {
    let access = s3.access();
    let mut command = Command::new(binary());
    command
        .args(["edge", "serve", "--bucket", &format!("s3://{bucket}/caches")])
        .env("DORMER_EDGE_TOKEN_HS256_SECRET_BASE64", STANDARD.encode(SECRET))
        .env("AWS_ACCESS_KEY_ID", &access.access_key_id)
        .env("AWS_SECRET_ACCESS_KEY", &access.secret_access_key)
        .env("AWS_REGION", &access.region)
        .env("AWS_ENDPOINT", &access.endpoint);
    Host::start(&mut command)
}

fn narinfo_of(path: &str) -> String {
    format!("/main/{}.narinfo", &path["/nix/store/".len()..][..32])
}

fn status(address: &str, path: &str) -> u16 {
    http::ask(address, "GET", path, &[], b"").status
}

fn eventually(what: &str, holds: impl Fn() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < PATIENCE, "{what} did not come about");
        thread::sleep(Duration::from_millis(200));
    }
}

/// What a build would do: nothing but nix.conf says where to look.
fn realise(machine: &Machine, path: &str) -> dormer_tests::Run {
    machine.forget_caches();
    machine.run("nix-store", &["--realise", path])
}

#[test]
fn what_is_built_in_the_lab_is_read_at_the_edge_and_so_is_every_change() {
    let mut story = Story::start();
    story.lab.create_cache("secret", &[]);
    let builder = story.lab.machine("builder", Nix::NEWEST);
    builder.login(&story.lab);
    let root = builder.build("all", &[("salt", "story")]);
    builder.dormer(&["push", "main", &root]).succeeds();
    let hidden = builder.build("library", &[("salt", "hidden-story")]);
    builder.dormer(&["push", "secret", &hidden]).succeeds();
    story.publish();

    let claims = json!({
        "exp": 4_000_000_000_i64, "https://jwt.attic.rs/v1": { "caches": { "secret": { "r": 1 } } },
    });
    let token = encode(&Header::default(), &claims, &EncodingKey::from_secret(&SECRET)).unwrap();
    let token_file = story.lab.folder().join("edge-token");
    fs::write(&token_file, format!("{token}\n")).unwrap();
    let token_file = token_file.to_str().unwrap();
    let secret_key = story.lab.public_key("secret");
    for (number, nix) in Nix::ALL.into_iter().enumerate() {
        for (place, address) in ["worker", "serve"].into_iter().zip(story.edges()) {
            let edge = format!("http://{address}");
            let machine = story.lab.machine(&format!("{place}-{}", nix.name()), nix);
            realise(&machine, &root).fails();
            if number == 0 {
                // A machine that never heard of the lab, and a machine with an account there.
                let used = machine.dormer(&[
                    "use",
                    "main",
                    "--edge",
                    &edge,
                    "--public-key",
                    &story.lab.public_key("main"),
                ]);
                assert!(used.succeeds().contains(&format!("+ extra-substituters = {edge}/main")), "{used}");
            } else {
                machine.login(&story.lab);
                machine.dormer(&["use", "main", "--edge", &edge]).succeeds();
            }
            realise(&machine, &root).succeeds();
            machine.verify_all();

            let private = ["use", "secret", "--edge", &edge, "--public-key", &secret_key];
            let without = machine.dormer(&private);
            assert!(without.stderr().contains("may this token read it?"), "{without}");
            realise(&machine, &hidden).fails();
            machine.dormer(&[&private[..], &["--token-file", token_file]].concat()).succeeds();
            realise(&machine, &hidden).succeeds();
            machine.verify_all();
            // Taken back, it leaves nothing, the token's entry included.
            machine.dormer(&["unuse", "main"]).succeeds();
            machine.dormer(&["unuse", "secret"]).succeeds();
            for name in ["nix.conf", "netrc"] {
                assert!(!machine.home().join(".config/nix").join(name).exists(), "{name} is left");
            }
        }
    }

    // Asked for too early, then published.
    let late = builder.build("library", &[("salt", "late-story")]);
    for address in story.edges() {
        assert_eq!(status(address, &narinfo_of(&late)), 404);
    }
    builder.dormer(&["push", "main", &late]).succeeds();
    story.publish();
    for address in story.edges() {
        eventually("the update", || status(address, &narinfo_of(&late)) == 200);
        let machine = story.lab.machine(&format!("late-{address}"), Nix::MIDDLE);
        machine.configure(&[story.lab.public_key("main")]);
        machine.substitute(&format!("http://{address}/main"), &late).succeeds();
    }

    // Removed, it goes with its narinfo and its NAR. An edge remembers a narinfo for five minutes:
    // the data centre under the host's name, so that another name of the same Worker has not been
    // asked before, and `edge serve` in its own memory.
    let nar = http::ask(story.host.address(), "GET", &narinfo_of(&late), &[], b"").text();
    let nar = format!("/main/{}", nar.lines().find_map(|line| line.strip_prefix("URL: ")).unwrap());
    story.lab.login();
    story.lab.dormer(&["cache", "remove-path", "main", &late]).succeeds();
    story.publish();
    assert!(!story.copied.contains_key(&format!("caches{}", narinfo_of(&late))), "it is in the bucket");
    let elsewhere = story.worker.address().replace("127.0.0.1", "localhost");
    let anew = serve(&story.s3, &story.bucket);
    for address in [elsewhere.as_str(), anew.address()] {
        eventually(&format!("the removal at {address}"), || status(address, &narinfo_of(&late)) == 404);
        assert_eq!(status(address, &nar), 404);
        assert_eq!(status(address, &narinfo_of(&root)), 200);
    }
}
