//! `dormer doctor` with a real object store and a real PostgreSQL: healthy, and each failure on
//! purpose.

use crate::test_home::{Report, TestHome};
use dormer_testkit::services::{CephRgw, S3Access, SeaweedFs};

fn doctor(home: &TestHome, access: &S3Access, bucket: &str, variables: &[(&str, &str)]) -> Report {
    let mut command = home.command(&["doctor"]);
    command.env("DORMER_LISTEN", "127.0.0.1:1").env("DORMER_STORAGE_TYPE", "s3");
    command.env("DORMER_STORAGE_ENDPOINT", &access.endpoint).env("DORMER_STORAGE_BUCKET", bucket);
    command.env("AWS_ACCESS_KEY_ID", &access.access_key_id);
    command.env("AWS_SECRET_ACCESS_KEY", &access.secret_access_key);
    Report::of(command.envs(variables.iter().copied()))
}

#[test]
fn buckets_that_serve_and_buckets_that_do_not_are_told_apart() {
    let home = TestHome::new();
    let mut server = SeaweedFs::start();
    let access = server.access().clone();
    let bucket = access.new_bucket();

    let healthy = doctor(&home, &access, &bucket, &[]);
    healthy.is_healthy();
    let ok = healthy.with("ok").join("\n");
    assert!(ok.contains("put, get a range, list, delete work"), "{ok}");
    assert!(ok.contains("clock: our clock agrees with the store"), "{ok}");
    // The check left nothing behind: an empty bucket can be deleted.
    let emptied = access.new_bucket();
    doctor(&home, &access, &emptied, &[]).is_healthy();
    access.delete_bucket(&emptied);

    let wrong = doctor(&home, &access, &bucket, &[("AWS_SECRET_ACCESS_KEY", "wrong")]);
    assert!(wrong.with("fail").iter().all(|line| line.starts_with("store: ")), "{wrong:#?}");
    assert!(wrong.with("fail").len() == 2, "it can neither put nor list: {wrong:#?}");
    assert_eq!(wrong.code, Some(1));

    let theirs = access.new_bucket();
    access.put_object(&theirs, "2b9d04a6-9b2b-4a4b-8a3f-0c1d2e3f4a5b.chunk", &b"x"[..]);
    doctor(&home, &access, &theirs, &[]).fails_only("holds chunks of Attic");

    server.kill();
    let away = doctor(&home, &access, &bucket, &[]);
    away.fails_only("store: put: ");
    let shown = format!("{healthy:?}{wrong:?}{away:?}");
    assert!(!shown.contains(&access.secret_access_key), "{shown}");
}

/// SeaweedFS creates a bucket at the first write into it; other servers do not.
#[test]
fn a_bucket_that_is_not_there_is_found() {
    let home = TestHome::new();
    let server = CephRgw::start();
    doctor(&home, server.access(), &server.access().new_bucket(), &[]).is_healthy();
    let missing = doctor(&home, server.access(), "nowhere-at-all", &[]);
    let failures = missing.with("fail");
    assert!(failures.len() == 2 && failures[0].starts_with("store: put: "), "{missing:#?}");
}
