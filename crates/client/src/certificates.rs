//! Which authorities the client trusts: those that Nix trusts, so that a machine needs one setting
//! for both.
//!
//! Nix takes the file in `NIX_SSL_CERT_FILE`, else the one in `SSL_CERT_FILE`, in place of the
//! system's certificates. The HTTP library does the rest: it knows `SSL_CERT_FILE` and the places
//! of the systems.

use std::path::PathBuf;

use reqwest::{Certificate, ClientBuilder};

use crate::error::{Error, Result};
use crate::settings::Variables;

/// The variable of Nix.
const VARIABLE: &str = "NIX_SSL_CERT_FILE";

/// The beginning of every HTTP client of this crate.
pub(crate) fn http_client(encrypted: bool, variables: Variables<'_>) -> Result<ClientBuilder> {
    let builder = reqwest::Client::builder().user_agent(concat!("dormer/", env!("CARGO_PKG_VERSION")));
    if !encrypted {
        // In a minimal container without root certificates, a client with the system's certificates
        // cannot be built. An unencrypted connection needs none.
        return Ok(builder.tls_certs_only([]));
    }
    Ok(match certificates(variables)? {
        Some(certificates) => builder.tls_certs_only(certificates),
        None => builder,
    })
}

/// The certificates of the file that Nix would read. `None` means the system's.
fn certificates(variables: Variables<'_>) -> Result<Option<Vec<Certificate>>> {
    let Some(path) = variables(VARIABLE).map(PathBuf::from) else { return Ok(None) };
    let read = std::fs::read(&path).map_err(|source| Error::ReadCertificates {
        variable: VARIABLE,
        path: path.clone(),
        source,
    })?;
    match Certificate::from_pem_bundle(&read) {
        Ok(certificates) if !certificates.is_empty() => Ok(Some(certificates)),
        Ok(_) | Err(_) => Err(Error::NoCertificates { variable: VARIABLE, path }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A self-signed certificate for tests; nothing trusts it.
    const PEM: &str = include_str!("../tests/data/authority.pem");

    #[test]
    fn the_file_of_nix_replaces_the_certificates_of_the_system() {
        let folder = tempfile::tempdir().unwrap();
        let file = |text: String| {
            let path = folder.path().join("file.pem");
            std::fs::write(&path, text).unwrap();
            certificates(&|name| (name == VARIABLE).then(|| path.to_str().unwrap().to_owned()))
                .map(|certificates| certificates.map(|certificates| certificates.len()))
        };
        assert_eq!(file(PEM.to_owned()).unwrap(), Some(1));
        assert_eq!(file(format!("# a comment\n{PEM}\n{PEM}")).unwrap(), Some(2));
        for text in [String::new(), "no certificate".to_owned(), PEM.replace("CERTIFICATE", "KEY")] {
            assert!(matches!(file(text), Err(Error::NoCertificates { .. })));
        }
        assert!(certificates(&|_| None).unwrap().is_none());
        let missing = certificates(&|name| (name == VARIABLE).then(|| "/no-cert-file.crt".to_owned()));
        assert!(matches!(missing, Err(Error::ReadCertificates { .. })));
    }

    #[test]
    fn an_unencrypted_connection_needs_no_certificates() {
        let missing: Variables<'_> = &|_| Some("/no-cert-file.crt".to_owned());
        assert!(http_client(false, missing).unwrap().build().is_ok());
        assert!(http_client(true, missing).is_err());
    }
}
