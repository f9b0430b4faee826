//! Two replicas that reach PostgreSQL through a real PgBouncer, by session and by transaction: what
//! docs/DEPLOYING.md says of it.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

use std::thread;
use std::time::{Duration, Instant};

use dormer_nix::NarHash;
use dormer_testkit::services::{PgBouncer, PoolMode, Postgres};
use dormer_tests::http::{self, Reply};
use dormer_tests::{Lab, LabOptions, Nix, Run, nars};

/// The 5 seconds that docs/DEPLOYING.md promises behind a pooler by transaction, and
/// docs/HTTP-API.md always, and the time of a busy machine.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(5 + 10);

fn start(mode: PoolMode) -> (Lab, PgBouncer) {
    let server = Postgres::shared();
    let pooler = PgBouncer::start(server, mode);
    let by_transaction = (mode == PoolMode::Transaction).to_string();
    let environment = vec![
        ("DORMER_DATABASE_URL".to_owned(), pooler.url(&server.create_database())),
        ("DORMER_DATABASE_TRANSACTION_POOLER".to_owned(), by_transaction),
    ];
    (Lab::start_production_with(LabOptions { environment, ..LabOptions::default() }), pooler)
}

fn upload(address: &str, token: &str, nar: &[u8]) -> Reply {
    let bearer = format!("Bearer {token}");
    let info = nars::attic_info("main", nar, "shared");
    let headers = [("Authorization", bearer.as_str()), ("X-Attic-Nar-Info", info.as_str())];
    http::request(address, "PUT", "/_api/v1/upload-path", &headers, nar)
}

/// What one replica was told the other knows: a push at once, a removal and a change of a cache
/// when what is remembered is old.
fn replicas_agree(lab: &Lab) {
    let token = lab.admin_token();
    let [one, other] = lab.replicas()[..] else { panic!("two replicas") };
    let nar = nars::file(b"soon gone");
    let hash = nars::path_hash(&nar);
    let narinfo = format!("/main/{hash}.narinfo");
    assert_eq!(http::get(other, &narinfo, None).status, 404);
    assert_eq!(upload(one, &token, &nar).status, 200);
    let found = http::get(other, &narinfo, None);
    assert_eq!(found.status, 200, "no miss was remembered: {found:?}");
    let text = found.text();
    let url = text.lines().find_map(|line| line.strip_prefix("URL: ")).unwrap();
    let body = http::get(other, &format!("/main/{url}"), None).body;
    assert_eq!(NarHash::digest(&zstd::decode_all(body.as_slice()).unwrap()), NarHash::digest(&nar));

    lab.login();
    lab.dormer(&["cache", "configure", "main", "--priority", "7"]).succeeds();
    lab.dormer(&["cache", "remove-path", "main", &format!("/nix/store/{hash}-shared")]).succeeds();
    let begin = Instant::now();
    for replica in lab.replicas() {
        while http::get(replica, &narinfo, None).status != 404 {
            assert!(begin.elapsed() < FORGOTTEN_AFTER, "{replica} still serves what was removed");
            thread::sleep(Duration::from_millis(50));
        }
        while !http::get(replica, "/main/nix-cache-info", None).text().contains("Priority: 7") {
            assert!(begin.elapsed() < FORGOTTEN_AFTER, "{replica} still tells the old priority");
            thread::sleep(Duration::from_millis(50));
        }
    }
}

/// A machine pushes a closure with many connections at once, another one reads it back.
fn a_closure_goes_there_and_back(lab: &Lab) {
    let builder = lab.machine("builder", Nix::NEWEST);
    builder.login(lab);
    let crowd = builder.build("crowd", &[("salt", "pooler"), ("leaves", "40")]);
    builder.dormer(&["push", "main", &crowd, "-j", "16"]).succeeds();
    let puller = lab.machine("puller", Nix::NEWEST);
    puller.configure(&[lab.public_key("main")]);
    puller.substitute(&lab.cache_url("main"), &crowd).succeeds();
    puller.verify_all();
}

fn doctor(lab: &Lab, by_transaction: bool) -> Run {
    let mut command = lab.server_process(&["doctor"]);
    Run::of(command.env("DORMER_DATABASE_TRANSACTION_POOLER", by_transaction.to_string()))
}

#[test]
fn a_lab_behind_a_pooler_by_transaction_works_and_says_what_it_is() {
    let (mut lab, mut pooler) = start(PoolMode::Transaction);
    replicas_agree(&lab);
    a_closure_goes_there_and_back(&lab);
    let report = doctor(&lab, true).stdout();
    assert!(report.contains("a pooler gives every transaction another connection"), "{report}");
    // Not told of the pooler, neither the doctor nor a server goes on.
    let report = doctor(&lab, false).fails();
    assert!(report.contains("say database.transaction-pooler = true"), "{report}");
    let mut unsaid = lab.server_process(&["serve", "--listen", "127.0.0.1:0"]);
    let refused = Run::of(unsaid.env("DORMER_DATABASE_TRANSACTION_POOLER", "false")).fails();
    assert!(refused.contains("say database.transaction-pooler = true"), "{refused}");
    // A pooler that is restarted takes all connections along, and nothing else.
    pooler.restart();
    let nar = nars::file(b"after the pooler's restart");
    assert_eq!(upload(lab.address(), &lab.admin_token(), &nar).status, 200);
    assert!(lab.is_alive());
}

#[test]
fn a_lab_behind_a_pooler_by_session_needs_no_setting() {
    let (lab, _pooler) = start(PoolMode::Session);
    replicas_agree(&lab);
    let report = doctor(&lab, false).stdout();
    assert!(report.contains("ok    database: ") && !report.contains("pooler"), "{report}");
}
