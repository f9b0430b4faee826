//! How a store is addressed: TLS with a private authority, the bucket in the host name, and other
//! providers.

use std::process::Command;

use dormer_blobs::{Blobs as _, conformance};
use dormer_stores::{Credentials, Error, RemoteKind, RemoteSettings};
use dormer_testkit::services::{Certificates, SeaweedFs};

use super::support::{bare, fresh_key, pattern, reliable, seaweedfs, settings, try_open};

#[tokio::test(flavor = "multi_thread")]
async fn a_store_with_an_authority_of_its_own_is_trusted_if_told_so() {
    let certificates = Certificates::new();
    let (server, endpoint) = SeaweedFs::start_with_tls(&certificates);
    let mut own = settings(server.access(), &server.new_bucket());
    own.endpoint = Some(endpoint);
    let error = bare(&own).put(&fresh_key(), &[pattern(10)]).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "the authority is unknown: {error:?}");

    own.ca_file = Some(certificates.authority());
    conformance::run(&*reliable(&own).0).await;

    // The certificate of another authority does not help.
    let other = Certificates::new();
    own.ca_file = Some(other.authority());
    let error = bare(&own).put(&fresh_key(), &[pattern(10)]).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");

    own.ca_file = Some(certificates.key());
    let refused = try_open(&own).unwrap_err().to_string();
    assert!(refused.contains("server.key"), "{refused}");
    own.ca_file = Some("/nowhere/ca.pem".into());
    let refused = try_open(&own).unwrap_err().to_string();
    assert!(refused.contains("/nowhere/ca.pem"), "{refused}");
}

/// Set for the second run of this program.
const BUCKET: &str = "DORMER_TEST_BUCKET";

/// No resolver knows the server's domain. A process that uses the server as its HTTP proxy needs no
/// resolver, because a proxy resolves names itself. Variables are set for a whole process, so this
/// program runs itself again.
#[tokio::test(flavor = "multi_thread")]
async fn the_bucket_may_stand_in_the_host_name() {
    if let Ok(text) = std::env::var(BUCKET) {
        let [bucket, id, secret]: [&str; 3] = text.split(' ').collect::<Vec<_>>().try_into().unwrap();
        let own = RemoteSettings {
            kind: RemoteKind::S3,
            bucket: bucket.to_owned(),
            prefix: "a/prefix".to_owned(),
            endpoint: Some(format!("http://{}", SeaweedFs::DOMAIN)),
            region: Some("us-east-1".to_owned()),
            credentials: Some(Credentials {
                access_key_id: id.to_owned(),
                secret_access_key: secret.to_owned(),
            }),
            path_style: false,
            ca_file: None,
            connect_timeout: std::time::Duration::from_secs(5),
            request_timeout: std::time::Duration::from_mins(1),
        };
        conformance::run(&*reliable(&own).0).await;
        return;
    }
    let server = seaweedfs();
    let (access, bucket) = (server.access(), server.new_bucket());
    let again = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "remote::addresses::the_bucket_may_stand_in_the_host_name"])
        .env("http_proxy", &access.endpoint)
        .env(BUCKET, format!("{bucket} {} {}", access.access_key_id, access.secret_access_key))
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&again.stdout);
    assert!(again.status.success() && text.contains("1 passed"), "{text}");
    // The packs are in this bucket, below the prefix.
    let mut own = settings(access, &bucket);
    own.prefix = "a/prefix".to_owned();
    assert!(!bare(&own).list().await.unwrap().is_empty());
}

/// Servers of these providers are not available here. Without them, the test shows that the
/// settings are understood and that nothing is sent.
#[tokio::test]
async fn stores_of_google_and_azure_are_set_up() {
    let own = |kind, credentials: Option<(&str, &str)>, endpoint: Option<&str>| RemoteSettings {
        kind,
        bucket: "our-bucket".to_owned(),
        prefix: "lab".to_owned(),
        endpoint: endpoint.map(str::to_owned),
        region: None,
        credentials: credentials.map(|(id, secret)| Credentials {
            access_key_id: id.to_owned(),
            secret_access_key: secret.to_owned(),
        }),
        path_style: true,
        ca_file: None,
        connect_timeout: std::time::Duration::from_secs(1),
        request_timeout: std::time::Duration::from_secs(1),
    };
    let google = bare(&own(RemoteKind::Gcs, None, None));
    assert_eq!(google.store().location(), "gs://our-bucket/lab");
    assert!(google.is_remote());
    let azure = own(RemoteKind::Azure, Some(("account", "c2VjcmV0")), None);
    assert_eq!(bare(&azure).store().location(), "az://our-bucket/lab");
    let bad_key = own(RemoteKind::Azure, Some(("account", "not base64!")), None);
    let refused = try_open(&bad_key).unwrap_err().to_string();
    assert!(refused.contains("az://our-bucket") && !refused.contains("not base64"), "{refused}");
    let nameless = own(RemoteKind::Azure, None, None);
    assert!(try_open(&nameless).is_err(), "an account has to be named");

    // An address where nobody listens is unavailable, as with S3.
    let port = dormer_testkit::services::free_port();
    let endpoint = format!("http://127.0.0.1:{port}");
    let away = own(RemoteKind::Azure, Some(("account", "c2VjcmV0")), Some(&endpoint));
    let error = bare(&away).head(&fresh_key()).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
}
