//! `dormer cat`: one file out of a path of a cache.

use clap::Args;
use dormer_client::CacheRef;
use dormer_nix::{StorePath, StorePathHash};

use crate::context::{Context, EXIT_CODES_OF_CLIENT, EndpointArgs};
use crate::error::{Error, Result};

/// Print a file of a path that a cache has
///
/// The server reads only the part of the archive that holds the file. On a terminal, the command
/// shows characters that terminals obey, as \u{1b} for example. A file or a pipe gets the bytes.
///
/// Examples:
///   dormer cat main /nix/store/3n58xw4373jp0ljirf06d8077j15pc4j-hello-2.12/bin/hello >hello
///   dormer cat main 3n58xw4373jp0ljirf06d8077j15pc4j/share/doc/README
#[derive(Debug, Args)]
#[command(verbatim_doc_comment, after_long_help = EXIT_CODES_OF_CLIENT)]
pub(crate) struct CatArgs {
    #[command(flatten)]
    pub(crate) server: EndpointArgs,
    /// [SERVER:]CACHE
    cache: CacheRef,
    /// A store path or its hash, and the path of a file in it
    #[arg(value_name = "PATH/FILE")]
    file: String,
}

pub(super) async fn run(args: CatArgs, context: &Context) -> Result<()> {
    let (hash, names) = split(&args.file).ok_or_else(|| {
        Error::usage(
            format!("{} is not a store path with a file in it", args.file),
            "the form is /nix/store/<hash>-<name>/<path of the file>, or <hash>/<path of the file>",
        )
    })?;
    let (_, api) = context.connect_to_cache(&args.cache)?;
    let mut file = api.get_file(&args.cache.cache, &hash, &names).await?;
    let mut output = context.printer.file_data();
    while let Some(piece) = file.next().await? {
        output.write(&piece)?;
    }
    output.finish()
}

/// The hash of the store path, and the names behind it.
fn split(file: &str) -> Option<(StorePathHash, Vec<String>)> {
    let mut names = file.split('/').filter(|name| !matches!(*name, "" | "."));
    let hash = names.find_map(|name| {
        let path = name.parse::<StorePath>().map(|path| path.hash());
        path.or_else(|_| name.parse::<StorePathHash>()).ok()
    })?;
    let names: Vec<String> = names.map(str::to_owned).collect();
    (!names.is_empty()).then_some((hash, names))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_named_with_and_without_its_store_folder() {
        let hash = "3n58xw4373jp0ljirf06d8077j15pc4j";
        for file in [
            format!("/nix/store/{hash}-hello-2.12/bin/hello"),
            format!("{hash}-hello-2.12/bin/hello"),
            format!("{hash}/bin//hello"),
            format!("/other/store/{hash}-x/./bin/hello"),
        ] {
            let (found, names) = split(&file).expect("a file");
            assert_eq!(
                (found.to_string().as_str(), names),
                (hash, vec!["bin".to_owned(), "hello".to_owned()])
            );
        }
        for file in ["", "/", hash, "/nix/store", "bin/hello", "hello"] {
            assert!(split(file).is_none(), "{file}");
        }
    }
}
