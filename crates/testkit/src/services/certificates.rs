//! A certification authority for one test, and its certificate for servers on this machine. Made by
//! `openssl`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tempfile::TempDir;

/// Certificates in a temporary folder, valid for two days.
#[derive(Debug)]
pub struct Certificates {
    folder: TempDir,
}

impl Certificates {
    /// Makes an authority and a certificate for `127.0.0.1` and `localhost`.
    pub fn new() -> Self {
        Self::for_names("IP:127.0.0.1,DNS:localhost")
    }

    /// Makes an authority and a certificate for other names, such as `DNS:db.example.org`.
    pub fn for_names(names: &str) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let at = folder.path();
        let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
        let mut authority = vec!["req", "-x509", "-days", "2", "-subj", "/CN=Test authority"];
        authority.extend(key);
        authority.extend(["-keyout", "ca.key", "-out", "ca.pem"]);
        authority.extend(["-addext", "keyUsage=critical,keyCertSign"]);
        openssl(at, &authority);
        let mut request =
            vec!["req", "-subj", "/CN=127.0.0.1", "-keyout", "server.key", "-out", "server.csr"];
        request.extend(key);
        openssl(at, &request);
        let extensions =
            format!("subjectAltName={names}\nbasicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth\n");
        fs::write(at.join("server.ext"), extensions).expect("the folder is writable");
        let mut sign = vec!["x509", "-req", "-in", "server.csr", "-CA", "ca.pem", "-CAkey", "ca.key"];
        sign.extend(["-CAcreateserial", "-days", "2", "-extfile", "server.ext", "-out", "server.pem"]);
        openssl(at, &sign);
        Self { folder }
    }

    /// The authority's certificate, which clients must trust.
    pub fn authority(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// The server's certificate.
    pub fn certificate(&self) -> PathBuf {
        self.folder.path().join("server.pem")
    }

    /// The server's private key.
    pub fn key(&self) -> PathBuf {
        self.folder.path().join("server.key")
    }
}

impl Default for Certificates {
    fn default() -> Self {
        Self::new()
    }
}

fn openssl(folder: &Path, arguments: &[&str]) {
    let output = Command::new("openssl")
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::null())
        .output()
        .expect("openssl starts");
    assert!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
}
