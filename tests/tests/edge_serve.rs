//! `dormer edge serve` on a published folder: the same table of attacks as the Worker's, and real nix.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use dormer_tests::edge::{Attacked, Published, attack};
use dormer_tests::{Lab, Nix, binary};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};

const SECRET: [u8; 32] = [9; 32];

#[test]
fn a_folder_is_served_to_nix_and_attacks_fail() {
    let lab = Lab::start();
    let published = Published::new();
    lab.create_cache("secret", &[]);
    let builder = lab.machine("builder", Nix::NEWEST);
    builder.login(&lab);
    let root = builder.build("all", &[("salt", "edge-serve")]);
    builder.dormer(&["push", "main", &root]).succeeds();
    published.add(&lab, "main", true, &builder.closure(&root));
    let hidden = builder.build("library", &[("salt", "hidden")]);
    builder.dormer(&["push", "secret", &hidden]).succeeds();
    published.add(&lab, "secret", false, std::slice::from_ref(&hidden));
    published.describe("secret", false, &[lab.public_key("secret")], &["stolen"]);
    published.describe("other", false, &[], &[]);
    published.catalog(&["main"]);

    let mut process = Command::new(binary())
        .args(["edge", "serve", "--listen", "127.0.0.1:0", "--dir"])
        .arg(published.path())
        .env("DORMER_EDGE_TOKEN_HS256_SECRET_BASE64", STANDARD.encode(SECRET))
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(process.stderr.take().unwrap()).read_line(&mut line).unwrap();
    let address =
        line.trim().strip_prefix("listening on http://").unwrap_or_else(|| panic!("{line}")).to_owned();
    let key = EncodingKey::from_secret(&SECRET);
    let tried = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        for nix in Nix::ALL {
            let reader = lab.machine(nix.name(), nix);
            reader.configure(&[lab.public_key("main")]);
            reader.substitute(&format!("http://{address}/main"), &root).succeeds();
            reader.verify_all();
        }
        let forged = EncodingKey::from_secret(&[1; 32]);
        let claims = serde_json::json!({ "https://jwt.attic.rs/v1": { "caches": { "*": { "r": 1 } } } });
        attack(&Attacked {
            address: &address,
            published: &published,
            sign: &|claims| encode(&Header::new(Algorithm::HS256), claims, &key).unwrap(),
            forged: vec![encode(&Header::new(Algorithm::HS256), &claims, &forged).unwrap()],
            reads: &|| None,
        });
    }));
    process.kill().unwrap();
    process.wait().unwrap();
    if let Err(panic) = tried {
        std::panic::resume_unwind(panic);
    }
}
