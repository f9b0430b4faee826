//! Ceph: one monitor, one OSD in memory, one RADOS gateway.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use rand::random;
use tempfile::TempDir;

use super::daemon::{Daemon, free_port, wait_until};
use super::folder::own_folder;
use super::s3::S3Access;

/// Ceph's own commands answer within seconds, or never if the monitor is missing.
const COMMAND_LIMIT_SECONDS: &str = "60";

/// A Ceph cluster with one node. Dropping the value kills the cluster and removes its folder.
///
/// The objects live in the memory of the OSD. [`kill`](Self::kill) and [`restart`](Self::restart)
/// act on the gateway only.
#[derive(Debug)]
pub struct CephRgw {
    // In the order of dropping: the gateway waits for the others.
    gateway: Option<Daemon>,
    _osd: Daemon,
    _monitor: Daemon,
    folder: TempDir,
    access: S3Access,
}

impl CephRgw {
    /// Starts a cluster and waits until it stores objects.
    pub fn start() -> Self {
        let folder = own_folder("ceph");
        let root = folder.path();
        let access = S3Access::new(free_port());
        for name in ["run", "mon", "osd", "log"] {
            fs::create_dir(root.join(name)).expect("the folder is new");
        }
        let (cluster, monitor_port) = (uuid(), free_port());
        let port = access.endpoint.rsplit(':').next().expect("an endpoint has a port");
        fs::write(root.join("ceph.conf"), configuration(root, &cluster, monitor_port, port))
            .expect("the folder is writable");

        let keyring = root.join("keyring").display().to_string();
        let map = root.join("monmap").display().to_string();
        let all = ["--cap", "mon", "allow *", "--cap", "osd", "allow *", "--cap", "mgr", "allow *"];
        run(
            "ceph-authtool",
            &["--create-keyring", &keyring, "--gen-key", "-n", "mon.", "--cap", "mon", "allow *"],
        );
        run(
            "ceph-authtool",
            &[&[keyring.as_str(), "--gen-key", "-n", "client.admin"], all.as_slice()].concat(),
        );
        run("ceph-authtool", &[&[keyring.as_str(), "--gen-key", "-n", "client.rgw"], &all[..6]].concat());
        run(
            "ceph-authtool",
            &[
                &keyring,
                "--gen-key",
                "-n",
                "osd.0",
                "--cap",
                "mon",
                "allow profile osd",
                "--cap",
                "osd",
                "allow *",
            ],
        );
        let address = format!("[v2:127.0.0.1:{monitor_port}]");
        run("monmaptool", &["--create", "--addv", "a", &address, "--fsid", &cluster, "--clobber", &map]);

        let conf = root.join("ceph.conf").display().to_string();
        run("ceph-mon", &["-c", &conf, "-i", "a", "--mkfs", "--monmap", &map, "--keyring", &keyring]);
        let daemon = |program: &str, arguments: &[&str]| {
            // `-d`: runs in the foreground and logs to standard error.
            let arguments = [&["-d", "-c", conf.as_str()], arguments].concat();
            Daemon::spawn(&[], &find(program), &arguments, &root.join(format!("log/{program}")))
        };
        let monitor = daemon("ceph-mon", &["-i", "a"]);
        let osd_id = uuid();
        wait_until("the monitor takes an OSD", Duration::from_mins(1), || {
            Command::new("timeout")
                .args([COMMAND_LIMIT_SECONDS, "ceph", "-c", &conf, "osd", "new", &osd_id])
                .output()
                .is_ok_and(|output| output.status.success())
        });
        run("ceph-osd", &["-c", &conf, "-i", "0", "--mkfs", "--osd-uuid", &osd_id]);
        let osd = daemon("ceph-osd", &["-i", "0"]);
        let mut server = Self { gateway: None, _osd: osd, _monitor: monitor, folder, access };
        server.start_gateway();
        let user = ["-c", &conf, "-n", "client.rgw", "user", "create", "--uid=test", "--display-name=test"];
        let keys = [
            format!("--access-key={}", server.access.access_key_id),
            format!("--secret-key={}", server.access.secret_access_key),
        ];
        run("radosgw-admin", &[user.as_slice(), &[&keys[0], &keys[1]]].concat());
        server.wait_until_ready();
        server
    }

    /// `http://127.0.0.1:port`.
    pub fn endpoint(&self) -> &str {
        &self.access.endpoint
    }

    /// Access as a user with all permissions.
    pub fn access(&self) -> &S3Access {
        &self.access
    }

    /// Makes an empty bucket with a unique name.
    pub fn new_bucket(&self) -> String {
        self.access.new_bucket()
    }

    /// Stops the gateway in an orderly way.
    pub fn stop(&mut self) {
        if let Some(mut gateway) = self.gateway.take() {
            gateway.terminate();
        }
    }

    /// Kills the gateway at once, like a crash.
    pub fn kill(&mut self) {
        self.gateway = None;
    }

    /// Starts the gateway again, and waits until it stores objects.
    pub fn restart(&mut self) {
        self.kill();
        self.start_gateway();
        self.wait_until_ready();
    }

    fn start_gateway(&mut self) {
        let root = self.folder.path();
        let conf = root.join("ceph.conf").display().to_string();
        let arguments = ["-d", "-c", &conf, "-n", "client.rgw"];
        self.gateway = Some(Daemon::spawn(&[], &find("radosgw"), &arguments, &root.join("log/radosgw")));
    }

    fn wait_until_ready(&mut self) {
        let gateway = self.gateway.as_mut().expect("the gateway was started");
        let ready = self.access.wait_until_ready(|| (!gateway.is_running()).then(|| gateway.log_tail()));
        ready.unwrap_or_else(|why| panic!("{why}"));
    }
}

fn uuid() -> String {
    let [a, b, c, d] = random::<[u16; 4]>();
    // Version 4, variant 1.
    format!(
        "{:08x}-{a:04x}-4{:03x}-8{:03x}-{c:04x}{d:04x}{:04x}",
        random::<u32>(),
        b & 0xfff,
        b >> 4,
        random::<u16>()
    )
}

/// Debian installs some of the programs in `/usr/sbin`, which is not in every search path.
fn find(program: &str) -> PathBuf {
    ["/usr/bin", "/usr/sbin", "/usr/local/bin"]
        .iter()
        .map(|folder| Path::new(folder).join(program))
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("{program} is missing: run scripts/get-services.sh"))
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new("timeout")
        .arg(COMMAND_LIMIT_SECONDS)
        .arg(find(program))
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("start {program}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {said}");
}

/// The smallest cluster that is healthy enough to store objects.
fn configuration(root: &Path, cluster: &str, monitor_port: u16, gateway_port: &str) -> String {
    let root = root.display();
    format!(
        "[global]
fsid = {cluster}
mon_host = [v2:127.0.0.1:{monitor_port}]
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
ms_bind_msgr1 = false
ms_bind_port_min = 20000
ms_bind_port_max = 32000
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
auth_allow_insecure_global_id_reclaim = false
keyring = {root}/keyring
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 4
osd_pool_default_pgp_num = 4
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
mon_warn_on_pool_no_redundancy = false
mon_data_avail_crit = 1
mon_data_avail_warn = 2
run_dir = {root}/run
admin_socket = {root}/run/$name.$pid.asok
pid_file = {root}/run/$name.pid
crash_dir = {root}/log
mon_data = {root}/mon
osd_data = {root}/osd
osd_objectstore = memstore
memstore_device_bytes = 2147483648
osd_class_load_list = *
osd_class_default_list = *
[client.rgw]
rgw_frontends = beast endpoint=127.0.0.1:{gateway_port}
rgw_thread_pool_size = 32
rgw_enable_usage_log = false
"
    )
}
