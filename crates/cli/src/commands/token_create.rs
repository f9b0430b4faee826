//! `dormer token create`, alias `make-token`.

use std::time::{Duration, SystemTime};

use clap::Args;
use dormer_api::{CacheNamePattern, Permission};
use serde_json::json;

use crate::context::{Context, SettingsArgs};
use crate::error::Result;
use crate::settings::{Settings, units};
use crate::tokens;

/// Make a token from the server's settings, without contacting the server
///
/// Run it on the server's machine, as the same user. PATTERN is the name of a cache, in which *
/// stands for any characters. Options may be repeated, and their permissions add up. Standard
/// output contains only the token.
///
/// Examples:
///   dormer token create --sub alice --validity 2y --pull '*' --push 'team-*'
///   dormer token create --sub ci --validity '3 months' --push main --pull main > ci-token
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct TokenCreateArgs {
    /// The token's owner, shown in logs
    #[arg(long, value_name = "SUBJECT")]
    sub: String,
    /// How long it is valid: `2y`, `3 months`, `12h`
    #[arg(long, value_name = "PERIOD", value_parser = parse_period)]
    validity: Duration,
    /// Let the token read narinfos and NARs
    #[arg(long, value_name = "PATTERN")]
    pull: Vec<CacheNamePattern>,
    /// Let the token upload
    #[arg(long, value_name = "PATTERN")]
    push: Vec<CacheNamePattern>,
    /// Let the token remove paths
    #[arg(long, value_name = "PATTERN")]
    delete: Vec<CacheNamePattern>,
    /// Let the token create caches
    #[arg(long, value_name = "PATTERN")]
    create_cache: Vec<CacheNamePattern>,
    /// Let the token change a cache's settings
    #[arg(long, value_name = "PATTERN")]
    configure_cache: Vec<CacheNamePattern>,
    /// Let the token change how long a cache keeps objects
    #[arg(long, value_name = "PATTERN")]
    configure_cache_retention: Vec<CacheNamePattern>,
    /// Let the token destroy caches
    #[arg(long, value_name = "PATTERN")]
    destroy_cache: Vec<CacheNamePattern>,
    /// Let the token operate the server: `dormer top` and the pages for operators. They name
    /// private caches and the subjects of other tokens. Without this option, only a token that
    /// reads and configures all caches (`*`) does
    #[arg(long)]
    operate: bool,
    /// Print the token's claims as JSON, unsigned
    #[arg(long)]
    dump_claims: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Parses a period for clap.
pub(super) fn parse_period(text: &str) -> Result<Duration, String> {
    units::parse_duration(text).ok_or_else(|| "not a period such as `2y`, `3 months` or `12h`".to_owned())
}

pub(super) fn run(args: TokenCreateArgs, context: &Context) -> Result<()> {
    let (settings, _) = Settings::load(&context.environment, &args.settings.to_flags())?;
    let lists = [
        (args.pull, Permission::Pull),
        (args.push, Permission::Push),
        (args.delete, Permission::Delete),
        (args.create_cache, Permission::CreateCache),
        (args.configure_cache, Permission::ConfigureCache),
        (args.configure_cache_retention, Permission::ConfigureCacheRetention),
        (args.destroy_cache, Permission::DestroyCache),
    ];
    let grants: Vec<_> = lists
        .into_iter()
        .flat_map(|(patterns, permission)| patterns.into_iter().map(move |pattern| (pattern, permission)))
        .collect();
    if grants.is_empty() && !args.operate {
        context
            .printer
            .warn("this token permits nothing; --pull, --push and other options grant permissions");
    }
    let wish = tokens::Wish { subject: args.sub, validity: args.validity, grants, operates: args.operate };
    let claims = tokens::claims(&wish, &settings.jwt, SystemTime::now());
    if args.dump_claims {
        let text = serde_json::to_string_pretty(&claims).expect("claims have text keys only");
        return context.printer.data_lines(&text);
    }
    let token = tokens::sign(&tokens::signing_key(&settings)?, &claims)?;
    if token.expose().len() > dormer_client::NETRC_LINE_BYTES_MAX - dormer_client::NETRC_LINE_ROOM {
        context.printer.warn(dormer_client::NETRC_TOO_LONG);
    }
    if context.printer.json {
        return context.printer.message(&json!({
            "message_type": "token", "token": token.expose(), "jti": claims.jti, "exp": claims.exp,
        }));
    }
    context.printer.data(token.expose())
}
