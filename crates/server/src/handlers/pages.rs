//! What the server says of itself: probes and counters.

use http::{Response, StatusCode};

use crate::app::App;
use crate::body::{self, Body};
use crate::failure::Failure;

/// The process answers.
pub(crate) fn alive() -> Response<Body> {
    body::text(StatusCode::OK, "ok\n")
}

/// Database and store answer, and the server is not stopping.
pub(crate) async fn ready(app: &App) -> Result<Response<Body>, Failure> {
    app.probes.check().await.map_err(Failure::NotReady)?;
    Ok(body::text(StatusCode::OK, "ready\n"))
}

/// Counters for benchmarks; off by default.
pub(crate) fn stats(app: &App) -> Result<Response<Body>, Failure> {
    if !app.settings.stats {
        return Err(Failure::NoRoute);
    }
    let stats = serde_json::json!({ "index_statements": app.engine.index().statement_count() });
    Ok(body::json(StatusCode::OK, &stats))
}
