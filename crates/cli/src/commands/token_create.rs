//! `dormer token create`, alias `make-token`.

use std::time::{Duration, SystemTime};

use clap::Args;
use dormer_api::{CacheNamePattern, Permission};
use serde_json::json;

use super::{Context, SettingsArgs};
use crate::error::Result;
use crate::settings::{Settings, units};
use crate::tokens;

/// Make a token, from the server's own settings and without the server
///
/// Run it where the server runs, as the same user. PATTERN is a cache's name, in which * stands
/// for any characters; options may be repeated, and what they grant adds up. The token is the only
/// thing on standard output.
///
/// Examples:
///   dormer token create --sub alice --validity 2y --pull '*' --push 'team-*'
///   dormer token create --sub ci --validity '3 months' --push main --pull main > ci-token
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct TokenCreateArgs {
    /// Whom it is for; shown in logs
    #[arg(long, value_name = "SUBJECT")]
    sub: String,
    /// How long it is valid: `2y`, `3 months`, `12h`
    #[arg(long, value_name = "PERIOD", value_parser = parse_period)]
    validity: Duration,
    /// Read narinfos and NARs
    #[arg(long, value_name = "PATTERN")]
    pull: Vec<CacheNamePattern>,
    /// Upload
    #[arg(long, value_name = "PATTERN")]
    push: Vec<CacheNamePattern>,
    /// Remove paths
    #[arg(long, value_name = "PATTERN")]
    delete: Vec<CacheNamePattern>,
    /// Create caches
    #[arg(long, value_name = "PATTERN")]
    create_cache: Vec<CacheNamePattern>,
    /// Change a cache's settings
    #[arg(long, value_name = "PATTERN")]
    configure_cache: Vec<CacheNamePattern>,
    /// Change how long a cache keeps things
    #[arg(long, value_name = "PATTERN")]
    configure_cache_retention: Vec<CacheNamePattern>,
    /// Destroy caches
    #[arg(long, value_name = "PATTERN")]
    destroy_cache: Vec<CacheNamePattern>,
    /// Print what the token would say, unsigned, as JSON
    #[arg(long)]
    dump_claims: bool,
    #[command(flatten)]
    settings: SettingsArgs,
}

/// Reads a period for clap.
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
    if grants.is_empty() {
        context.printer.warn("this token permits nothing; --pull, --push and others say what it may do");
    }
    let wish = tokens::Wish { subject: args.sub, validity: args.validity, grants };
    let claims = tokens::claims(&wish, &settings.jwt, SystemTime::now());
    if args.dump_claims {
        let text = serde_json::to_string_pretty(&claims).expect("claims have text keys only");
        return context.printer.data(&text);
    }
    let token = tokens::sign(&tokens::signing_key(&settings)?, &claims)?;
    if context.printer.json {
        return context.printer.message(&json!({
            "message_type": "token", "token": token.expose(), "jti": claims.jti, "exp": claims.exp,
        }));
    }
    context.printer.data(token.expose())
}
