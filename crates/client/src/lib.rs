//! The client: settings, the local Nix store, push planning, transfers. It reports events and never
//! prints.
//!
//! ```text
//! arguments ─ NixStore::resolve ─► store paths ─ NixStore::path_infos ─► PathInfo…
//!                                                                           │  ApiClient::get_missing_paths
//!                                                          plan_push ◄──────┘
//!                                                             │  PushPlan: what a dry run shows
//!                                                       execute_push_to ─┬─ by_chunks: NAR → chunks → parts → commit
//!                                                             │          └─ Attic's API: NarSource ── ApiClient::upload_path
//!                                                             │  PushReporter: events on the way
//!                                                         PushSummary
//! ```
//!
//! Rules
//! - The client never holds a whole NAR in memory: at most [`NAR_STREAM_BYTES_MAX`] of one, or the
//!   budgets of `by_chunks`, whatever its size.
//! - The client hashes a NAR during reading and sends the last piece, or commits the path, only if
//!   the hash is right. A damaged store path therefore never arrives complete.
//! - Builds reach the caches by themselves through a folder on the disk ([`queue`]).
//! - No path becomes visible before its references (`push_order`).
//! - A token goes to the server that the user chose, and nowhere else (`redirects`).
//! - Dropping any future here is safe: the server keeps complete requests, and shows nothing of an
//!   incomplete one.

mod api;
mod build_logs;
mod build_traces;
mod by_chunks;
mod certificates;
mod decoded_file;
mod dump;
mod durable_file;
mod endpoint;
mod error;
mod fetch_error;
mod fetched_nar;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz_targets;
mod import;
mod links;
mod nar_stream;
mod netrc;
mod nix_config;
mod nix_store;
mod pages;
mod path_info;
mod probe;
mod push;
mod push_filter;
mod push_order;
mod push_plan;
pub mod queue;
mod rate_limit;
mod redirects;
mod reporter;
mod retry;
mod settings;
mod static_cache;
mod store_location;
mod substituter_url;
mod token_expiry;
mod units;

pub use api::{AcknowledgedUpload, ApiClient, FileDownload, HttpSettings};
pub use build_logs::{BuildLog, BuildLogs};
pub use build_traces::{TraceSummary, push_traces};
pub use by_chunks::{PushApi, PushTarget, TransferOptions, execute_push_to, session_folder};
pub use dump::{CaseHack, DumpError, dump_nar};
pub use durable_file::{create_file, replace_file};
pub use endpoint::Endpoint;
pub use error::{Error, Result};
pub use fetch_error::FetchError;
pub use import::{ImportFailure, ImportOptions, ImportReporter, ImportSource, ImportSummary, import};
pub use links::link_target;
pub use nar_stream::{NAR_STREAM_BYTES_MAX, NarFailure, NarSource, OpenNar};
pub use netrc::{
    NETRC_LINE_BYTES_MAX, NETRC_LINE_ROOM, NETRC_TOO_LONG, NetrcEntry, host_of, netrc_entries,
    netrc_hidden_hosts, netrc_password, netrc_without_passwords,
};
pub use nix_config::NixConfig;
pub use nix_store::{NixStore, nix_program};
pub use pages::PageGuard;
pub use path_info::PathInfo;
pub use probe::{ProbeAnswer, probe};
pub use push::{
    FailedPath, MISSING_PATHS_BATCH_MAX, NotTriedPath, PushOptions, PushSummary, execute_push, plan_push,
    split_upstream,
};
pub use push_filter::{ByteSize, ExcludedPath, Exclusion, IncompletePath, NamePattern, PushFilter};
pub use push_plan::{AddressedOutput, PlannedDeriver, PushPlan};
pub use rate_limit::RateLimit;
pub use reporter::{PathDone, PushReporter, Retry, RetryReporter, Silent, TransferId, UploadReporter};
pub use retry::RetryPolicy;
pub use settings::{
    CacheFilterSettings, CacheRef, ENDPOINT_VARIABLE, GENERAL_TOKEN_VARIABLE, LoadedSettings,
    MACHINE_SETTINGS, PushSettings, QueueSettings, ResolvedServer, ServerName, ServerSettings, Settings,
    SettingsPaths, Variables, process_variables,
};
pub use static_cache::{FileStream, StaticCache, WebCache, file_name_in_cache};
pub use substituter_url::SubstituterUrl;
pub use token_expiry::token_expiry;
pub use units::parse_size;
