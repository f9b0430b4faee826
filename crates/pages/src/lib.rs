//! Pages for people, without I/O: from a view model to HTML.
//!
//! Layer: pure. A host reads what a page shows into a view model of plain texts and numbers, and
//! gets a whole page back. The crate knows no HTTP, no clock and no runtime, needs no C, and builds
//! for wasm32.
//!
//! Invariants
//! - Every text of a view model is foreign: names, logs and signatures may hold anything. Only the
//!   template engine writes them, and it escapes them. No other code in this crate makes markup
//!   (`PreEscaped` stands nowhere outside of the style's and the script's tests).
//! - No character of a page hides or is obeyed ([`is_hidden`]): such a character is shown as
//!   `\u{202e}`. [`Frame`] sees to it, whatever a page holds. No page offers a text for copying
//!   that has one in a foreign word (`parts::Copied`).
//! - Addresses are relative ([`Frame::root`]), so a proxy may serve the pages below any path. No
//!   foreign text is ever the start of an address, so no link leads to another host or to a script.
//! - A page has no inline script and no inline style: [`POLICY`] forbids both.
//! - A page is shorter than [`PAGE_BYTES_MAX`], whatever its view model holds. Lists have limits,
//!   and say what they leave out.
//! - Every page works without its script, and every picture says in text what it shows.
//!
//! Where to look
//! - [`Frame`]: what surrounds every page, and the visitor.
//! - one module for each page: [`HomeView`], [`CacheView`], [`PathsView`], [`PathView`],
//!   [`ClosureView`], [`RelationsView`], [`FilesView`], [`LogView`], [`PinsView`], [`RemoveView`],
//!   [`SignInView`], [`ProblemView`]; [`OperatorPage`] has those for operators.
//! - `picture`: savings and sizes as SVG. `terminal_text`: colours of a terminal, safely.
//! - [`Asset`]: the one style, the one script and the icon.

mod asset;
mod cache;
mod closure;
mod files;
mod frame;
mod home;
mod log;
mod operator;
mod parts;
mod path;
mod paths;
mod picture;
mod pins;
mod problem;
mod relations;
mod remove;
mod sign_in;
mod stay;
mod terminal_text;
#[cfg(test)]
mod tests;
mod text;

pub use asset::{ASSET_HEADERS, Asset, PAGE_HEADERS, POLICY};
pub use cache::{CacheView, Contents, Counts};
pub use closure::ClosureView;
pub use files::{FileContent, FileView, FilesView, Found, ListedFile, ListedKind};
pub use frame::{
    Frame, Note, PAGE_BYTES_MAX, Visitor, cache_address, escape_segment, file_address, path_address,
    way_to_root,
};
pub use home::{CacheRow, HomeView};
pub use log::LogView;
pub use operator::{
    AuditRow, AuditView, CollectionFigures, CollectionView, DamageView, ExpiryFigures, JobRow, JobsView,
    MadePlan, OpenJobs, OperatorPage, OverviewView, PackFigures, PlanView, PublishedCacheRow, PublishingView,
    QueueRow, ScrubFigures, ServerFigures, TargetRow, TargetView,
};
pub use path::{PathView, PinRow};
pub use paths::{PathRow, PathsView, SortedBy};
pub use picture::{PastDay, Savings, SizedPath, growth, savings, sizes};
pub use pins::PinsView;
pub use problem::ProblemView;
pub use relations::{Relation, RelationsView};
pub use remove::RemoveView;
pub use sign_in::SignInView;
pub use stay::{PathStay, StayEnd, StayView};
pub use terminal_text::{TextPart, terminal_text};
pub use text::{bytes, date, day, is_hidden, number, percent, span};
