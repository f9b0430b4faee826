//! One checked property per parser of foreign bytes: a plain function that panics when the property
//! fails.
//!
//! Tests run the targets over `fuzz/corpus/client_*` and over mutations of it. A fuzzer can run
//! them for longer (`fuzz/README.md`).

use std::time::{Duration, SystemTime};

use dormer_api::{CacheName, UploadPathNarInfo};

use crate::netrc::{host_of, netrc_entries, netrc_hidden_hosts, netrc_password, netrc_without_passwords};
use crate::queue::{EntryId, QueueEntry, QueuedCache};
use crate::retry::parse_retry_after;
use crate::{Endpoint, NixConfig, PathInfo, SubstituterUrl};

/// The output of `nix path-info --json` in any of its forms: each path appears once, in order. Its
/// metadata survives being sent, and names the path.
pub fn fuzz_path_info(data: &[u8]) {
    let Ok(infos) = PathInfo::parse_all(data) else { return };
    assert!(infos.windows(2).all(|pair| pair[0].path < pair[1].path));
    let cache: CacheName = "main".parse().expect("a valid name");
    for info in &infos {
        assert!(info.absolute_path().starts_with(&info.store_dir.to_string()));
        let sent = info.upload_info(&cache);
        let json = serde_json::to_vec(&sent).expect("metadata always fits JSON");
        // Metadata has a size limit. Below the limit, the reader gets what the client sent.
        let Ok(read) = UploadPathNarInfo::parse(&json) else { continue };
        assert_eq!(read, sent);
        if let Ok(resolved) = read.resolve(&info.store_dir) {
            assert_eq!(resolved.store_path, info.path);
        }
    }
}

/// A netrc file. No password is shown, whatever the layout, and the shown text has as many lines.
pub fn fuzz_netrc(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let shown = netrc_without_passwords(text);
    assert_eq!(shown.len(), text.lines().count());
    let entries = netrc_entries(text.lines());
    for entry in &entries {
        let Some(password) = entry.password else { continue };
        // A word that is a key too makes the word behind it a secret, so it changes what is shown.
        let is_key = ["password", "account"].iter().any(|key| password.eq_ignore_ascii_case(key));
        if is_key || !password.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            continue;
        }
        let start = password.as_ptr().addr() - text.as_ptr().addr();
        let (before, after) = (&text[..start], &text[start + password.len()..]);
        let other = format!("{before}another1{after}");
        assert_eq!(netrc_without_passwords(&other), shown, "the shown text depends on {password:?}");
    }
    let hidden = netrc_hidden_hosts(text);
    assert!(hidden.len() <= entries.len());
    for entry in entries.iter().take_while(|entry| entry.host.is_some()) {
        if let (Some(host), Some(_)) = (entry.host, entry.password) {
            assert!(netrc_password(text, host).is_some(), "{host}");
        }
    }
}

/// The address of a cache that a server reports to `dormer use`. What is written is one word of
/// printable ASCII, is an address and no setting, is read again as the same, and names one host to
/// every reader.
pub fn fuzz_substituter_url(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(url) = text.parse::<SubstituterUrl>() else { return };
    let written = url.to_string();
    assert!(written.bytes().all(|byte| byte.is_ascii_graphic()), "{written}");
    assert!(!written.contains(['?', '#', '"', '\\']), "{written}");
    let again: SubstituterUrl = written.parse().expect("a written address is an address");
    assert_eq!(again.to_string(), written);
    let as_endpoint: Endpoint = written.parse().expect("a written address is an endpoint");
    let host = as_endpoint.url().host_str().unwrap_or_default();
    assert_eq!(host_of(&written), host.trim_start_matches('[').trim_end_matches(']'), "the netrc's host");
    assert!(!url.is_other_host(&as_endpoint) && !url.is_downgrade(&as_endpoint));
}

/// The output of `nix config show --json`. Words of lists are words, and a setting has one type.
pub fn fuzz_nix_config(data: &[u8]) {
    let Ok(config) = NixConfig::parse(data) else { return };
    for name in config.names() {
        let (list, text, flag) = (config.list(name), config.text(name), config.flag(name));
        if let Some(text) = text {
            assert!(flag.is_none());
            assert!(list.iter().all(|word| !word.is_empty() && !word.contains(char::is_whitespace)));
            assert_eq!(list.is_empty(), text.trim().is_empty());
        }
        assert!(flag.is_none() || list.is_empty());
    }
    assert!(config.list("\u{0} no such setting").is_empty());
}

/// An entry of the queue, in a file that any version of the program may have written. What was read
/// is written so that it reads the same. The name of an entry is safe as a file's.
pub fn fuzz_queue_entry(data: &[u8]) {
    if let Ok(entry) = QueueEntry::decode(data) {
        assert_eq!(QueueEntry::decode(&entry.encode()).expect("what we wrote, we read"), entry);
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(cache) = text.parse::<QueuedCache>() {
        assert_eq!(cache.to_string().parse::<QueuedCache>().expect("what we wrote, we read"), cache);
    }
    if let Ok(id) = text.parse::<EntryId>() {
        assert!(id.as_str() == text && !text.contains(['/', '.']) && text.ends_with(id.shard()));
    }
}

/// `Retry-After`, as a server or a proxy sends it: seconds count from the answer, and a date comes
/// nearer.
pub fn fuzz_retry_after(data: &[u8]) {
    const NEARER: Duration = Duration::from_secs(100);
    let Ok(text) = std::str::from_utf8(data) else { return };
    let now = Duration::from_secs(1_700_000_000);
    let later = now + NEARER;
    let at = |since_epoch| parse_retry_after(text, SystemTime::UNIX_EPOCH + since_epoch);
    match (at(now), at(later)) {
        (None, None) => {}
        (Some(wait), Some(less)) => assert!(less == wait || less == wait.saturating_sub(NEARER)),
        other => panic!("{text:?} depends on the clock: {other:?}"),
    }
}
