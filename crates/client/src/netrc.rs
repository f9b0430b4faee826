//! What a netrc file says, as curl and so Nix read it.
//!
//! The file holds the tokens of this machine, and may have any content: people and other programs
//! write it. Pure: texts in, texts out.

/// One entry of a netrc file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NetrcEntry<'a> {
    /// The host; `None` is `default`, which fits every host.
    pub host: Option<&'a str>,
    /// The first password of the entry.
    pub password: Option<&'a str>,
}

/// The entries of these lines, in order. Comments are left out.
pub fn netrc_entries<'a>(lines: impl IntoIterator<Item = &'a str>) -> Vec<NetrcEntry<'a>> {
    let lines = lines.into_iter().filter(|line| !line.trim_start().starts_with('#'));
    let mut words = lines.flat_map(str::split_whitespace);
    let mut entries: Vec<NetrcEntry<'a>> = Vec::new();
    while let Some(word) = words.next() {
        match word {
            "machine" => {
                entries.extend(words.next().map(|host| NetrcEntry { host: Some(host), password: None }));
            }
            "default" => entries.push(NetrcEntry { host: None, password: None }),
            "password" => {
                let password = words.next();
                if let Some(entry) = entries.last_mut() {
                    entry.password = entry.password.or(password);
                }
            }
            "login" | "account" => drop(words.next()),
            _ => {}
        }
    }
    entries
}

/// The hosts whose entries `default` hides.
pub fn netrc_hidden_hosts(text: &str) -> Vec<&str> {
    let entries = netrc_entries(text.lines());
    entries.into_iter().skip_while(|entry| entry.host.is_some()).filter_map(|entry| entry.host).collect()
}

/// The password of a netrc file for a host. The first matching entry counts, as in curl.
pub fn netrc_password<'a>(text: &'a str, host: &str) -> Option<&'a str> {
    let entries = netrc_entries(text.lines());
    entries.iter().filter(|entry| entry.host.is_none_or(|own| own == host)).find_map(|entry| entry.password)
}

/// Longest line of a netrc file that curl surely reads: it takes 4,096 bytes in the oldest version
/// of Nix, and drops a longer line without a word.
pub const NETRC_LINE_BYTES_MAX: usize = 4_000;

/// Bytes of a line beside the token: the words and the longest name of a host.
pub const NETRC_LINE_ROOM: usize = 300;

/// What a line that is too long means.
pub const NETRC_TOO_LONG: &str = "with this token, the entry has more than 4,000 bytes, and some versions of Nix drop a netrc line of that length: make a token with fewer permissions, or with patterns such as 'team-*' in place of many names";

/// The host in the form of netrc files: without user, port and brackets.
pub fn host_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    match host.strip_prefix('[').and_then(|host| host.split_once(']')) {
        Some((address, _)) => address,
        None => host.split_once(':').map_or(host, |(host, _)| host),
    }
}

/// The lines of a netrc file, with `[redacted]` in place of every word after `password` or
/// `account`, on the same line or on the next that has one.
///
/// Whether such a word is a key or itself a value does not matter, nor whether it is in a comment:
/// the word after it goes. So no misunderstanding shows a password. A word in quotes may contain
/// blanks.
///
/// Every control character and every blank of Unicode ends a word here: programs disagree about
/// which of them do.
pub fn netrc_without_passwords(text: &str) -> Vec<String> {
    let mut is_secret = false;
    let mut lines = Vec::new();
    for line in text.lines() {
        let is_comment = line.trim_start().starts_with('#');
        let was_secret = is_secret;
        let mut shown = String::new();
        let mut rest = line;
        while let Some(start) = rest.find(|c: char| !is_blank(c)) {
            shown.push_str(&rest[..start]);
            rest = &rest[start..];
            let end = if is_secret { end_of_value(rest) } else { rest.find(is_blank).unwrap_or(rest.len()) };
            let (word, after) = rest.split_at(end);
            rest = after;
            // The mark of a comment is no word.
            if is_comment && word.chars().all(|c| c == '#') {
                shown.push_str(word);
                continue;
            }
            shown.push_str(if is_secret { "[redacted]" } else { word });
            // A quote without an end takes the rest of the line here, and one word elsewhere.
            let last = word.rsplit(is_blank).find(|part| !part.is_empty()).unwrap_or_default();
            let key = last.trim_matches(|c: char| !c.is_ascii_alphanumeric());
            is_secret = ["password", "account"].iter().any(|secret| key.eq_ignore_ascii_case(secret));
        }
        shown.push_str(rest);
        lines.push(shown);
        // Others skip the comment, and find the value behind it.
        is_secret |= is_comment && was_secret;
    }
    lines
}

fn is_blank(c: char) -> bool {
    c.is_whitespace() || c.is_control()
}

/// Where a value at the beginning of `text` ends: at a blank, or after its closing quote.
fn end_of_value(text: &str) -> usize {
    let Some(quoted) = text.strip_prefix('"') else { return text.find(is_blank).unwrap_or(text.len()) };
    let mut escaped = false;
    for (at, c) in quoted.char_indices() {
        match c {
            '"' if !escaped => return 1 + at + 1,
            _ => escaped = c == '\\' && !escaped,
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_password_for_a_host_is_found() {
        let text = "# machine a login x password no\nmachine a login password password one\nmachine\n  b\n password two\n\
                    machine a password three\n";
        assert_eq!(netrc_password(text, "a"), Some("one"));
        assert_eq!(netrc_password(text, "b"), Some("two"));
        assert_eq!(netrc_password(text, "c"), None);
        assert_eq!(netrc_password("machine a\ndefault password all", "c"), Some("all"));
    }

    #[test]
    fn hosts_are_named_as_netrc_files_name_them() {
        for (url, host) in [
            ("https://cache.example.org/main", "cache.example.org"),
            ("http://127.0.0.1:8080/main", "127.0.0.1"),
            ("http://[::1]:8080/main", "::1"),
            ("https://ada:x@example.org", "example.org"),
        ] {
            assert_eq!(host_of(url), host);
        }
    }

    #[test]
    fn no_layout_of_a_netrc_file_shows_a_password() {
        for (text, shown) in [
            ("machine h login dormer password S", "machine h login dormer password [redacted]"),
            ("default login a password S", "default login a password [redacted]"),
            (
                "\tmachine h\tlogin a\tpassword\tS\taccount\tS",
                "\tmachine h\tlogin a\tpassword\t[redacted]\taccount\t[redacted]",
            ),
            ("machine h\n  password S\n  login a", "machine h\n  password [redacted]\n  login a"),
            (
                "machine h password\n\n  S login a\nmachine i",
                "machine h password\n\n  [redacted] login a\nmachine i",
            ),
            (
                "machine h password S machine i account S",
                "machine h password [redacted] machine i account [redacted]",
            ),
            ("machine h PASSWORD S", "machine h PASSWORD [redacted]"),
            // A value that looks like a key.
            ("login password password S", "login password [redacted] [redacted]"),
            ("password password\nlogin S", "password [redacted]\n[redacted] S"),
            // Comments: those that were entries, and those between a key and its value.
            ("# machine h password S", "# machine h password [redacted]"),
            ("#password\n# S\nmachine h", "#password\n# [redacted]\n[redacted] h"),
            ("password\n# S\nS\nmachine h", "password\n# [redacted]\n[redacted]\nmachine h"),
            // Quotes, as curl reads them.
            (r#"password "S \"S S" login a"#, "password [redacted] login a"),
            (r#""password" "S" login "a b""#, r#""password" [redacted] login "a b""#),
            ("password \"S S", "password [redacted]"),
            ("account \"S password\nS", "account [redacted]\n[redacted]"),
            // Blanks and controls that end a word in some programs only.
            ("password\u{b}S\u{a0}login a", "password\u{b}[redacted]\u{a0}login a"),
            ("password\rS\u{1}login a", "password\r[redacted]\u{1}login a"),
            ("a = 1  b", "a = 1  b"),
        ] {
            assert_eq!(netrc_without_passwords(text).join("\n"), shown, "{text:?}");
        }
    }
}
