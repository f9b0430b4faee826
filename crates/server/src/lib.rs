//! The HTTP server: the Nix binary-cache protocol in both directions, Attic's API, and ours.
//!
//! Layer: shell over the engine. A handler translates a request into one or two engine calls, and
//! their outcome into an answer; it decides nothing. docs/HTTP-API.md is the contract; tests check
//! each row of its status table.
//!
//! Where to look
//! - [`Server`]: a server over one engine; `dormer-http-host` owns its connections, time-outs and
//!   shutdown.
//! - `dispatch`: sends a request to its handler and logs the outcome once; `app` is what all
//!   requests share.
//! - `exchange`: one request watched to the last byte of its answer.
//! - [`Metrics`]: everything that is counted; `metrics_page` is the listener that shows it, and
//!   `publish_metrics` its part about publishing. `health` asks the database and the store for
//!   `/readyz`.
//! - `figures`: the metrics as numbers. [`Operations`]: what operators look at beside requests.
//! - `long_answer`: the memory of answers while readers take them.
//! - `route` and `page_route`: from a path to a typed route; no other module reads paths.
//! - `handlers::people`: pages for people, and their sessions; every other handler serves programs.
//! - `failure`: the one table from an error to its status.
//! - `forwarded`: the address that clients use, as trusted proxies report it.
//! - `auth` and `access`: tokens, and the rule that a caller without permissions learns nothing.
//! - `codec`: the compressions of uploads, with the memory that each may take.

mod access;
mod app;
mod auth;
mod body;
mod body_memory;
mod call;
mod codec;
mod conditions;
mod decoder;
mod dispatch;
mod exact;
mod exchange;
mod failure;
mod figures;
mod forwarded;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz_targets;
mod handlers;
mod health;
mod long_answer;
mod metrics;
mod metrics_page;
mod operations;
mod page_route;
mod process;
mod publish_metrics;
mod push_rate;
mod reencode;
mod request_body;
mod route;
mod server;
mod session_cookie;
mod settings;
mod shares;
mod trace_context;

pub use auth::Authenticator;
pub use dormer_api::TokenBounds;
pub use dormer_edge::{KeyError, TokenKey, TokenVerifier};
pub use dormer_http_host::{Error, REFUSED_MAX};
pub use forwarded::{Network, NetworkError};
pub use metrics::{Described, Metrics, RegisterError};
pub use operations::Operations;
pub use server::Server;
pub use settings::ServerSettings;
