//! The client: settings, the local Nix store, push planning, transfers. Reports events, never prints.
//!
//! ```text
//! arguments ─ NixStore::resolve ─► store paths ─ NixStore::path_infos ─► PathInfo…
//!                                                                           │  ApiClient::get_missing_paths
//!                                                          plan_push ◄──────┘
//!                                                             │  PushPlan: what a dry run shows
//!                                                        execute_push ── NarSource (file system → NAR) ── ApiClient::upload_path
//!                                                             │  PushReporter: events on the way
//!                                                         PushSummary
//! ```
//!
//! Rules
//! - A NAR is never held in memory: at most [`NAR_STREAM_BYTES_MAX`] of one, whatever its size.
//! - A NAR is hashed while it is read, and its last piece is sent only when the hash is right: a damaged store path
//!   never arrives whole.
//! - Dropping any future here is safe: what the server was told completely, it has, and of the rest nothing is visible.

mod api;
mod dump;
mod endpoint;
mod error;
pub mod fuzz_targets;
mod look;
mod nar_stream;
mod nix_config;
mod nix_store;
mod path_info;
mod push;
mod reporter;
mod retry;
mod settings;

pub use api::{ApiClient, HttpSettings, Uploaded};
pub use dump::{CaseHack, DumpError, dump_nar};
pub use endpoint::Endpoint;
pub use error::{Error, Result};
pub use look::{Seen, look};
pub use nar_stream::{NAR_STREAM_BYTES_MAX, NarSource};
pub use nix_config::NixConfig;
pub use nix_store::NixStore;
pub use path_info::PathInfo;
pub use push::{
    FailedPath, MISSING_PATHS_BATCH_MAX, PushOptions, PushPlan, PushSummary, execute_push, plan_push,
    split_upstream,
};
pub use reporter::{PathDone, PushReporter, Retry, RetryReporter, Silent, TransferId, UploadReporter};
pub use retry::RetryPolicy;
pub use settings::{
    CacheRef, LoadedSettings, ResolvedServer, ServerName, ServerSettings, Settings, SettingsPaths, Variables,
    process_variables,
};
