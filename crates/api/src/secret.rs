//! A string that must not reach a log, a screen or an error message by accident.

use std::fmt;

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, ZeroizeOnDrop};

/// A token or a secret key. `Debug` and `Display` show only that there is one. `expose` returns the
/// text, and callers of `expose` are easy to find. Serialising writes the secret: do so only where
/// the wire or a settings file needs it.
///
/// The memory is zeroed on drop, so that the secret does not stay in memory that is used again.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(secret: impl Into<String>) -> Self {
        Self(secret.into())
    }

    /// The secret itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl ZeroizeOnDrop for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[redacted]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_zeroed_on_drop() {
        // Memory that was given back cannot be read in safe code, so the test asks for the type's
        // promise.
        fn is_zeroed<T: ZeroizeOnDrop>(_: &T) {}
        is_zeroed(&Secret::new("hunter2"));
    }

    #[test]
    fn a_secret_does_not_print() {
        let secret = Secret::new("hunter2");
        assert_eq!(
            format!("{secret} {secret:?} {:?}", Some(&secret)),
            "[redacted] [redacted] Some([redacted])"
        );
        assert_eq!(secret.expose(), "hunter2");
        assert_eq!(serde_json::to_string(&secret).unwrap(), "\"hunter2\"");
    }
}
