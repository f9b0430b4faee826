//! A real nginx before a published folder: a plain static file server, and nothing of ours.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use dormer_testkit::services::free_port;
use tempfile::TempDir;

use crate::{part, parts};

/// It starts in milliseconds.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

/// A running nginx. It ends on drop.
#[derive(Debug)]
pub struct StaticServer {
    address: String,
    process: Child,
    _folder: TempDir,
}

impl StaticServer {
    /// Serves a folder on a free port.
    pub fn start(root: &Path) -> Self {
        Self::start_with(root, "")
    }

    /// The same for requests that have `JOB-TOKEN` with this value; others get 401.
    pub fn for_job(root: &Path, token: &str) -> Self {
        Self::start_with(root, &format!("if ($http_job_token != \"{token}\") {{ return 401; }}"))
    }

    fn start_with(root: &Path, rule: &str) -> Self {
        let folder = tempfile::Builder::new().prefix("nginx-").tempdir_in(parts::scratch_folder());
        let folder = folder.expect("a folder");
        let address = format!("127.0.0.1:{}", free_port());
        let configuration = format!(
            "error_log error.log;\npid nginx.pid;\nevents {{}}\nhttp {{\n  access_log off;\n  \
             server {{ listen {address}; root {}; {rule} }}\n  client_body_temp_path body; proxy_temp_path proxy;\n  \
             fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;\n}}\n",
            root.display()
        );
        let path = folder.path().join("nginx.conf");
        fs::write(&path, configuration).expect("the folder is new");
        let mut process = Command::new(part("nginx/usr/sbin/nginx"))
            .arg("-p")
            .arg(folder.path())
            .arg("-c")
            .arg(&path)
            // One process, which may read what we may read.
            .args(["-g", "daemon off; master_process off;"])
            .args(["-e", "error.log"])
            .stdin(Stdio::null())
            .spawn()
            .expect("nginx starts");
        let begin = Instant::now();
        while TcpStream::connect(&address).is_err() {
            let ended = process.try_wait().expect("our own child can be waited for");
            assert!(ended.is_none() && begin.elapsed() < READY_TIMEOUT, "nginx does not listen: {ended:?}");
            thread::sleep(Duration::from_millis(20));
        }
        Self { address, process, _folder: folder }
    }

    /// `http://127.0.0.1:port/<folder>`.
    pub fn url(&self, folder: &str) -> String {
        format!("http://{}/{folder}", self.address)
    }
}

impl Drop for StaticServer {
    fn drop(&mut self) {
        // It may be dead already, which is what the test then reports.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
