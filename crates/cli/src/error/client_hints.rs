//! What the user can do about an error of the client.

use std::collections::BTreeSet;
use std::io;

use dormer_client::{Error, MACHINE_SETTINGS};

/// The hints by topic. Each error belongs to one topic at most.
const TOPICS: [fn(&Error) -> Vec<String>; 6] =
    [login_hints, connection_hints, source_hints, local_store_hints, queue_hints, chunk_hints];

/// What the user may do about errors of single paths, each advice once.
pub(crate) fn advice<'e>(errors: impl Iterator<Item = &'e Error>) -> Vec<String> {
    errors.flat_map(client_hints).collect::<BTreeSet<_>>().into_iter().collect()
}

pub(super) fn client_hints(error: &Error) -> Vec<String> {
    match error {
        Error::Shared(error) => client_hints(error),
        Error::WholePush(error) => client_hints(error),
        _ => TOPICS.iter().flat_map(|topic| topic(error)).collect(),
    }
}

/// Servers, caches and tokens.
fn login_hints(error: &Error) -> Vec<String> {
    let hint = |text: &str| vec![text.to_owned()];
    match error {
        Error::NoDefaultServer => vec![
            "log in first: dormer login NAME URL --token-file FILE; with several servers write SERVER:CACHE, or set a default with \
             --set-default"
                .to_owned(),
            format!("or, for a service, set DORMER_ENDPOINT and DORMER_TOKEN, or write {MACHINE_SETTINGS} for its user"),
        ],
        Error::NoSettingsFolder => vec![format!(
            "only `dormer login` needs a home: set DORMER_ENDPOINT and DORMER_TOKEN, or write {MACHINE_SETTINGS}"
        )],
        Error::UnknownServer { name } => {
            vec![format!("log in first: dormer login {name} URL --token-file FILE")]
        }
        Error::CacheRef { .. } => hint("caches are named `main` (on the default server) or `lab:main`"),
        Error::NoSuchCache { .. } => {
            hint("`dormer cache list` lists the caches; `dormer cache create` makes one")
        }
        Error::CacheExists { .. } => hint("`dormer cache configure` changes it"),
        Error::Unauthorized { with_token: false, .. } => {
            hint("log in with a token: dormer login NAME URL --token-file FILE; or set DORMER_TOKEN")
        }
        Error::Unauthorized { with_token: true, .. } => hint(
            "the token has no permission on this cache (which may not exist), has expired, or belongs to another server",
        ),
        Error::Forbidden { .. } => {
            hint("ask for a token with this permission: dormer token create, on the server")
        }
        Error::MalformedToken => hint("check that the token was copied completely, without other text"),
        _ => Vec::new(),
    }
}

/// The way to the server.
fn connection_hints(error: &Error) -> Vec<String> {
    let hint = |text: &str| vec![text.to_owned()];
    match error {
        Error::Unreachable { .. } | Error::Stalled { .. } => {
            let mut hints = hint("is the server running, and is its address right?");
            hints.extend(proxy_hint(&|name| std::env::var_os(name).is_some_and(|value| !value.is_empty())));
            hints
        }
        Error::Unavailable { status: 408, .. } => hint(
            "the server gave up on a request that arrived too slowly; uploads share the connection: push with --jobs 1",
        ),
        // Dormer's own answer has a name.
        Error::Refused { status: 413, name: None, .. } => hint(
            "a proxy in front of the server limits the size of requests; let it pass any size (nginx: client_max_body_size 0), or push by chunks in small parts (dormer push --part-size 1M)",
        ),
        Error::Redirected { .. } => hint(
            "Dormer follows redirects only for reading and only on the same server; if the other address is yours, log in there",
        ),
        Error::Answer { .. } | Error::AnswerTooLarge { .. } | Error::EndlessList { .. } => {
            hint("is there another program at this address, or a proxy's login page?")
        }
        Error::HttpClient(_) => hint(
            "install the system's certificates (ca-certificates), or name a file with them in NIX_SSL_CERT_FILE",
        ),
        Error::ReadCertificates { .. } | Error::NoCertificates { .. } => hint(
            "the variable must name a PEM file with every authority to trust, as for Nix; unset it to trust the system's",
        ),
        _ => Vec::new(),
    }
}

/// The source of an import.
fn source_hints(error: &Error) -> Vec<String> {
    let hint = |text: &str| vec![text.to_owned()];
    match error {
        Error::NotListed { .. } => hint(
            "a cache on the web has no listing: name the paths, or send them with --stdin (nix-store -qR PATH); their closures are imported",
        ),
        Error::NoStaticCache { .. } => hint(
            "give the folder, prefix or address that has nix-cache-info in it; a published target has one for each cache",
        ),
        Error::StaticCacheInfo { source: dormer_client::FetchError::Status { status: 401, .. }, .. } => {
            hint("set DORMER_SOURCE_TOKEN to a token for the source")
        }
        Error::SourceStoreDir { .. } => hint(
            "a cache serves one store folder; make another cache for this one: dormer cache create --help",
        ),
        _ => Vec::new(),
    }
}

/// The local store.
fn local_store_hints(error: &Error) -> Vec<String> {
    let hint = |text: &str| vec![text.to_owned()];
    match error {
        Error::NixMissing { .. } => hint("install Nix, or put it into PATH"),
        Error::InvalidPath { .. } => {
            hint("build or fetch it first: only what is in the local store can be pushed")
        }
        Error::NotInStore { .. } => hint(
            "give a store path, or a link to one such as ./result; `nix copy` and `nix store add-path` add paths to the store",
        ),
        Error::NotDescribed { .. } => hint("this is a fault of Nix or of Dormer; nothing was pushed"),
        Error::StoreElsewhere { .. } => hint(
            "push on the machine that has the files, or name a local store: NIX_REMOTE=local, or NIX_REMOTE=local?root=DIR",
        ),
        Error::StoreDirMismatch { .. } => {
            hint("a cache serves one store folder; make another cache for this one")
        }
        _ => Vec::new(),
    }
}

/// The queue.
fn queue_hints(error: &Error) -> Vec<String> {
    let hint = |text: &str| vec![text.to_owned()];
    match error {
        Error::Queue { source, .. } if source.kind() == io::ErrorKind::StorageFull => {
            hint("the disk of the queue is full: free some space, or keep the queue elsewhere (--queue-dir, DORMER_QUEUE_DIR)")
        }
        Error::Queue { .. } => hint(
            "the queue must be in a folder that this user may write; --queue-dir or DORMER_QUEUE_DIR names another one",
        ),
        Error::QueueFull { .. } => hint(
            "`dormer queue list` says why nothing leaves it; `dormer queue drain` pushes what is there, `dormer queue drop` gives it up",
        ),
        Error::Watch { .. } => hint(
            "Linux has no watch left, or no store is there; raise the limits with `sysctl fs.inotify.max_user_instances=1024 \
             fs.inotify.max_user_watches=524288`, or let Nix call a hook: dormer install-hook, dormer exec --by hook",
        ),
        Error::OtherServer { endpoint, .. } => vec![
            format!("log in to it, under any name: dormer login NAME {endpoint} --token-file FILE"),
            format!("or set DORMER_TOKEN and push: dormer queue drain --endpoint {endpoint}"),
            "if it moved, push to the server that has the name now: dormer queue retry --all --to-present-server; a hook \
             keeps the address that it was installed with: run `dormer install-hook` again"
                .to_owned(),
        ],
        Error::EntryVersion { .. } => hint("a later version of Dormer queued it; its own `dormer queue drain` pushes it"),
        _ => Vec::new(),
    }
}

/// Pushes by chunks.
fn chunk_hints(error: &Error) -> Vec<String> {
    let hint = |text: &str| vec![text.to_owned()];
    match error {
        Error::CommitState { .. } => hint("upgrade this client, or push with `--api attic`"),
        Error::NoChunkApi { .. } => {
            hint("leave out `--api v2`: then the NARs are sent whole, by Attic's API")
        }
        Error::SessionEnded { .. } => hint("run the same command again: it goes on in a new session"),
        Error::ChunksLost { .. } => {
            hint("`dormer scrub` on the server finds damage; or push the path with `--api attic`")
        }
        _ => Vec::new(),
    }
}

/// Names the variables that send requests to a proxy.
pub(super) fn proxy_hint(is_set: &dyn Fn(&str) -> bool) -> Option<String> {
    const VARIABLES: [&str; 6] =
        ["http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"];
    let set: Vec<&str> = VARIABLES.into_iter().filter(|name| is_set(name)).collect();
    (!set.is_empty()).then(|| {
        format!(
            "requests go through the proxy in {}; no_proxy names the hosts that need none",
            set.join(", ")
        )
    })
}
