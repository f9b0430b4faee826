//! The files of a store path: folders from its listing, and files from the frames that hold them.

use dormer_api::{CacheName, Permission};
use dormer_edge::listed_folder;
use dormer_nix::StorePathHash;
use dormer_nix::nar::{ListedNode, ListingSearch};
use dormer_pages::{FileContent, FileView, FilesView, Found, ProblemView, file_address};
use futures::TryStreamExt as _;
use http::header::{CONTENT_DISPOSITION, CONTENT_SECURITY_POLICY};
use http::{HeaderValue, Response, StatusCode};

use super::show::{find, open, query};
use super::{frame, page, redirect};
use crate::app::App;
use crate::body::Body;
use crate::call::Call;
use crate::failure::Failure;
use crate::handlers::browse::{file_pieces, get_file, search_listing};
use crate::handlers::checks::bad_request;

/// Entries on a page.
const PAGE_ENTRIES: usize = 200;

/// Longest name that a page of a folder begins at, in bytes.
const BEGIN_BYTES_MAX: usize = 300;

/// Folders above a file. A deeper file is read by the API.
const DEPTH_MAX: usize = 64;

/// Bytes of a file that its page reads.
const SHOWN_BYTES: u64 = 24 * 1024;

/// A folder, a file, or the download of one.
pub(super) async fn files(
    app: &App,
    call: &Call,
    name: &CacheName,
    hash: &StorePathHash,
) -> Result<Response<Body>, Failure> {
    let names = call.file_names();
    if query(call, "download")?.is_some() {
        return download(app, call, name, hash).await;
    }
    if names.len() > DEPTH_MAX {
        return Err(Failure::BadRequest(format!("pages show at most {DEPTH_MAX} folders in one another")));
    }
    let first = query(call, "from")?.map_or(Ok(0), |from| from.parse::<usize>()).map_err(bad_request)?;
    let begin = query(call, "at")?.unwrap_or_default();
    if begin.len() > BEGIN_BYTES_MAX {
        return Err(Failure::BadRequest(format!("`at` has at most {BEGIN_BYTES_MAX} bytes")));
    }
    let opened = open(app, call, name).await?;
    let (path, nar, search) = {
        // A request that waits holds no object: one may have thousands of references.
        let _turn = app.search_turn(call).await?;
        let found = find(app, &opened, hash).await?;
        if found.nar.damaged {
            return Ok(damaged(app, call));
        }
        let search = ListingSearch::new(names).with_entries(first, PAGE_ENTRIES).beginning_at(&begin);
        let (nar, search) = search_listing(app, &opened.cache, hash, search).await?;
        (found.object.path, nar, search)
    };
    let (node, page_of_folder) = search.finish_with_entries().ok_or(Failure::NoSuchObject)?;
    // The addresses in a folder are relative to it, so that it ends with a slash; no file does.
    let has_slash = call.path().ends_with('/');
    if has_slash != (node == ListedNode::Directory) {
        let root = "../".repeat(call.path().matches('/').count() - 1);
        let address = file_address(name.as_str(), &hash.to_string(), names.iter().map(String::as_str));
        let (address, slash) = (address.trim_end_matches('/'), if has_slash { "" } else { "/" });
        return Ok(redirect(StatusCode::SEE_OTHER, &format!("{root}{address}{slash}")));
    }
    let found = match node {
        ListedNode::Directory => listed_folder(page_of_folder),
        ListedNode::Symlink(target) => Found::Link(target),
        ListedNode::File { size, executable, nar_offset } => {
            let text = if size == 0 || call.is_head() {
                None
            } else {
                let shown = size.min(SHOWN_BYTES);
                let turn = app.file_turn(call).await?;
                let pieces = file_pieces(app, turn, &opened.cache, nar, nar_offset, shown).await?;
                let bytes = pieces.try_fold(Vec::new(), async |mut bytes, piece| {
                    bytes.extend_from_slice(&piece);
                    Ok(bytes)
                });
                match bytes.await {
                    Ok(bytes) => as_text(bytes, shown < size),
                    Err(error) => {
                        tracing::error!(nar.hash = %nar, %error, "cannot read a file for its page");
                        // The read marked what is damaged. What else cannot be read now is not "not
                        // here".
                        let is_damaged = find(app, &opened, hash).await?.nar.damaged;
                        let busy = || Failure::Busy("reads of the store");
                        return if is_damaged { Ok(damaged(app, call)) } else { Err(busy()) };
                    }
                }
            };
            Found::File(FileView { bytes: size, is_executable: executable, content: FileContent::Read(text) })
        }
    };
    let is_file = matches!(found, Found::File(_));
    let view = FilesView {
        cache: opened.cache.name.clone(),
        base_name: path.to_string(),
        names: names.to_vec(),
        found,
    };
    let mut response = page(view.render(&frame(app, call)));
    if call.is_head() && is_file {
        // The text was not read, so its length is not known.
        *response.body_mut() = Body::Unknown;
    }
    Ok(response)
}

/// Trying again later is of no use.
fn damaged(app: &App, call: &Call) -> Response<Body> {
    let view = ProblemView {
        title: "Damaged".to_owned(),
        text: "Bytes of this path are damaged, so its files cannot be read. The next push of the same path \
               heals it."
            .to_owned(),
        request: None,
        from_elsewhere: false,
    };
    let mut response = page(view.render(&frame(app, call)));
    *response.status_mut() = StatusCode::NOT_FOUND;
    response
}

/// The bytes as text, if they are text. A cut may split the last character.
fn as_text(bytes: Vec<u8>, is_cut: bool) -> Option<String> {
    let is_control = |byte: &u8| *byte < 0x20 && !matches!(byte, b'\n' | b'\r' | b'\t' | 0x0c | 0x1b);
    if bytes.iter().any(is_control) {
        return None;
    }
    match String::from_utf8(bytes) {
        Ok(text) => Some(text),
        Err(error) => {
            let valid = error.utf8_error();
            let whole = valid.valid_up_to();
            let is_split = is_cut && valid.error_len().is_none();
            let mut bytes = error.into_bytes();
            bytes.truncate(whole);
            if is_split { String::from_utf8(bytes).ok() } else { None }
        }
    }
}

/// The file itself. A browser saves it and shows nothing of it, whatever it holds.
async fn download(
    app: &App,
    call: &Call,
    name: &CacheName,
    hash: &StorePathHash,
) -> Result<Response<Body>, Failure> {
    app.open_cache(call, name, Permission::Pull).await?;
    let mut response = get_file(app, call, name, hash).await?;
    let headers = response.headers_mut();
    headers.insert(CONTENT_DISPOSITION, HeaderValue::from_static("attachment"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static("default-src 'none'; sandbox"));
    Ok(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_told_from_other_bytes() {
        assert_eq!(as_text(b"a\tb\n".to_vec(), false).as_deref(), Some("a\tb\n"));
        assert_eq!(as_text("naïve".into(), false).as_deref(), Some("naïve"));
        assert_eq!(as_text(b"na\xc3".to_vec(), true).as_deref(), Some("na"));
        assert_eq!(as_text(b"na\xc3".to_vec(), false), None);
        assert_eq!(as_text(b"na\xffx".to_vec(), true), None);
        assert_eq!(as_text(b"\x7fELF\x01\0".to_vec(), true), None);
    }
}
