//! Every limit and waiting time of the server, with its default and the reason for it.

use std::time::Duration;

use dormer_http_host::HostSettings;

use crate::forwarded::Network;

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

/// Limits and choices of a server.
#[derive(Debug, Clone)]
pub struct ServerSettings {
    /// The server's address as its users see it. Without an address, the server believes each
    /// request's `Host` (and `X-Forwarded-Proto` for `https`), which is right behind a proxy that
    /// sets both. It ends with a slash.
    pub api_endpoint: Option<String>,
    /// The address below which Nix finds the caches, if it differs from `api_endpoint`. It ends
    /// with a slash.
    pub substituter_endpoint: Option<String>,
    /// `Host` headers that the server answers, compared without regard to case; empty means all of
    /// them. The server always answers probes, because they come by address.
    pub allowed_hosts: Vec<String>,
    /// The proxies whose reports about the client's address count.
    pub trusted_proxies: Vec<Network>,
    /// Longest metadata of an upload, in bytes, whether in a header or before the NAR.
    pub nar_info_preamble_bytes_max: usize,
    /// Longest JSON body, in bytes: 4 MiB hold a question about 119,000 paths.
    pub json_bytes_max: usize,
    /// Longest build log, decoded, in bytes.
    pub log_bytes_max: usize,
    /// Longest narinfo taken, in bytes: 1 MiB holds some 20,000 references.
    pub narinfo_bytes_max: usize,
    /// Largest part of a push by chunks, in bytes, unless one chunk needs more; at most
    /// [`PART_BYTES_MAX`](dormer_engine::PART_BYTES_MAX).
    pub part_bytes_max: usize,
    /// Memory for bodies that are read whole, and for their parsed form, in bytes, all requests
    /// together.
    pub buffered_bytes_max: usize,
    /// Longest request line and headers together, in bytes. Attic's metadata header takes up to 4
    /// KiB of it.
    pub header_bytes_max: usize,
    /// Most connections at once. A later client takes the place of one that has waited long for a
    /// head; without such a connection it is answered 503.
    pub connections_max: usize,
    /// Most uploads at once, uploads that wait for memory included. More wait as long as the
    /// engine's `upload_wait`.
    pub uploads_max: usize,
    /// Pushes a second that a token may begin, on average of 10 s; 0 means as many as it likes.
    pub push_requests_per_second: u64,
    /// Bytes a second that a token may push, on average of 10 s; 0 means as many as it likes.
    pub push_bytes_per_second: u64,
    /// How long a connection may take to send the head of a request, the wait between two requests
    /// included.
    pub header_timeout: Duration,
    /// How long a request body may pause. An upload that waits for its turn does not pause, because
    /// nobody reads it.
    pub body_idle_timeout: Duration,
    /// Fewest bytes a second of a request body, on average of `body_idle_timeout`; 0 means any
    /// number. Only the time in which the server waits for bytes counts.
    pub body_bytes_per_second_min: u32,
    /// How long a reader may take nothing of an answer.
    pub write_idle_timeout: Duration,
    /// Longest upload. Code that deletes packs must spare packs that are younger than this.
    pub upload_timeout: Duration,
    /// How long the server goes on after it was asked to stop. Only `/readyz` changes, to "no", and
    /// each connection is closed after its next answer. Load balancers need this long to notice; 0
    /// fits where there are none.
    pub drain_delay: Duration,
    /// How long requests in flight may then take to finish.
    pub shutdown_timeout: Duration,
    /// What `Retry-After` says on a 503, in seconds, rounded up.
    pub retry_after: Duration,
    /// Most uploads that are read back in their own compression at once. Each takes a CPU, and up
    /// to 4 MiB beside the bytes that are read.
    pub reencodings_max: usize,
    /// Whether `/_dormer/stats` is answered.
    pub stats: bool,
    /// Whether there are pages for people. Without them, `/` is a line of text for everybody.
    pub pages: bool,
    /// Whether spans of requests are exported, so that more detail in them is worth its cost.
    pub traces: bool,
}

/// Largest body of a commit of a session, in bytes: the manifest of a NAR of 90 GiB.
pub(crate) const COMMIT_BYTES_MAX: usize = 24 * MIB;

/// Memory that re-encoding one answer takes, in bytes, beside what is read for it.
const REENCODING_BYTES: u64 = 4 * MIB as u64;

impl ServerSettings {
    /// The limits of the clients' listener.
    pub(crate) fn host(&self) -> HostSettings {
        HostSettings {
            connections_max: self.connections_max,
            header_bytes_max: self.header_bytes_max,
            header_timeout: self.header_timeout,
            write_idle_timeout: self.write_idle_timeout,
            drain_delay: self.drain_delay,
            shutdown_timeout: self.shutdown_timeout,
        }
    }

    /// Most memory that requests take together, in bytes: a part of the sum in
    /// docs/ARCHITECTURE.md.
    pub fn memory_bytes_max(&self) -> u64 {
        let document_bytes_max = self.log_bytes_max.max(dormer_nix::BUILD_TRACE_BYTES_MAX);
        let body_bytes_max = self.json_bytes_max.max(self.narinfo_bytes_max).max(document_bytes_max) as u64;
        self.buffered_bytes_max as u64
            + crate::body_memory::handling_bytes(body_bytes_max).max(COMMIT_BYTES_MAX as u64)
            + self.reencodings_max as u64 * REENCODING_BYTES
    }
}

impl Default for ServerSettings {
    fn default() -> Self {
        Self {
            api_endpoint: None,
            substituter_endpoint: None,
            allowed_hosts: Vec::new(),
            trusted_proxies: Network::loopback(),
            nar_info_preamble_bytes_max: MIB,
            json_bytes_max: 4 * MIB,
            log_bytes_max: 4 * MIB,
            narinfo_bytes_max: MIB,
            part_bytes_max: dormer_engine::PART_BYTES_MAX,
            buffered_bytes_max: 16 * MIB,
            header_bytes_max: 64 * KIB,
            connections_max: 1024,
            uploads_max: 256,
            push_requests_per_second: 0,
            push_bytes_per_second: 0,
            // Longer than a client thinks between two requests, short enough that idle connections
            // do not pile up.
            header_timeout: Duration::from_secs(75),
            body_idle_timeout: Duration::from_mins(1),
            // A modem sends this much. Without a limit, a few bodies that come byte by byte would
            // hold all the memory for uploads.
            body_bytes_per_second_min: 4 * 1024,
            // Nix pauses a download while it unpacks; nginx allows 60 s between two writes.
            write_idle_timeout: Duration::from_mins(2),
            upload_timeout: Duration::from_hours(24),
            drain_delay: Duration::ZERO,
            shutdown_timeout: Duration::from_secs(30),
            retry_after: Duration::from_secs(5),
            reencodings_max: 4,
            stats: false,
            pages: true,
            traces: false,
        }
    }
}
