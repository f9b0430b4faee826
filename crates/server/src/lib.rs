//! The HTTP server: the Nix binary-cache protocol in both directions, Attic's API, and ours.
//!
//! Layer: shell over the engine. A handler translates a request into one or two engine calls and their outcome into an
//! answer; it decides nothing. docs/HTTP-API.md is the contract; the tests hold each row of its status table.
//!
//! Where to look
//! - [`Server`]: connections, time-outs, shutdown; `app` sends a request to its handler and logs the outcome once.
//! - `exchange`: one request watched to the last byte of its answer; [`Metrics`] is what is counted, [`serve_metrics`] where
//!   it is read, `publish_metrics` what it shows of publishing; `health` says whether to send requests here.
//! - `route`: from a path to a typed route; there is no other place that reads paths.
//! - `failure`: the one table from an error to its status.
//! - `auth` and `access`: tokens, and the rule that a caller without permissions learns nothing.
//! - [`edge`]: the other server, of a published layout, which knows no engine.
//! - `codec`: the compressions of uploads, with the memory each may take.

mod access;
mod app;
mod auth;
mod body;
mod call;
mod codec;
mod conditions;
pub mod edge;
mod exact;
mod exchange;
mod failure;
pub mod fuzz_targets;
mod handlers;
mod health;
mod metrics;
mod process;
mod publish_metrics;
mod push_rate;
mod reencode;
mod request_body;
mod route;
mod scrape;
mod serve;
mod settings;
mod socket;
mod trace_context;

pub use auth::{Authenticator, KeyError, TokenKey};
pub use metrics::{Described, Metrics, RegisterError};
pub use scrape::serve_metrics;
pub use serve::{Error, Server, TURNED_AWAY_MAX, serve};
pub use settings::ServerSettings;
