//! `dormer login`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use dormer_api::{Secret, routes};
use dormer_client::{Endpoint, ResolvedServer, ServerName, ServerSettings};
use dormer_nix::CacheInfo;
use serde_json::json;

use crate::context::{Context, EXIT_CODES_OF_CLIENT};
use crate::error::{Error, Result};

/// Time limit for an address to say whether it is a cache.
const PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// What a user should know before a token goes to an address without TLS on another machine.
pub(super) const PLAIN_TEXT_TOKEN: &str =
    "the token will travel unencrypted: use https:// outside of a trusted network";

/// Remember a server and its token
///
/// The command asks the server for its caches before it stores anything: a server is Dormer's or
/// Attic's. The settings go to ~/.config/dormer/config.toml, mode 0600. The first server becomes
/// the default one. For services without a home, copy the file to /etc/dormer/config.toml.
///
/// Examples:
///   dormer login lab http://127.0.0.1:8080 --token-file ~/.local/share/dormer/admin-token
///   pass show cache-token | dormer login lab https://cache.example.org --token-stdin --set-default
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, after_long_help = EXIT_CODES_OF_CLIENT)]
pub(crate) struct LoginArgs {
    /// Your name for the server
    name: ServerName,
    /// The server's address, without the name of a cache
    #[arg(value_name = "URL")]
    endpoint: Endpoint,
    /// The token; other users of this machine can see it while the command runs
    #[arg(value_parser = |text: &str| Ok::<_, std::convert::Infallible>(Secret::new(text)))]
    token: Option<Secret>,
    /// Read the token from this file, now and at every use
    #[arg(long, value_name = "FILE", conflicts_with = "token")]
    token_file: Option<PathBuf>,
    /// Read the token from standard input
    #[arg(long, conflicts_with_all = ["token", "token_file"])]
    token_stdin: bool,
    /// Make this server the default for commands that name no server
    #[arg(long)]
    set_default: bool,
}

pub(super) async fn run(args: LoginArgs, context: &Context) -> Result<()> {
    let mut loaded = Context::client_settings()?;
    let old = loaded.settings.servers.get(&args.name);
    let had_token = old.is_some_and(|old| old.token.is_some() || old.token_file.is_some());
    // Another address is another server, which must not get the token of the first.
    let known =
        old.filter(|known| known.endpoint.parse().is_ok_and(|endpoint: Endpoint| endpoint == args.endpoint));
    let mut server = known.cloned().unwrap_or_else(|| ServerSettings::new(&args.endpoint));
    let mut is_given = true;
    if let Some(file) = &args.token_file {
        let file = std::path::absolute(file).map_err(Error::io("find", file))?;
        (server.token, server.token_file) = (None, Some(file));
    } else if let Some(token) = args.token.or(read_token(args.token_stdin)?) {
        (server.token, server.token_file) = (Some(token), None);
    } else {
        is_given = false;
    }
    loaded.settings.servers.insert(args.name.clone(), server);
    if args.set_default || loaded.settings.default_server.is_none() {
        loaded.settings.default_server = Some(args.name.clone());
    }

    // The token that is stored is the one to try, not another one of the environment.
    let variables = |name: &str| {
        if is_given && name.starts_with("DORMER_TOKEN") {
            None
        } else {
            dormer_client::process_variables(name)
        }
    };
    let resolved = loaded.resolve_server(Some(&args.name), &variables)?;
    let caches = check(context, &resolved).await?;
    loaded.save()?;

    let printer = &context.printer;
    if resolved.token.is_some() && resolved.endpoint.is_plain_text() {
        printer.warn(PLAIN_TEXT_TOKEN);
    }
    if resolved.token.is_none() {
        if had_token {
            printer.warn(
                "the token for the former address was dropped, because another address is another server",
            );
        }
        printer.say("no token: public caches can be read, nothing can be pushed");
    }
    let default = loaded.settings.default_server.as_ref() == Some(&args.name);
    printer.message(&json!({
        "message_type": "login", "server": args.name.as_str(), "endpoint": resolved.endpoint.to_string(),
        "default": default, "with_token": resolved.token.is_some(), "caches": caches,
    }))?;
    let what = match &caches {
        Some(caches) if caches.is_empty() => "it shows no caches to you".to_owned(),
        Some(caches) => format!("caches: {}", caches.join(", ")),
        None => "it does not list its caches".to_owned(),
    };
    let default = if default { " (default server)" } else { "" };
    printer.conclude(&format!("logged in to {}{default} at {}; {what}", args.name, resolved.endpoint));
    Ok(())
}

/// Asks for the caches, to check that a server answers. Attic's server has no such list; it says so
/// in its own JSON, which no other program does.
async fn check(context: &Context, server: &ResolvedServer) -> Result<Option<Vec<String>>> {
    use dormer_client::Error as Client;
    let error = match context.impatient_client_for(server)?.list_caches().await {
        Ok(list) => return Ok(Some(list.caches.into_iter().map(|cache| cache.name.to_string()).collect())),
        Err(error @ (Client::Unreachable { .. } | Client::Unavailable { .. } | Client::Stalled { .. })) => {
            return Err(error.into());
        }
        Err(Client::Redirected { location, action, status }) => {
            let address = redirected_address(&location).filter(|address| *address != server.endpoint);
            return Err(match address {
                Some(address) => Error::usage(
                    format!("{} redirects to {address}, and a token follows no redirect", server.endpoint),
                    format!("log in there: dormer login {} {address} --token-file FILE", server.name),
                ),
                None => Client::Redirected { location, action, status }.into(),
            });
        }
        Err(error) => error,
    };
    if let Some((server_address, cache)) = server.endpoint.split_cache()
        && is_cache(server).await
    {
        return Err(Error::usage(
            format!("{} is the address of the cache {cache}, not of its server", server.endpoint),
            format!("give the address of the server: {server_address}"),
        ));
    }
    match error {
        Client::NoSuchCache { .. } | Client::Refused { status: 404 | 405, name: Some(_), .. } => Ok(None),
        Client::Refused { status, .. } => {
            Err(Error::NotAServer { endpoint: server.endpoint.to_string(), status })
        }
        error => Err(error.into()),
    }
}

/// The address of the server behind a redirect of the list of caches.
fn redirected_address(location: &str) -> Option<Endpoint> {
    let path = location.split(['?', '#']).next()?;
    path.strip_suffix(&routes::v2_caches(None))?.parse().ok()
}

/// Whether the address has what every binary cache has, or is Dormer's and wants another token for
/// it. A proxy may refuse any address.
async fn is_cache(server: &ResolvedServer) -> bool {
    let info = format!("{}nix-cache-info", server.endpoint);
    let seen = dormer_client::probe(&info, server.token.as_ref(), PROBE_TIMEOUT).await;
    seen.is_ok_and(|seen| {
        (seen.status == 200 && !CacheInfo::parse(&seen.body).is_empty()) || seen.is_dormers_challenge
    })
}

fn read_token(from_stdin: bool) -> Result<Option<Secret>> {
    if !from_stdin {
        return Ok(None);
    }
    let text = std::io::read_to_string(std::io::stdin())
        .map(Secret::new)
        .map_err(|source| Error::Io { attempt: "read the token from standard input".to_owned(), source })?;
    match text.expose().trim() {
        "" => Err(Error::usage(
            "no token came on standard input",
            "pass show cache-token | dormer login … --token-stdin",
        )),
        token => Ok(Some(Secret::new(token))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redirect_names_the_server_if_it_leads_to_the_same_route() {
        for (location, address) in [
            ("https://cache.example.org/_api/v2/caches", Some("https://cache.example.org/")),
            (
                "https://other.example.org:8443/base/_api/v2/caches?x=1",
                Some("https://other.example.org:8443/base/"),
            ),
            ("https://login.example.org/?next=/_api/v2/caches", None),
            ("/_api/v2/caches", None),
            ("", None),
        ] {
            let found = redirected_address(location).map(|address| address.to_string());
            assert_eq!(found.as_deref(), address, "{location}");
        }
    }
}
