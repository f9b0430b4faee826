//! Packs in a real bucket that went bad or away behind Dormer's back, under two replicas.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

use std::thread;
use std::time::{Duration, Instant};

use dormer_nix::NarHash;
use dormer_testkit::services::SeaweedFs;
use dormer_tests::http::{self, Connection, Reply};
use dormer_tests::{Lab, LabOptions, Nix, Run, nars};
use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

/// Much longer than a replica may go on with what it remembers of a path; machines are slow at
/// times.
const FORGOTTEN_AFTER: Duration = Duration::from_mins(1);

/// What happens to the pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Harm {
    /// A bit of the NAR's first chunk.
    FlippedEarly,
    /// A bit behind the middle: the first chunks are right, so the answer begins.
    FlippedLate,
    /// The second half.
    CutOff,
    Deleted,
}

fn push(lab: &Lab, nar: &[u8]) {
    let bearer = format!("Bearer {}", lab.admin_token());
    let info = nars::attic_info("main", nar, "pushed");
    let headers = [("Authorization", bearer.as_str()), ("X-Attic-Nar-Info", info.as_str())];
    let reply = http::request(lab.address(), "PUT", "/_api/v1/upload-path", &headers, nar);
    assert_eq!(reply.status, 200, "{reply:?}");
}

/// Where a replica says that the NAR is.
fn url(replica: &str, narinfo: &str) -> String {
    let reply = http::get(replica, narinfo, None);
    assert_eq!(reply.status, 200, "{reply:?}");
    let text = reply.text();
    format!("/main/{}", text.lines().find_map(|line| line.strip_prefix("URL: ")).unwrap())
}

/// An answer that is whole, or none.
fn read(replica: &str, path: &str) -> Option<Reply> {
    let head = format!("GET {path} HTTP/1.1\r\nHost: {replica}\r\nConnection: close\r\n\r\n");
    Connection::open(replica).unwrap().exchange(head.as_bytes()).ok()
}

fn harmed(lab: &Lab, harm: Harm) {
    let inspection = lab.inspection();
    // The only large NAR has the largest pack.
    let (pack, _) = inspection.packs()[0];
    let mut bytes = inspection.read(&pack);
    match harm {
        Harm::FlippedEarly => bytes[1000] ^= 0x20,
        Harm::FlippedLate => {
            let place = bytes.len() * 3 / 4;
            bytes[place] ^= 0x20;
        }
        Harm::CutOff => bytes.truncate(bytes.len() / 2),
        Harm::Deleted => return inspection.delete(&pack),
    }
    inspection.overwrite(&pack, bytes);
}

#[test]
fn where_the_store_is_may_stand_in_amazons_variables() {
    let store = SeaweedFs::start();
    let access = store.access();
    let environment = [
        ("DORMER_STORAGE_TYPE", "s3"),
        ("DORMER_STORAGE_BUCKET", &store.new_bucket()),
        ("AWS_ENDPOINT_URL", store.endpoint()),
        ("AWS_REGION", &access.region),
        ("AWS_ACCESS_KEY_ID", &access.access_key_id),
        ("AWS_SECRET_ACCESS_KEY", &access.secret_access_key),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let lab = Lab::start_with(LabOptions { environment: environment.to_vec(), ..LabOptions::default() });
    let nar = nars::file(b"by Amazon's variables");
    push(&lab, &nar);
    let url = url(lab.address(), &format!("/main/{}.narinfo", nars::path_hash(&nar)));
    let reply = read(lab.address(), &url).unwrap();
    assert_eq!(zstd::decode_all(reply.body.as_slice()).unwrap(), nar);
}

#[test]
fn a_pack_that_went_bad_in_the_bucket_is_reported_never_served_and_healed_by_the_next_push() {
    for harm in [Harm::FlippedEarly, Harm::FlippedLate, Harm::CutOff, Harm::Deleted] {
        let lab = Lab::start_production();
        let mut contents = vec![0; 12_000_000];
        SmallRng::seed_from_u64(1).fill(&mut contents[..]);
        let nar = nars::file(&contents);
        let hash = NarHash::digest(&nar);
        push(&lab, &nar);
        let replicas = lab.replicas();
        let narinfo = format!("/main/{}.narinfo", nars::path_hash(&nar));
        let path = url(replicas[0], &narinfo);
        harmed(&lab, harm);

        let answer = read(replicas[0], &path);
        if let Some(answer) = &answer {
            assert_eq!(answer.status, 404, "{harm:?}: never whole and wrong: {answer:?}");
        }
        // What the first read tells is told by the status: nobody gets a 200 that ends early.
        let first_read_tells = matches!(harm, Harm::FlippedEarly | Harm::Deleted);
        assert!(answer.is_some() || !first_read_tells, "{harm:?}: a 200 that was cut");
        let log = lab.log();
        assert!(log.contains("damaged") || log.contains("lost"), "{harm:?}: it is reported:\n{log}");
        let begin = Instant::now();
        for replica in &replicas {
            while http::get(replica, &narinfo, None).status != 404 {
                assert!(begin.elapsed() < FORGOTTEN_AFTER, "{harm:?}: {replica} still says that it is there");
                thread::sleep(Duration::from_millis(50));
            }
        }

        push(&lab, &nar);
        for replica in &replicas {
            let healed = read(replica, &url(replica, &narinfo)).unwrap();
            let bytes = zstd::decode_all(healed.body.as_slice()).unwrap();
            assert_eq!(NarHash::digest(&bytes), hash, "{harm:?}");
        }
        // Of a pack that is gone the row is left, which collecting garbage takes.
        if harm != Harm::Deleted {
            lab.inspection().check(&[hash]);
        }
    }
}

#[test]
fn nix_gets_a_path_whose_pack_was_deleted_after_the_next_push() {
    let lab = Lab::start_production();
    let builder = lab.machine("builder", Nix::NEWEST);
    builder.login(&lab);
    let noise = builder.build("noise", &[("salt", "bad-bucket"), ("megabytes", "12")]);
    builder.dormer(&["push", "main", &noise, "--no-closure"]).succeeds();
    harmed(&lab, Harm::Deleted);
    let early = lab.machine("early", Nix::NEWEST);
    early.configure(&[lab.public_key("main")]);
    early.substitute(&lab.cache_url("main"), &noise).fails();
    builder.dormer(&["push", "main", &noise, "--no-closure"]).succeeds();
    let puller = lab.machine("puller", Nix::NEWEST);
    puller.configure(&[lab.public_key("main")]);
    puller.substitute(&lab.cache_url("main"), &noise).succeeds();
    puller.verify_all();
}

/// Else every path that is asked for would be marked as damaged, for the replicas with the right
/// bucket too.
#[test]
fn a_replica_with_a_mistyped_prefix_does_not_start() {
    let lab = Lab::start_production();
    push(&lab, &nars::file(b"in the right place"));
    let mut mistyped = lab.server_process(&["serve", "--listen", "127.0.0.1:0"]);
    let run = Run::of(mistyped.env("DORMER_STORAGE_PREFIX", "pakcs-of-the-lab"));
    let said = run.fails();
    assert!(said.contains("holds no packs, and the database names some"), "{run}");
    assert!(said.contains("storage.prefix"), "{run}");
    push(&lab, &nars::file(b"and another"));
}
