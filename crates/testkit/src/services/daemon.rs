//! A child process that ends with the test program, even if the test program is killed.

use std::collections::BTreeSet;
use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

/// A running program. Dropping the value kills the program.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: PathBuf,
    // Dropping this ends the thread that started the child; see `spawn`.
    _keep_thread: mpsc::Sender<()>,
}

impl Daemon {
    /// Starts a program in the foreground. Its output goes to `log`. `setpriv` takes more options
    /// if the program must not run as root: `["--reuid=postgres", "--regid=postgres",
    /// "--init-groups"]`.
    ///
    /// The kernel kills the child when the *thread* that started it ends. Therefore a thread that
    /// lives as long as the value starts the child: a test's own thread ends before its program
    /// does.
    pub fn spawn(setpriv: &[&str], program: &Path, arguments: &[&str], log: &Path) -> Self {
        let output = File::options().create(true).append(true).open(log).expect("the log can be written");
        let mut command = Command::new("setpriv");
        command.args(setpriv).args(["--pdeathsig", "KILL", "--"]).arg(program).args(arguments);
        command.stdin(Stdio::null()).stdout(output.try_clone().expect("a second handle")).stderr(output);
        let (keep_thread, until_dropped) = mpsc::channel::<()>();
        let (send_child, child) = mpsc::channel();
        thread::spawn(move || {
            send_child.send(command.spawn()).expect("somebody waits for the child");
            // An error means that the value was dropped.
            let _ = until_dropped.recv();
        });
        let child = child.recv().expect("the thread answers");
        let child = child.unwrap_or_else(|error| panic!("start {}: {error}", program.display()));
        Self { child, log: log.to_owned(), _keep_thread: keep_thread }
    }

    /// Number of the process. It is the program itself, because `setpriv` becomes the program.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Whether the program still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Kills the program at once, like a crash.
    pub fn kill(&mut self) {
        // Both fail only if the program has already ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Asks the program to end, waits for at most 20 seconds, and then kills it.
    pub fn terminate(&mut self) {
        // Fails only if the program has already ended.
        let _ = Command::new("kill").args(["-TERM", &self.id().to_string()]).stderr(Stdio::null()).status();
        let begin = Instant::now();
        while self.is_running() && begin.elapsed() < Duration::from_secs(20) {
            thread::sleep(Duration::from_millis(50));
        }
        self.kill();
    }

    /// The end of the program's output, for the message of a failure.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read(&self.log).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A port that nobody listens on now. Lies below the ports for outgoing connections (from 32,768
/// on): any client on this machine could take one of those before the server listens.
pub fn free_port() -> u16 {
    const TRIES: usize = 100;
    // Ports given out so far. A caller listens on its port only later, and nine ports of a server
    // would otherwise collide once in 600 starts.
    static GIVEN: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());
    let mut given = GIVEN.lock().unwrap_or_else(PoisonError::into_inner);
    let is_free =
        |port: &u16| !given.contains(port) && TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    let port = std::iter::repeat_with(|| rand::random_range(10_000..32_768)).take(TRIES).find(is_free);
    let port = port.expect("127.0.0.1 has a free port");
    given.insert(port);
    port
}

/// Checks every 50 ms until the answer is yes. Panics with `what` after `limit`.
pub fn wait_until(what: &str, limit: Duration, mut is_so: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !is_so() {
        assert!(begin.elapsed() < limit, "not within {limit:?}: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}
