//! A plain static file server: what any bucket host, CDN or nginx does with a published folder, and nothing more.

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::thread;

/// Serves a folder until the process ends.
#[derive(Debug)]
pub struct StaticServer {
    address: String,
}

impl StaticServer {
    /// Starts one on a free port.
    pub fn start(folder: &Path) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("a bound listener has one").to_string();
        let folder = folder.to_owned();
        thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                let folder = folder.clone();
                thread::spawn(move || answer_all(&connection, &folder));
            }
        });
        Self { address }
    }

    /// `http://127.0.0.1:port/<folder>`.
    pub fn url(&self, folder: &str) -> String {
        format!("http://{}/{folder}", self.address)
    }
}

/// Whoever goes away in mid-answer ends his connection only.
fn answer_all(connection: &TcpStream, folder: &Path) {
    let mut reader = BufReader::new(connection);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        loop {
            let mut header = String::new();
            match reader.read_line(&mut header) {
                Ok(read) if read > 2 => {}
                Ok(2) => break,
                _ => return,
            }
        }
        let mut words = line.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        if answer(connection, folder, method, path).is_err() {
            return;
        }
    }
}

fn answer(mut connection: &TcpStream, folder: &Path, method: &str, path: &str) -> std::io::Result<()> {
    let path: PathBuf = path.split('/').filter(|part| !part.is_empty() && *part != "..").collect();
    match fs::read(folder.join(path)) {
        Ok(content) => {
            write!(connection, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", content.len())?;
            if method == "GET" { connection.write_all(&content) } else { Ok(()) }
        }
        Err(_) => write!(connection, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"),
    }
}
