//! Real HTTP proxies before a host: nginx, HAProxy and Varnish, as caches or without memory.

use std::fmt::Write as _;
use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use dormer_testkit::services::free_port;
use tempfile::TempDir;

use crate::{ContainerHost, part, parts};

/// Varnish compiles its rules with gcc before it listens.
const READY_TIMEOUT: Duration = Duration::from_mins(1);

/// A running HTTP proxy. It ends on drop.
#[derive(Debug)]
pub struct HttpProxy {
    name: &'static str,
    address: String,
    process: Child,
    folder: TempDir,
}

impl HttpProxy {
    /// nginx before a host (`upstream` is its host and port). It keeps for ten minutes whatever the
    /// host does not forbid.
    pub fn nginx_cache(upstream: &str) -> Self {
        Self::nginx(
            "proxy_cache_path cache keys_zone=all:1m;\n  proxy_cache all;\n  proxy_cache_valid any 10m;\n  \
             proxy_http_version 1.1;\n  client_max_body_size 0;\n  add_header X-Cache $upstream_cache_status always;\n",
            &format!("location / {{ proxy_pass http://{upstream}; }}"),
        )
    }

    /// nginx with nothing but `proxy_pass`: HTTP/1.0, the inner host's name, and no word about the
    /// address of the proxy.
    pub fn nginx_bare(upstream: &str) -> Self {
        Self::nginx("", &format!("location / {{ proxy_pass http://{upstream}; }}"))
    }

    /// nginx that refuses bodies of more than `size`, and keeps a body until all of it is there.
    pub fn nginx_limiting(upstream: &str, size: &str) -> Self {
        Self::nginx(
            &format!("client_max_body_size {size};\n"),
            &format!("location / {{ proxy_pass http://{upstream}; }}"),
        )
    }

    /// nginx that serves a host below a path such as `/nix`, and also keeps quiet about it.
    pub fn nginx_below(upstream: &str, prefix: &str) -> Self {
        Self::nginx("", &format!("location {prefix}/ {{ proxy_pass http://{upstream}/; }}"))
    }

    /// The same, with headers that report the address.
    pub fn nginx_below_with_headers(upstream: &str, prefix: &str) -> Self {
        let headers = format!(
            "proxy_set_header X-Forwarded-Proto $scheme; proxy_set_header X-Forwarded-Host $http_host; \
             proxy_set_header X-Forwarded-Prefix {prefix};"
        );
        Self::nginx("", &format!("location {prefix}/ {{ proxy_pass http://{upstream}/; {headers} }}"))
    }

    fn nginx(settings: &str, location: &str) -> Self {
        let (folder, address) = place("nginx-proxy-");
        let configuration = format!(
            "error_log error.log;\npid nginx.pid;\nevents {{}}\nhttp {{\n  access_log off;\n  {settings}  \
             server {{ listen {address}; {location} }}\n  \
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

    /// HAProxy that serves a host below a path, gives the host another name, and reports the
    /// address in the headers `X-Forwarded-…`.
    pub fn haproxy_below(upstream: &str, prefix: &str) -> Self {
        Self::haproxy(
            upstream,
            &format!(
                "  option forwardfor\n  http-request set-header X-Forwarded-Proto http\n  \
                 http-request set-header X-Forwarded-Host %[req.hdr(Host)]\n  \
                 http-request set-header X-Forwarded-Prefix {prefix}\n  \
                 http-request replace-path {prefix}/(.*) /\\1\n"
            ),
        )
    }

    /// HAProxy that gives the host another name, and reports the address in the header `Forwarded`.
    pub fn haproxy_forwarded(upstream: &str) -> Self {
        let value = r#""for=%[src];host=\"%[req.hdr(Host)]\";proto=http""#;
        Self::haproxy(upstream, &format!("  http-request set-header Forwarded {value}\n"))
    }

    fn haproxy(upstream: &str, rules: &str) -> Self {
        let (folder, address) = place("haproxy-");
        let configuration = format!(
            "global\n  maxconn 100\ndefaults\n  mode http\n  timeout connect 10s\n  timeout client 60s\n  \
             timeout server 60s\nfrontend all\n  bind {address}\n{rules}  default_backend lab\n\
             backend lab\n  http-request set-header Host inner.invalid\n  server lab {upstream}\n"
        );
        let path = written(folder.path(), "haproxy.cfg", &configuration);
        let mut command = Command::new(part("haproxy/usr/sbin/haproxy"));
        command.arg("-db").arg("-f").arg(path).env("LD_LIBRARY_PATH", libraries("haproxy"));
        Self::start("haproxy", command, folder, address)
    }

    /// HAProxy in the network of containers, on port 80 of all addresses, before servers that may
    /// come and go. It asks each one at `/readyz` on the port of its metrics whether to send
    /// requests there, as Kubernetes does for a Service.
    pub fn haproxy_of_containers(host: &ContainerHost, servers: &[String]) -> Self {
        let mut backend = "  balance roundrobin\n  option httpchk GET /readyz\n  \
                           default-server check port 9464 inter 500ms fall 2 rise 1\n"
            .to_owned();
        for (number, server) in servers.iter().enumerate() {
            let _ = writeln!(backend, "  server replica{number} {server}:8080");
        }
        Self::haproxy_in_network(host, &backend)
    }

    /// HAProxy in the place of a Gateway, on port 80 of all addresses of a node, before a Service
    /// (`service` is its address and port). The Service chooses the pods.
    pub fn haproxy_of_service(host: &ContainerHost, service: &str) -> Self {
        Self::haproxy_in_network(host, &format!("  server service {service}\n"))
    }

    fn haproxy_in_network(host: &ContainerHost, backend: &str) -> Self {
        let (folder, _) = place("haproxy-");
        let configuration = format!(
            "global\n  maxconn 100\n  log stdout format raw local0\ndefaults\n  mode http\n  log global\n  \
             option httplog\n  timeout connect 5s\n  \
             timeout check 5s\n  timeout client 60s\n  timeout server 60s\n  retries 3\n  option redispatch\n\
             frontend all\n  bind 0.0.0.0:80\n  default_backend lab\nbackend lab\n{backend}"
        );
        let path = written(folder.path(), "haproxy.cfg", &configuration);
        let mut command = host.in_network("env");
        command.arg(format!("LD_LIBRARY_PATH={}", libraries("haproxy")));
        command.arg(part("haproxy/usr/sbin/haproxy")).arg("-db").arg("-f").arg(path);
        Self::start("haproxy", command, folder, format!("{}:80", host.address()))
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
        let mut command = Command::new(program);
        // Its users do not exist here, and its log in memory is 80 MB by default.
        command.args(["-F", "-j", "none", "-T", "none", "-p", "vsl_space=1m", "-s", "malloc,64m"]);
        command.arg("-n").arg(folder.path().join("work")).args(["-a", &address]).arg("-f").arg(path);
        command.env("LD_LIBRARY_PATH", libraries("varnish"));
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

    /// What it said so far.
    pub fn output(&self) -> String {
        fs::read_to_string(self.folder.path().join("output.log")).unwrap_or_default()
    }
}

impl Drop for HttpProxy {
    fn drop(&mut self) {
        // Varnish's child ends with the pipe to its parent. The parent may be dead already, which
        // is what the test then reports.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The folders with the libraries that came with a package.
fn libraries(package: &str) -> String {
    let folders = fs::read_dir(part(&format!("{package}/usr/lib"))).expect("a folder of the package");
    let folders = folders.map(|entry| entry.expect("it can be read").path());
    let folders: Vec<String> = folders.map(|path| path.display().to_string()).collect();
    folders.join(":")
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
