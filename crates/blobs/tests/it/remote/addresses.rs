//! How a store is addressed: by TLS with an authority of its own, with the bucket in the host name, and other providers.

use std::process::Command;

use dormer_blobs::remote::{Credentials, RemoteKind};
use dormer_blobs::{Blobs as _, Error, RemoteBlobs, RemoteSettings, conformance};
use dormer_testkit::services::{Certificates, SeaweedFs};

use super::support::{fresh_key, pattern, reliable, seaweedfs, settings};

#[tokio::test(flavor = "multi_thread")]
async fn a_store_with_an_authority_of_its_own_is_trusted_if_told_so() {
    let certificates = Certificates::new();
    let (server, endpoint) = SeaweedFs::start_with_tls(&certificates);
    let mut own = settings(server.access(), &server.new_bucket());
    own.endpoint = Some(endpoint);
    let error = RemoteBlobs::open(&own).unwrap().put(&fresh_key(), &[pattern(10)]).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "nobody vouches for it: {error:?}");

    own.ca_file = Some(certificates.authority());
    conformance::run(&*reliable(&own).0).await;

    // Another authority's word is none.
    let other = Certificates::new();
    own.ca_file = Some(other.authority());
    let error = RemoteBlobs::open(&own).unwrap().put(&fresh_key(), &[pattern(10)]).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");

    own.ca_file = Some(certificates.key());
    let refused = RemoteBlobs::open(&own).unwrap_err().to_string();
    assert!(refused.contains("server.key"), "{refused}");
    own.ca_file = Some("/nowhere/ca.pem".into());
    let refused = RemoteBlobs::open(&own).unwrap_err().to_string();
    assert!(refused.contains("/nowhere/ca.pem"), "{refused}");
}

/// Set for the second run of this program.
const BUCKET: &str = "DORMER_TEST_BUCKET";

/// No resolver knows the server's domain, so a process that takes the server for its proxy stands in for one: names are looked up by
/// a proxy. Variables are set for a process as a whole, so this program runs itself again.
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
    // It was this bucket, and below the prefix.
    let mut own = settings(access, &bucket);
    own.prefix = "a/prefix".to_owned();
    assert!(!RemoteBlobs::open(&own).unwrap().list().await.unwrap().is_empty());
}

/// Their servers are not to be had here. What can be told without them: the settings are understood, and nothing is sent.
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
    let google = RemoteBlobs::open(&own(RemoteKind::Gcs, None, None)).unwrap();
    assert_eq!(google.name(), "gs://our-bucket/lab");
    assert!(google.is_remote());
    let azure = own(RemoteKind::Azure, Some(("account", "c2VjcmV0")), None);
    assert_eq!(RemoteBlobs::open(&azure).unwrap().name(), "az://our-bucket/lab");
    let bad_key = own(RemoteKind::Azure, Some(("account", "not base64!")), None);
    let refused = RemoteBlobs::open(&bad_key).unwrap_err().to_string();
    assert!(refused.contains("az://our-bucket") && !refused.contains("not base64"), "{refused}");
    let nameless = own(RemoteKind::Azure, None, None);
    assert!(RemoteBlobs::open(&nameless).is_err(), "an account has to be named");

    // An address where nobody listens is unavailable, as with S3.
    let port = dormer_testkit::services::free_port();
    let endpoint = format!("http://127.0.0.1:{port}");
    let away = own(RemoteKind::Azure, Some(("account", "c2VjcmV0")), Some(&endpoint));
    let error = RemoteBlobs::open(&away).unwrap().head(&fresh_key()).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
}
