//! `dormer check`.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use dormer_http_host::ListenAddress;
use serde_json::json;

use crate::context::{Context, SettingsArgs};
use crate::error::{Error, Result};
use crate::settings::Settings;

/// Time limit of the whole question. Shorter than the time-out of the probes in `deploy/`, so that
/// the probe gets a reason instead of being killed.
const TIMEOUT: Duration = Duration::from_secs(4);

/// Ask the server on this machine whether it answers
///
/// This is for probes in containers, which hold no curl. The command reads the settings of the
/// server and asks its listener for metrics if `metrics.listen` is set, because that one has
/// connections of its own; else it asks the listener for clients. The server has 4 seconds.
///
/// The exit code is 0 if the server answers, 1 if it answers that it is not ready, and 5 if it does
/// not answer.
///
/// Examples:
///   dormer check --config /etc/dormer/dormer.toml
///   podman exec dormer /bin/dormer check --ready
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct CheckArgs {
    /// Ask whether requests should be sent to this server now: database and store answer, and it is
    /// not stopping
    #[arg(long)]
    ready: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

pub(super) async fn run(args: CheckArgs, context: &Context) -> Result<ExitCode> {
    let (settings, _) = Settings::load(&context.environment, &args.settings.to_flags())?;
    let path = if args.ready { "/readyz" } else { "/healthz" };
    let address = address(&settings);
    let (status, said) = ask(address, path).await.map_err(|source| Error::NoAnswer {
        address: address.to_string(),
        // The library would repeat the address.
        source: source.without_url(),
    })?;
    if status != 200 {
        return Err(Error::NotReady { address: address.to_string(), status, said: said.trim().to_owned() });
    }
    let printer = &context.printer;
    if printer.json {
        printer
            .message(&json!({ "message_type": "answer", "address": address.to_string(), "path": path }))?;
    } else {
        printer.say(&format!("{address} answers {path}"));
    }
    Ok(ExitCode::SUCCESS)
}

/// The listener to ask. The default address of the metrics may belong to another server on this
/// machine, so only a chosen one counts.
fn address(settings: &Settings) -> &ListenAddress {
    settings.metrics_listen.as_ref().filter(|_| settings.metrics_listen_was_set).unwrap_or(&settings.listen)
}

async fn ask(address: &ListenAddress, path: &str) -> reqwest::Result<(u16, String)> {
    // The server is on this machine: no proxy leads to it, and no certificate is needed.
    let builder = reqwest::Client::builder().no_proxy().tls_certs_only([]).timeout(TIMEOUT);
    let (builder, host) = match address {
        ListenAddress::Tcp(address) => (builder, reachable(*address).to_string()),
        ListenAddress::Unix(socket) => (builder.unix_socket(socket.clone()), "localhost".to_owned()),
    };
    let response = builder.build()?.get(format!("http://{host}{path}")).send().await?;
    Ok((response.status().as_u16(), response.text().await?))
}

/// "Everywhere" is not an address that a client can connect to.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        address.set_ip(match address {
            SocketAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            SocketAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{Environment, Flags};

    fn chosen(variables: &[(&str, &str)]) -> String {
        let all = [&[("HOME", "/home/ada")], variables].concat();
        let environment = Environment::from(all.as_slice());
        let (settings, _) = Settings::load(&environment, &Flags::default()).unwrap();
        address(&settings).to_string()
    }

    #[test]
    fn the_listener_of_the_metrics_is_asked_where_one_was_chosen() {
        assert_eq!(chosen(&[]), "127.0.0.1:8080");
        assert_eq!(chosen(&[("DORMER_METRICS_LISTEN", "off")]), "127.0.0.1:8080");
        assert_eq!(chosen(&[("DORMER_METRICS_LISTEN", "0.0.0.0:9464")]), "0.0.0.0:9464");
    }

    #[test]
    fn an_address_for_all_interfaces_is_asked_on_the_loopback_one() {
        for (listen, asked) in
            [("0.0.0.0:1", "127.0.0.1:1"), ("[::]:2", "[::1]:2"), ("10.0.0.1:3", "10.0.0.1:3")]
        {
            assert_eq!(reachable(listen.parse().unwrap()).to_string(), asked);
        }
    }
}
