//! The service manager, such as systemd: the socket that it opened for this process, and what this
//! process tells it.

use std::io;
use std::os::unix::net::UnixDatagram;

use dormer_http_host::Listener;
use listenfd::ListenFd;
use tokio::net::{TcpListener, UnixListener};

use crate::error::{Error, Result};

/// What the service manager learns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// The service answers.
    Ready,
    /// The service was asked to stop.
    Stopping,
}

impl State {
    /// The words of `sd_notify`.
    fn message(self) -> &'static [u8] {
        match self {
            Self::Ready => b"READY=1",
            Self::Stopping => b"STOPPING=1",
        }
    }
}

/// The listening socket that the service manager passed (`LISTEN_FDS`), if any.
pub(crate) fn passed_listener() -> Result<Option<Listener>> {
    let failed = |source| Error::Io { attempt: "take the socket of the service manager".to_owned(), source };
    let mut passed = ListenFd::from_env();
    match passed.len() {
        0 => return Ok(None),
        1 => {}
        count => {
            return Err(Error::usage(
                format!("the service manager passes {count} sockets (LISTEN_FDS)"),
                "pass one socket; the metrics have their own address, metrics.listen",
            ));
        }
    }
    if let Ok(Some(listener)) = passed.take_tcp_listener(0) {
        listener.set_nonblocking(true).map_err(failed)?;
        return Ok(Some(Listener::Tcp(TcpListener::from_std(listener).map_err(failed)?)));
    }
    let Some(listener) = passed.take_unix_listener(0).map_err(failed)? else { return Ok(None) };
    listener.set_nonblocking(true).map_err(failed)?;
    // The file belongs to the service manager, which keeps it for the next start.
    Ok(Some(Listener::Unix(UnixListener::from_std(listener).map_err(failed)?, None)))
}

/// Tells the service manager, if there is one. A failure concerns nobody else and is logged.
pub(crate) fn notify(state: State) {
    let Some(address) = std::env::var("NOTIFY_SOCKET").ok().filter(|address| !address.is_empty()) else {
        return;
    };
    if let Err(error) = send(&address, state.message()) {
        tracing::warn!(%error, ?state, "failed to tell the service manager");
    }
}

fn send(address: &str, message: &[u8]) -> io::Result<()> {
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    #[cfg(target_os = "linux")]
    if let Some(name) = address.strip_prefix('@') {
        use std::os::linux::net::SocketAddrExt as _;
        let address = std::os::unix::net::SocketAddr::from_abstract_name(name)?;
        return socket.send_to_addr(message, &address).map(drop);
    }
    socket.send_to(message, address).map(drop)
}

/// Passes a request to stop on, and tells the service manager about it.
pub(crate) async fn stopping_after(shutdown: impl Future<Output = ()>) {
    shutdown.await;
    notify(State::Stopping);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_reach_sockets_with_and_without_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let by_file = UnixDatagram::bind(&path).unwrap();
        send(path.to_str().unwrap(), State::Ready.message()).unwrap();
        let mut buffer = [0; 64];
        let length = by_file.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"READY=1");
        #[cfg(target_os = "linux")]
        {
            use std::os::linux::net::SocketAddrExt as _;
            let name = format!("dormer-test-{}", std::process::id());
            let address = std::os::unix::net::SocketAddr::from_abstract_name(&name).unwrap();
            let abstract_one = UnixDatagram::bind_addr(&address).unwrap();
            send(&format!("@{name}"), State::Stopping.message()).unwrap();
            let length = abstract_one.recv(&mut buffer).unwrap();
            assert_eq!(&buffer[..length], b"STOPPING=1");
        }
        assert!(send("/nowhere/notify", b"x").is_err());
    }
}
