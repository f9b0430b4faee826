//! TLS to a real PostgreSQL with certificates of our own: what `sslmode` asks for is what is done,
//! and a refusal says why.

use std::path::Path;
use std::time::Duration;

use dormer_testkit::services::{Certificates, Postgres as Server};
use sqlx::{Row as _, query};

use super::tests::options;
use super::*;
use crate::access::Access;
use crate::{Error, Index as _};

/// A database's URL with another host and these parameters.
fn with(url: &str, host: &str, parameters: &str) -> String {
    format!("{}?{parameters}", url.replace("127.0.0.1", host))
}

fn full(authority: &Path) -> String {
    format!("sslmode=verify-full&sslrootcert={}", authority.display())
}

/// Whether the connections of a pool are encrypted, as the server sees it.
async fn is_encrypted(url: &str) -> bool {
    let index = PostgresIndex::open(url, options()).await.unwrap_or_else(|error| panic!("{url}: {error:?}"));
    index.check_ready().await.unwrap();
    let mut read = index.postgres_session(Access::Read).await;
    let rows = read.all(query("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")).await.unwrap();
    rows[0].get(0)
}

/// The words of a refusal, which name no password.
async fn refusal(url: &str) -> String {
    let url = url.replace("dormer@", "dormer:hunter2@");
    let refused = PostgresIndex::open(&url, options()).await;
    let Err(Error::Untrusted { source }) = &refused else { panic!("{url}: {refused:?}") };
    let looked = PostgresIndex::examine(&url, &options(), "s").await;
    assert!(matches!(looked, Err(Error::Untrusted { .. })), "{looked:?}");
    let words = source.to_string();
    assert!(!format!("{words} {refused:?}").contains("hunter2"));
    words
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_is_trusted_by_name_and_authority_or_not_at_all() {
    let certificates = Certificates::new();
    let server = Server::start_with_tls(&certificates);
    let url = server.create_database();
    let authority = certificates.authority();
    for host in ["127.0.0.1", "localhost"] {
        assert!(is_encrypted(&with(&url, host, &full(&authority))).await, "{host}");
    }

    let stranger = Certificates::new();
    let words = refusal(&with(&url, "127.0.0.1", &full(&stranger.authority()))).await;
    assert!(words.contains("invalid peer certificate"), "{words}");
    // The authorities that everybody knows do not know ours.
    let words = refusal(&with(&url, "127.0.0.1", "sslmode=verify-full")).await;
    assert!(words.contains("UnknownIssuer"), "{words}");
    // 127.0.0.2 is this machine, too, and stands in no certificate.
    let elsewhere = Certificates::for_names("DNS:db.example.org");
    let other = Server::start_with_tls(&elsewhere);
    let other_url = other.create_database();
    let words = refusal(&with(&other_url, "127.0.0.1", &full(&elsewhere.authority()))).await;
    assert!(words.contains("not valid for name"), "{words}");

    // What asks for less gets less: the authority without the name, TLS without either, and what
    // the server offers.
    let authority = format!("sslmode=verify-ca&sslrootcert={}", elsewhere.authority().display());
    for parameters in [authority.as_str(), "sslmode=require", "sslmode=prefer"] {
        assert!(is_encrypted(&with(&other_url, "127.0.0.1", parameters)).await, "{parameters}");
    }
    assert!(!is_encrypted(&with(&other_url, "127.0.0.1", "sslmode=disable")).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_tls_is_refused_where_tls_is_asked_for() {
    let certificates = Certificates::new();
    let url = Server::shared().create_database();
    for parameters in [full(&certificates.authority()), "sslmode=require".to_owned()] {
        let words = refusal(&with(&url, "127.0.0.1", &parameters)).await;
        assert!(words.contains("server does not support TLS"), "{words}");
    }
    assert!(!is_encrypted(&with(&url, "127.0.0.1", "sslmode=prefer")).await);
}

/// A listener and a lost connection come back encrypted, or not at all.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_comes_back_without_tls_is_not_used() {
    let certificates = Certificates::new();
    let server = Server::start_with_tls(&certificates);
    let url = with(&server.create_database(), "127.0.0.1", &full(&certificates.authority()));
    let short = PostgresOptions { acquire_timeout: Duration::from_secs(3), ..options() };
    let index = PostgresIndex::open(&url, short).await.unwrap();
    server.restart_with(&["ssl=off"]);
    let refused = index.check_ready().await;
    assert!(matches!(refused, Err(Error::Unavailable { .. })), "{refused:?}");
    server.restart();
    let mut last = index.check_ready().await;
    for _ in 0..20 {
        if last.is_ok() {
            break;
        }
        last = index.check_ready().await;
    }
    last.unwrap();
}
