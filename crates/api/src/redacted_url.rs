//! An address that hides its secrets when it is shown.

use std::fmt;

const REDACTED: &str = "[redacted]";

/// Parameters whose values are shown. All others are hidden, because nobody can list the names that
/// every database, store and proxy has for a password.
const SHOWN_PARAMETERS: [&str; 17] = [
    "application_name",
    "compression",
    "connect_timeout",
    "dbname",
    "endpoint",
    "host",
    "hostaddr",
    "mode",
    "port",
    "priority",
    "region",
    "scheme",
    "sslmode",
    "sslrootcert",
    "statement-cache-capacity",
    "trusted",
    "want-mass-query",
];

/// The address of a server, a store or a database, as the user wrote it. `Display` and `Debug` hide
/// the user info, the fragment and the values of unknown query parameters. `expose` returns the
/// whole address.
///
/// The text need not be a valid URL: errors show what could not be parsed. So everything up to the
/// last `@` counts as user info. This may hide too much, but never too little.
#[derive(Clone, PartialEq, Eq)]
pub struct RedactedUrl(String);

impl RedactedUrl {
    /// Wraps an address.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The address with its secrets.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RedactedUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (scheme, rest) = match self.0.split_once(':') {
            Some((scheme, rest)) if !scheme.contains(['@', '?', '#']) => (scheme, rest),
            // A text without a scheme has no form, so only `@` shows that there may be a secret.
            _ => ("", self.0.as_str()),
        };
        if !scheme.is_empty() {
            write!(f, "{scheme}:")?;
        }
        let after_slashes = rest.trim_start_matches('/');
        f.write_str(&rest[..rest.len() - after_slashes.len()])?;
        let shown = match after_slashes.rsplit_once('@') {
            // Either a password with a `?` in it, or a parameter with an `@` in it.
            Some((before, _)) if before.contains(['?', '#']) => return f.write_str(REDACTED),
            Some((_, rest)) => {
                write!(f, "{REDACTED}@")?;
                rest
            }
            None => after_slashes,
        };
        let (shown, fragment) = shown.split_once('#').map_or((shown, None), |(a, b)| (a, Some(b)));
        let (shown, query) = shown.split_once('?').map_or((shown, None), |(a, b)| (a, Some(b)));
        f.write_str(shown)?;
        for (number, parameter) in query.into_iter().flat_map(|query| query.split('&')).enumerate() {
            f.write_str(if number == 0 { "?" } else { "&" })?;
            match parameter.split_once('=') {
                Some((name, _)) if SHOWN_PARAMETERS.contains(&name) => f.write_str(parameter)?,
                Some((name, _)) => write!(f, "{name}={REDACTED}")?,
                None if parameter.is_empty() => {}
                None => f.write_str(REDACTED)?,
            }
        }
        match fragment {
            Some(_) => write!(f, "#{REDACTED}"),
            None => Ok(()),
        }
    }
}

impl fmt::Debug for RedactedUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_shown_without_its_secrets() {
        for (address, shown) in [
            ("https://cache.example.org/main", "https://cache.example.org/main"),
            ("http://[::1]:8080/", "http://[::1]:8080/"),
            ("sqlite:///var/lib/index.sqlite?mode=rwc", "sqlite:///var/lib/index.sqlite?mode=rwc"),
            ("https://ada:hunter2@h/x", "https://[redacted]@h/x"),
            ("https://hunter2@h", "https://[redacted]@h"),
            (
                "postgresql://h:5432/d?sslmode=require&password=hunter2",
                "postgresql://h:5432/d?sslmode=require&password=[redacted]",
            ),
            ("https://h/?hunter2", "https://h/?[redacted]"),
            ("https://h/?sig=hunter2#hunter2", "https://h/?sig=[redacted]#[redacted]"),
            ("a text without a form", "a text without a form"),
            ("postgresql://ada:hunter?2@h/d", "postgresql://[redacted]"),
            ("ada:hunter2@h", "ada:[redacted]@h"),
            ("", ""),
        ] {
            let url = RedactedUrl::new(address);
            assert_eq!(url.to_string(), shown);
            assert_eq!(format!("{url:?}"), format!("\"{shown}\""));
            assert_eq!(url.expose(), address);
        }
    }

    proptest::proptest! {
        /// Wherever a secret stands in an address, and whatever signs are in the secret.
        #[test]
        fn a_secret_is_never_shown(secret in "[a-z/?#&=:@ %é]{0,4}MARKER[a-z/?#&=:@ %é]{0,4}", place in 0..5_usize) {
            let address = match place {
                0 => format!("postgresql://ada:{secret}@h/d"),
                1 => format!("https://{secret}@h/d?mode=x"),
                2 => format!("https:/ada:{secret}@h"),
                3 => format!("postgresql://h/d?password={}", secret.replace(['&', '?'], "")),
                _ => format!("ada:{secret}@h/d"),
            };
            proptest::prop_assert!(!RedactedUrl::new(&*address).to_string().contains("MARKER"), "{}", address);
        }
    }
}
