//! Uploads over a line that bears few of them at once.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::try_join_all;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep_until};

use crate::{CallPolicy, Credentials, RemoteKind, RemoteSettings, RetryPolicy, Store};

const PART_BYTES: usize = 64 * 1024;

/// All requests share a line on which a part takes this long if it is alone.
const PART_TIME: Duration = Duration::from_millis(100);

/// Two parts at once come in time, and four do not.
const REQUEST_TIMEOUT: Duration = Duration::from_millis(350);

/// A store of S3's kind at the end of a slow line, as far as uploads go. Returns its port.
async fn slow_store() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let line = Arc::new(Mutex::new(Instant::now()));
    tokio::spawn(async move {
        while let Ok((connection, _)) = listener.accept().await {
            tokio::spawn(serve(BufReader::new(connection), Arc::clone(&line)));
        }
    });
    port
}

async fn serve(mut connection: BufReader<TcpStream>, line: Arc<Mutex<Instant>>) -> Option<()> {
    const PIECE_BYTES: usize = 1_024;
    loop {
        let (mut head, mut length) = (String::new(), 0);
        let first = loop {
            let begin = head.len();
            if connection.read_line(&mut head).await.ok()? == 0 {
                return None;
            }
            let field = head[begin..].to_ascii_lowercase();
            if let Some(value) = field.strip_prefix("content-length:") {
                length = value.trim().parse().ok()?;
            }
            if field.trim().is_empty() {
                break head.lines().next()?.to_owned();
            }
        };
        let is_part = first.starts_with("PUT ");
        let mut left: usize = length;
        while left > 0 {
            let mut piece = vec![0; left.min(PIECE_BYTES)];
            connection.read_exact(&mut piece).await.ok()?;
            left -= piece.len();
            if is_part {
                let turn = {
                    let mut free_at = line.lock().await;
                    let turn = (*free_at).max(Instant::now());
                    let share = u32::try_from(PART_BYTES / piece.len()).ok()?;
                    *free_at = turn + PART_TIME / share;
                    *free_at
                };
                sleep_until(turn).await;
            }
        }
        let body = match (is_part, first.contains("uploads")) {
            (true, _) => "",
            (false, true) => {
                "<InitiateMultipartUploadResult><Bucket>b</Bucket><Key>k</Key><UploadId>1</UploadId></InitiateMultipartUploadResult>"
            }
            (false, false) => {
                "<CompleteMultipartUploadResult><ETag>\"whole\"</ETag></CompleteMultipartUploadResult>"
            }
        };
        let answer =
            format!("HTTP/1.1 200 OK\r\netag: \"part\"\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        connection.write_all(answer.as_bytes()).await.ok()?;
    }
}

/// Eight uploads at once are as slow as eight, so each part is late, and so is every other try.
#[tokio::test(flavor = "multi_thread")]
async fn a_slow_line_gets_fewer_parts_at_once_until_they_come_in_time() {
    let settings = RemoteSettings {
        kind: RemoteKind::S3,
        bucket: "bucket".to_owned(),
        prefix: String::new(),
        endpoint: Some(format!("http://127.0.0.1:{}", slow_store().await)),
        region: Some("any".to_owned()),
        credentials: Some(Credentials {
            access_key_id: "id".to_owned(),
            secret_access_key: "secret".to_owned(),
        }),
        path_style: true,
        ca_file: None,
        connect_timeout: Duration::from_secs(5),
        request_timeout: REQUEST_TIMEOUT,
    };
    let retries = RetryPolicy {
        tries_max: 12,
        time_max: Duration::from_secs(30),
        first_pause: Duration::from_millis(10),
        pause_max: Duration::from_millis(20),
    };
    let policy = CallPolicy { retries, requests_max: Some(8), turn_wait: None };
    let store = Store::open(&settings, &policy).unwrap().in_parts_of(PART_BYTES as u64);
    let uploads = (0..8).map(|number| {
        let store = &store;
        async move {
            let name = format!("file-{number}");
            let mut upload = store.begin_upload(&name, None, 2 * PART_BYTES as u64).await?;
            for _ in 0..2 {
                upload.put_part([Bytes::from(vec![7; PART_BYTES])]).await?;
            }
            upload.finish().await
        }
    });
    try_join_all(uploads).await.unwrap();
    assert!(store.counters().limit() < 8, "fewer at once: {}", store.counters().limit());
}
