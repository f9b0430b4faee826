//! `dormer edge serve` on a published folder or bucket: the same table of attacks as the Worker's,
//! and real nix.

use std::fs;
use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dormer_testkit::services::SeaweedFs;
use dormer_tests::edge::{Attacked, Host, Published, attack};
use dormer_tests::{Lab, Nix, binary, http};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};

const SECRET: [u8; 32] = [9; 32];

/// A public cache, whose root and number of NARs are told, a private one and an empty one.
fn publish(lab: &Lab) -> (Published, String, usize) {
    let published = Published::new();
    lab.create_cache("secret", &[]);
    let builder = lab.machine("builder", Nix::NEWEST);
    builder.login(lab);
    let root = builder.build("all", &[("salt", "edge-serve")]);
    builder.dormer(&["push", "main", &root]).succeeds();
    let nars = published.add(lab, "main", true, &builder.closure(&root));
    let hidden = builder.build("library", &[("salt", "hidden")]);
    builder.dormer(&["push", "secret", &hidden]).succeeds();
    published.add(lab, "secret", false, std::slice::from_ref(&hidden));
    published.describe("secret", false, &[lab.public_key("secret")], &["stolen"]);
    published.describe("other", false, &[], &[]);
    published.catalog(&["main"]);
    (published, root, nars)
}

fn nix_reads(lab: &Lab, address: &str, root: &str) {
    for nix in Nix::ALL {
        let reader = lab.machine(nix.name(), nix);
        reader.configure(&[lab.public_key("main")]);
        reader.substitute(&format!("http://{address}/main"), root).succeeds();
        reader.verify_all();
    }
}

fn attacks_fail(address: &str, published: &Published) {
    let key = EncodingKey::from_secret(&SECRET);
    let forged = EncodingKey::from_secret(&[1; 32]);
    let claims = serde_json::json!({ "https://jwt.attic.rs/v1": { "caches": { "*": { "r": 1 } } } });
    attack(&Attacked {
        address,
        published,
        sign: &|claims| encode(&Header::new(Algorithm::HS256), claims, &key).expect("claims can be signed"),
        forged: vec![encode(&Header::new(Algorithm::HS256), &claims, &forged).expect("claims can be signed")],
        reads: &|| None,
        knows_address: false,
    });
}

#[test]
fn a_folder_is_served_to_nix_and_attacks_fail() {
    let lab = Lab::start();
    let (published, root, _) = publish(&lab);
    let mut command = Command::new(binary());
    command.arg("edge").arg("serve").arg("--dir").arg(published.path());
    let host = Host::start(command.env("DORMER_EDGE_TOKEN_HS256_SECRET_BASE64", STANDARD.encode(SECRET)));
    nix_reads(&lab, host.address(), &root);
    attacks_fail(host.address(), &published);

    let mut command = Command::new(binary());
    command.args(["edge", "serve", "--no-pages", "--dir"]).arg(published.path());
    let host = Host::start(&mut command);
    let get = |path: &str| http::ask(host.address(), "GET", path, &[], b"");
    assert!(get("/").text().contains("substituter"), "a line of text");
    assert_eq!((get("/main/").status, get("/main/nix-cache-info").status), (404, 200));
}

#[test]
fn a_bucket_is_served_to_nix_its_nars_are_kept_on_disk_and_attacks_fail() {
    let lab = Lab::start();
    let (published, root, nars) = publish(&lab);
    let store = SeaweedFs::start();
    let bucket = store.new_bucket();
    for (name, file) in published.files() {
        store.access().put_object(
            &bucket,
            &format!("edge/{name}"),
            fs::read(file).expect("it was just written"),
        );
    }

    let kept = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(binary());
    command
        .args(["edge", "serve", "--bucket", &format!("s3://{bucket}/edge"), "--cache-dir"])
        .arg(kept.path());
    command
        .env("AWS_ACCESS_KEY_ID", &store.access().access_key_id)
        .env("AWS_SECRET_ACCESS_KEY", &store.access().secret_access_key)
        .env("AWS_REGION", &store.access().region)
        .env("AWS_ENDPOINT", store.endpoint())
        .env("DORMER_EDGE_TOKEN_HS256_SECRET_BASE64", STANDARD.encode(SECRET));
    let host = Host::start(&mut command);
    nix_reads(&lab, host.address(), &root);
    assert!(count_files(kept.path()) >= nars, "{nars} NARs were read three times");
    let missing = http::get(host.address(), "/main/0000000000000000000000000000000z.narinfo", None);
    assert_eq!(missing.status, 404);
    // What was read by then lies on the disk, and what the attacks may read comes there: no token,
    // no bytes, from there either.
    for _ in 0..2 {
        attacks_fail(host.address(), &published);
    }
}

fn count_files(folder: &Path) -> usize {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries.map(|path| if path.is_dir() { count_files(&path) } else { 1 }).sum()
}
