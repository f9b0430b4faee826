//! nginx with static files, the comparison for reads.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::error::{Context, Error, Result};
use crate::http::Connection;
use crate::measure::process_cpu_seconds;
use crate::server::{free_address, terminate};

/// A running nginx. Dropping the value ends it.
#[derive(Debug)]
pub(crate) struct Nginx {
    child: Child,
    pub(crate) address: SocketAddr,
}

/// nginx at its fastest for files: sendfile, kept connections, no logs, cached metadata of open
/// files.
fn configuration(root: &Path, address: SocketAddr) -> String {
    format!(
        "worker_processes 2;
error_log error.log;
pid nginx.pid;
events {{ worker_connections 256; }}
http {{
    access_log off;
    sendfile on;
    sendfile_max_chunk 2m;
    tcp_nopush on;
    tcp_nodelay on;
    keepalive_requests 1000000000;
    open_file_cache max=4000 inactive=300s;
    open_file_cache_valid 300s;
    open_file_cache_errors on;
    types {{ text/x-nix-narinfo narinfo; application/x-nix-nar zst; }}
    server {{ listen {address}; root {}; log_not_found off; }}
    client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
}}
",
        root.display()
    )
}

impl Nginx {
    /// Serves `root`. `folder` holds nginx's configuration and logs.
    pub(crate) fn start(folder: &Path, root: &Path) -> Result<Self> {
        fs::create_dir_all(folder).context(|| format!("make {}", folder.display()))?;
        let address = free_address();
        let path = folder.join("nginx.conf");
        fs::write(&path, configuration(root, address)).context(|| format!("write {}", path.display()))?;
        let child = Command::new("nginx")
            .arg("-p")
            .arg(folder)
            .arg("-c")
            .arg(&path)
            // Its workers would switch to another user, which might not be allowed to enter the
            // folder.
            .args(["-g", "daemon off; user root;"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context(|| "start nginx".to_owned())?;
        let nginx = Self { child, address };
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if Connection::open(address, None).is_ok() {
                return Ok(nginx);
            }
            sleep(Duration::from_millis(20));
        }
        Err(Error::new(format!("nginx does not answer; see {}", folder.display())))
    }

    /// CPU seconds of nginx's workers so far.
    pub(crate) fn cpu_seconds(&self) -> Result<f64> {
        let path = format!("/proc/{0}/task/{0}/children", self.child.id());
        let children = fs::read_to_string(&path).context(|| format!("read {path}"))?;
        children.split_ascii_whitespace().filter_map(|pid| pid.parse().ok()).map(process_cpu_seconds).sum()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        terminate(&mut self.child);
    }
}
