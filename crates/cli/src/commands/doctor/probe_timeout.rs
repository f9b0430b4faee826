//! How long a check waits for one address.

use std::time::Duration;

/// Time limit of a request to one address. Shorter than that of a check, which may ask several.
pub(super) const PROBE_TIMEOUT: Duration = Duration::from_secs(8);
