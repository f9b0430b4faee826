//! `dormer edge serve`, running.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};

/// A running `dormer edge serve`. Dropped, it is killed.
#[derive(Debug)]
pub struct Host {
    process: Child,
    address: String,
}

impl Host {
    /// Starts one by this command, on a free port.
    pub fn start(command: &mut Command) -> Self {
        let command = command.args(["--listen", "127.0.0.1:0"]).stderr(Stdio::piped());
        let mut process = command.spawn().expect("the binary under test starts");
        let mut line = String::new();
        let said = process.stderr.take().expect("it is a pipe");
        BufReader::new(said).read_line(&mut line).expect("it says where it listens");
        let address = line.trim().strip_prefix("listening on http://");
        let address = address.unwrap_or_else(|| panic!("{line}")).to_owned();
        Self { process, address }
    }

    /// Host and port.
    pub fn address(&self) -> &str {
        &self.address
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // It may be dead already, which is what the test then reports.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
