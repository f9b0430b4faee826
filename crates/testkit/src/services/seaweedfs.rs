//! SeaweedFS: one process with master, volume server, filer and S3 gateway.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use tempfile::TempDir;

use super::certificates::Certificates;
use super::daemon::{Daemon, free_port};
use super::folder::own_folder;
use super::parts::part;
use super::s3::S3Access;

/// A SeaweedFS server with an empty folder. Dropping the value kills the server and removes the
/// folder.
#[derive(Debug)]
pub struct SeaweedFs {
    // Dropped before its folder.
    daemon: Option<Daemon>,
    folder: TempDir,
    ports: Ports,
    access: S3Access,
    /// Additional arguments.
    more: Vec<String>,
}

/// Each part listens for HTTP and for gRPC.
#[derive(Debug)]
struct Ports([u16; 9]);

impl SeaweedFs {
    /// In a request's `Host`, `bucket.DOMAIN` names a bucket. No resolver knows this domain.
    pub const DOMAIN: &str = "s3.test";

    /// Starts a server and waits until it stores objects.
    pub fn start() -> Self {
        Self::start_with(&[], "")
    }

    /// Starts a server that lets anybody read without credentials.
    pub fn start_readable_by_anybody() -> Self {
        Self::start_with(&[], r#",{"name":"anonymous","actions":["Read"]}"#)
    }

    /// Starts a server that also offers TLS. Returns `https://127.0.0.1:port`, too.
    pub fn start_with_tls(certificates: &Certificates) -> (Self, String) {
        let port = free_port();
        let server = Self::start_with(
            &[
                format!("-s3.port.https={port}"),
                format!("-s3.cert.file={}", certificates.certificate().display()),
                format!("-s3.key.file={}", certificates.key().display()),
            ],
            "",
        );
        (server, format!("https://127.0.0.1:{port}"))
    }

    fn start_with(more: &[String], more_identities: &str) -> Self {
        // Another program may take one of the ports before the server does.
        let mut last = String::new();
        for _ in 0..3 {
            match Self::try_to_start(more.to_owned(), more_identities) {
                Ok(server) => return server,
                Err(why) => last = why,
            }
        }
        panic!("{last}");
    }

    fn try_to_start(more: Vec<String>, more_identities: &str) -> Result<Self, String> {
        let folder = own_folder("seaweedfs");
        let ports = Ports(std::array::from_fn(|_| free_port()));
        let access = S3Access::new(ports.0[6]);
        fs::create_dir(folder.path().join("data")).expect("the folder is new");
        let identities = format!(
            r#"{{"identities":[{{"name":"admin","credentials":[{{"accessKey":"{}","secretKey":"{}"}}],
               "actions":["Admin","Read","Write","List","Tagging"]}}{more_identities}]}}"#,
            access.access_key_id, access.secret_access_key
        );
        fs::write(folder.path().join("s3.json"), identities).expect("the folder is writable");
        let mut server = Self { folder, ports, daemon: None, access, more };
        server.try_to_run().map(|()| server)
    }

    /// `http://127.0.0.1:port`.
    pub fn endpoint(&self) -> &str {
        &self.access.endpoint
    }

    /// Access as a user with all permissions.
    pub fn access(&self) -> &S3Access {
        &self.access
    }

    /// The address of the server's own `/metrics`.
    pub fn metrics_address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.ports.0[8]))
    }

    /// Number of the server's process. Panics if the server does not run.
    pub fn process_id(&self) -> u32 {
        self.daemon.as_ref().expect("it runs").id()
    }

    /// Makes an empty bucket with a unique name.
    pub fn new_bucket(&self) -> String {
        self.access.new_bucket()
    }

    /// Stops the server in an orderly way, which takes a quarter of a minute.
    pub fn stop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.terminate();
        }
    }

    /// Kills the server at once, like a crash.
    pub fn kill(&mut self) {
        self.daemon = None;
    }

    /// Starts the server again with the same ports and data, and waits until it stores objects.
    pub fn restart(&mut self) {
        self.kill();
        self.try_to_run().unwrap_or_else(|why| panic!("{why}"));
    }

    fn try_to_run(&mut self) -> Result<(), String> {
        let daemon = self.daemon.insert(spawn(self.folder.path(), &self.ports, &self.more));
        self.access.wait_until_ready(|| (!daemon.is_running()).then(|| daemon.log_tail()))
    }
}

fn spawn(
    folder: &Path,
    Ports([master, master_grpc, volume, volume_grpc, filer, filer_grpc, s3, s3_grpc, metrics]): &Ports,
    more: &[String],
) -> Daemon {
    let arguments = [
        "-logtostderr=true".to_owned(),
        "server".to_owned(),
        format!("-dir={}", folder.join("data").display()),
        "-ip=127.0.0.1".to_owned(),
        "-ip.bind=127.0.0.1".to_owned(),
        "-master.telemetry=false".to_owned(),
        format!("-master.port={master}"),
        format!("-master.port.grpc={master_grpc}"),
        // A single master needs no other's vote. By default, it waits ten seconds for one after a
        // restart.
        "-master.electionTimeout=1s".to_owned(),
        "-master.heartbeatInterval=200ms".to_owned(),
        // A bucket takes seven volumes. Without room for them, its PUTs fail with 500.
        "-volume.max=700".to_owned(),
        "-master.volumeSizeLimitMB=64".to_owned(),
        "-volume.preStopSeconds=0".to_owned(),
        format!("-volume.port={volume}"),
        format!("-volume.port.grpc={volume_grpc}"),
        "-filer".to_owned(),
        format!("-filer.port={filer}"),
        format!("-filer.port.grpc={filer_grpc}"),
        "-s3".to_owned(),
        format!("-s3.port={s3}"),
        format!("-s3.port.grpc={s3_grpc}"),
        format!("-s3.config={}", folder.join("s3.json").display()),
        "-s3.iam=false".to_owned(),
        // By default, the server creates every bucket that a request names.
        //
        "-s3.autoCreateBucket=false".to_owned(),
        format!("-s3.domainName={}", SeaweedFs::DOMAIN),
        format!("-metricsPort={metrics}"),
        "-s3.port.iceberg=0".to_owned(),
        "-s3.port.lance=0".to_owned(),
    ];
    let arguments: Vec<&str> = arguments.iter().chain(more).map(String::as_str).collect();
    Daemon::spawn(&[], &part("seaweedfs/bin/weed"), &arguments, &folder.join("log"))
}
