//! Answers of a store that send requests elsewhere.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::{CallPolicy, Credentials, Error, RemoteKind, RemoteSettings, Store};

/// A server that gives this answer to every request. Returns its port, and how many requests came.
async fn server(answer: String) -> (u16, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (port, count) = (listener.local_addr().unwrap().port(), Arc::new(AtomicUsize::new(0)));
    let asked = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            tokio::spawn(serve(BufReader::new(connection), answer.clone(), Arc::clone(&asked)));
        }
    });
    (port, count)
}

async fn serve(mut connection: BufReader<TcpStream>, answer: String, asked: Arc<AtomicUsize>) -> Option<()> {
    loop {
        let mut length = 0;
        loop {
            let mut line = String::new();
            if connection.read_line(&mut line).await.ok()? == 0 {
                return None;
            }
            let line = line.to_ascii_lowercase();
            if let Some(value) = line.strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
            if line.trim().is_empty() {
                break;
            }
        }
        connection.read_exact(&mut vec![0; length]).await.ok()?;
        asked.fetch_add(1, Ordering::SeqCst);
        connection.get_mut().write_all(answer.as_bytes()).await.ok()?;
    }
}

fn store(port: u16, kind: RemoteKind) -> Store {
    let credentials =
        Credentials { access_key_id: "id".to_owned(), secret_access_key: "c2VjcmV0".to_owned() };
    let settings = RemoteSettings {
        kind,
        bucket: "b".to_owned(),
        prefix: String::new(),
        endpoint: Some(format!("http://127.0.0.1:{port}")),
        region: Some("r".to_owned()),
        credentials: Some(credentials),
        path_style: true,
        ca_file: None,
        connect_timeout: Duration::from_secs(5),
        request_timeout: Duration::from_secs(5),
    };
    Store::open(&settings, &CallPolicy::once()).unwrap()
}

#[tokio::test]
async fn a_store_that_sends_requests_elsewhere_is_not_followed() {
    let stolen = "HTTP/1.1 200 OK\r\netag: \"x\"\r\ncontent-length: 5\r\n\r\nother";
    let (other, asked) = server(stolen.to_owned()).await;
    for status in [301, 302, 303, 307, 308] {
        let answer = format!(
            "HTTP/1.1 {status} Elsewhere\r\nlocation: http://localhost:{other}/b/a?X-Amz-Signature=MARKER\r\n\
             x-amz-bucket-region: eu-west-9\r\ncontent-length: 0\r\n\r\n"
        );
        let (port, _) = server(answer).await;
        for kind in [RemoteKind::S3, RemoteKind::Azure] {
            let store = store(port, kind);
            let outcomes = [
                store.get("a").await.map(drop),
                store.head("a").await.map(drop),
                store.put("a", None, [Bytes::from_static(b"object")]).await.map(drop),
                store.delete("a").await,
            ];
            for outcome in outcomes {
                let error = outcome.unwrap_err();
                assert!(matches!(error, Error::Refused { .. }), "{kind:?} {status}: {error:?}");
                let text = dormer_nix::with_causes(&error);
                let address = format!("http://localhost:{other}");
                assert!(text.contains(&address) && text.contains("eu-west-9"), "{text}");
                assert!(!text.contains("MARKER"), "{text}");
            }
        }
    }
    assert_eq!(asked.load(Ordering::SeqCst), 0, "requests that went elsewhere");
}
