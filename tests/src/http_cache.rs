//! Real HTTP caches before a host: nginx with `proxy_cache`, and Varnish.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use dormer_testkit::services::free_port;
use tempfile::TempDir;

use crate::{part, parts};

/// Varnish compiles its rules with gcc before it listens.
const READY_TIMEOUT: Duration = Duration::from_mins(1);

/// A running HTTP cache. It ends on drop.
#[derive(Debug)]
pub struct HttpCache {
    name: &'static str,
    address: String,
    process: Child,
    folder: TempDir,
}

impl HttpCache {
    /// nginx before a host (`upstream` is its host and port). It keeps for ten minutes whatever the
    /// host does not forbid.
    pub fn nginx(upstream: &str) -> Self {
        let (folder, address) = place("nginx-cache-");
        let configuration = format!(
            "error_log error.log;\npid nginx.pid;\nevents {{}}\nhttp {{\n  access_log off;\n  \
             proxy_cache_path cache keys_zone=all:1m;\n  proxy_cache all;\n  proxy_cache_valid any 10m;\n  \
             proxy_http_version 1.1;\n  client_max_body_size 0;\n  add_header X-Cache $upstream_cache_status always;\n  \
             server {{ listen {address}; location / {{ proxy_pass http://{upstream}; }} }}\n  \
             client_body_temp_path body; proxy_temp_path proxy;\n  \
             fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;\n}}\n"
        );
        let path = written(folder.path(), "nginx.conf", &configuration);
        let mut command = Command::new(part("nginx/usr/sbin/nginx"));
        command.arg("-p").arg(folder.path()).arg("-c").arg(path);
        // One process, which may read what we may read.
        command.args(["-g", "daemon off; master_process off;", "-e", "error.log"]);
        Self::start("nginx", command, folder, address)
    }

    /// Varnish before a host, with its own defaults but one: it also looks up requests that carry a
    /// token, as many of its users let it.
    pub fn varnish(upstream: &str) -> Self {
        let (folder, address) = place("varnish-");
        let (host, port) = upstream.split_once(':').expect("host and port");
        let rules = format!(
            "vcl 4.1;\nbackend host {{ .host = \"{host}\"; .port = \"{port}\"; }}\n\
             sub vcl_recv {{ if (req.method == \"GET\" && req.http.Authorization) {{ return (hash); }} }}\n"
        );
        let path = written(folder.path(), "rules.vcl", &rules);
        let program = part("varnish/usr/sbin/varnishd");
        let libraries = fs::read_dir(part("varnish/usr/lib")).expect("a folder of the package");
        let libraries = libraries.map(|entry| entry.expect("it can be read").path());
        let libraries: Vec<String> = libraries.map(|path| path.display().to_string()).collect();
        let mut command = Command::new(program);
        // Its users do not exist here, and its log in memory is 80 MB by default.
        command.args(["-F", "-j", "none", "-T", "none", "-p", "vsl_space=1m", "-s", "malloc,64m"]);
        command.arg("-n").arg(folder.path().join("work")).args(["-a", &address]).arg("-f").arg(path);
        command.env("LD_LIBRARY_PATH", libraries.join(":"));
        Self::start("varnish", command, folder, address)
    }

    fn start(name: &'static str, mut command: Command, folder: TempDir, address: String) -> Self {
        let log = fs::File::create(folder.path().join("output.log")).expect("the folder is new");
        let output = log.try_clone().expect("a file handle can be cloned");
        let process = command.stdin(Stdio::null()).stdout(output).stderr(log).spawn();
        let mut cache = Self { name, address, process: process.expect("it starts"), folder };
        let begin = Instant::now();
        while TcpStream::connect(&cache.address).is_err() {
            let ended = cache.process.try_wait().expect("our own child can be waited for");
            let log = || fs::read_to_string(cache.folder.path().join("output.log")).unwrap_or_default();
            assert!(
                ended.is_none() && begin.elapsed() < READY_TIMEOUT,
                "{name} does not listen: {ended:?}\n{}",
                log()
            );
            thread::sleep(Duration::from_millis(20));
        }
        cache
    }

    /// The program's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Host and port.
    pub fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for HttpCache {
    fn drop(&mut self) {
        // Varnish's child ends with the pipe to its parent. The parent may be dead already, which
        // is what the test then reports.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn place(prefix: &str) -> (TempDir, String) {
    let folder = tempfile::Builder::new().prefix(prefix).tempdir_in(parts::scratch_folder());
    (folder.expect("a folder"), format!("127.0.0.1:{}", free_port()))
}

fn written(folder: &Path, name: &str, text: &str) -> std::path::PathBuf {
    let path = folder.join(name);
    fs::write(&path, text).expect("the folder is new");
    path
}
