//! Handlers: one for each method of each route. Each translates, none decides.

pub(crate) mod attic;
pub(crate) mod browse;
pub(crate) mod caches;
mod checks;
pub(crate) mod documents;
mod history;
pub(crate) mod nar;
pub(crate) mod pages;
pub(crate) mod people;
pub(crate) mod retention;
pub(crate) mod sessions;
pub(crate) mod small_body;
pub(crate) mod stats;
pub(crate) mod status;
pub(crate) mod upload;
