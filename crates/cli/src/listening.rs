//! The addresses that servers listen on: bound here, or passed by the service manager.

use dormer_http_host::{ListenAddress, Listener};

use crate::error::{Error, Result};
use crate::service_manager::passed_listener;

/// The socket that the service manager passed, else a new one at this address.
pub(crate) async fn listen_for_clients(address: &ListenAddress) -> Result<Listener> {
    match passed_listener()? {
        Some(listener) => Ok(listener),
        None => listen(address).await,
    }
}

pub(crate) async fn listen(address: &ListenAddress) -> Result<Listener> {
    let failed = |source| Error::Io { attempt: format!("listen on {address}"), source };
    Listener::bind(address).await.map_err(failed)
}

pub(crate) fn local_address(listener: &Listener) -> Result<ListenAddress> {
    let failed = |source| Error::Io { attempt: "find the port".to_owned(), source };
    listener.local_address().map_err(failed)
}

pub(crate) fn listening_line(address: &ListenAddress) -> String {
    match address {
        ListenAddress::Tcp(address) => format!("listening on http://{address}"),
        ListenAddress::Unix(_) => format!("listening on {address}"),
    }
}
