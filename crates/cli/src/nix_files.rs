//! Edits `nix.conf` and `netrc` so that every edit can be undone.
//!
//! The added lines stand between two comment lines that name the cache. Nothing outside of them
//! ever changes, not even a missing line break at the end of a file. Pure: texts in, texts out.

use std::ops::Range;

/// A file of the user, with marked blocks of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct MarkedFile {
    text: String,
}

impl MarkedFile {
    pub(crate) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into() }
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Sets the lines of the block `name`: in place of an existing block, else at the end. In
    /// `nix.conf`, a later `substituters =` would undo an earlier `extra-substituters =`, so a new
    /// block goes to the end.
    pub(crate) fn set(&mut self, name: &str, lines: &[String]) {
        let block = format!("{}\n{}\n{}", begin(name), lines.join("\n"), end(name));
        if let Some(range) = self.find(name) {
            self.text.replace_range(range, &block);
        } else if self.text.is_empty() || self.text.ends_with('\n') {
            self.text.push_str(&block);
            self.text.push('\n');
        } else {
            // A file without a final line break stays like that.
            self.text.push('\n');
            self.text.push_str(&block);
        }
    }

    /// Sets the lines of the block `name` in a netrc file: at the beginning, where no `default`
    /// hides them. A block that nothing hides stays in its place.
    pub(crate) fn set_in_netrc(&mut self, name: &str, lines: &[String]) {
        let is_reachable = self.find(name).is_some_and(|range| {
            netrc_entries(self.text[..range.start].lines()).iter().all(|entry| entry.host.is_some())
        });
        if is_reachable {
            self.set(name, lines);
        } else {
            self.remove(name);
            self.text.insert_str(0, &format!("{}\n{}\n{}\n", begin(name), lines.join("\n"), end(name)));
        }
    }

    /// Removes `name` and its lines. Returns `false` if there is no such block.
    pub(crate) fn remove(&mut self, name: &str) -> bool {
        let Some(Range { mut start, mut end }) = self.find(name) else { return false };
        if self.text[end..].starts_with('\n') {
            end += 1;
        } else if self.text[..start].ends_with('\n') {
            start -= 1;
        }
        self.text.replace_range(start..end, "");
        true
    }

    /// Names of all blocks.
    pub(crate) fn names(&self) -> Vec<&str> {
        self.text
            .lines()
            .filter_map(|line| line.strip_prefix(BEGIN))
            .filter(|name| self.find(name).is_some())
            .collect()
    }

    /// The lines of a block without its marks. Empty if there is no such block.
    pub(crate) fn lines_of(&self, name: &str) -> Vec<&str> {
        let block = self.find(name).map(|range| &self.text[range]);
        let lines: Vec<&str> = block.unwrap_or_default().lines().collect();
        lines.get(1..lines.len().saturating_sub(1)).unwrap_or_default().to_vec()
    }

    /// The lines outside of our blocks.
    pub(crate) fn foreign_lines(&self) -> Vec<&str> {
        let blocks: Vec<Range<usize>> = self.names().into_iter().filter_map(|name| self.find(name)).collect();
        let offset = |line: &str| line.as_ptr() as usize - self.text.as_ptr() as usize;
        self.text.lines().filter(|line| !blocks.iter().any(|block| block.contains(&offset(line)))).collect()
    }

    /// The range from the first byte of the first mark to the last byte of the second.
    fn find(&self, name: &str) -> Option<Range<usize>> {
        let mut start = None;
        let mut offset = 0;
        for line in self.text.split_inclusive('\n') {
            let content = line.trim_end_matches(['\n', '\r']);
            if content == begin(name) {
                start = Some(offset);
            } else if let Some(start) = start
                && content == end(name)
            {
                return Some(start..offset + content.len());
            }
            offset += line.len();
        }
        None
    }
}

const BEGIN: &str = "# >>> dormer use ";
const END: &str = "# <<< dormer use ";

fn begin(name: &str) -> String {
    format!("{BEGIN}{name}")
}

fn end(name: &str) -> String {
    format!("{END}{name}")
}

/// The value of a setting of `nix.conf` outside of our blocks. The last line counts.
pub(crate) fn find_nix_setting<'a>(file: &'a MarkedFile, name: &str) -> Option<&'a str> {
    file.foreign_lines().into_iter().rev().find_map(|line| {
        let line = line.split('#').next().unwrap_or_default();
        let (key, value) = line.split_once('=')?;
        (key.trim() == name).then(|| value.trim())
    })
}

/// The words of a list setting (`substituters` with its `extra-` form) outside of our blocks.
pub(crate) fn nix_list_contains(file: &MarkedFile, name: &str, word: &str) -> bool {
    file.foreign_lines().into_iter().any(|line| {
        let line = line.split('#').next().unwrap_or_default();
        line.split_once('=').is_some_and(|(key, value)| {
            key.trim().trim_start_matches("extra-") == name
                && value.split_whitespace().any(|item| item == word)
        })
    })
}

/// One entry of a netrc file.
struct NetrcEntry<'a> {
    /// The host; `None` is `default`, which fits every host.
    host: Option<&'a str>,
    password: Option<&'a str>,
}

fn netrc_entries<'a>(lines: impl IntoIterator<Item = &'a str>) -> Vec<NetrcEntry<'a>> {
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

/// Whether a line of the user gives a password for this host. curl takes the first matching entry,
/// so an entry behind `default` counts for nothing.
pub(crate) fn netrc_has_machine(file: &MarkedFile, host: &str) -> bool {
    let entries = netrc_entries(file.foreign_lines());
    entries.iter().take_while(|entry| entry.host.is_some()).any(|entry| entry.host == Some(host))
}

/// The hosts whose entries `default` hides.
pub(crate) fn netrc_hidden_hosts(text: &str) -> Vec<&str> {
    let entries = netrc_entries(text.lines());
    entries.into_iter().skip_while(|entry| entry.host.is_some()).filter_map(|entry| entry.host).collect()
}

/// The password of a netrc file for a host. The first matching entry counts, as in curl.
pub(crate) fn netrc_password<'a>(text: &'a str, host: &str) -> Option<&'a str> {
    let entries = netrc_entries(text.lines());
    entries.iter().filter(|entry| entry.host.is_none_or(|own| own == host)).find_map(|entry| entry.password)
}

/// Longest line of a netrc file that curl surely reads: it takes 4,096 bytes in the oldest version
/// of Nix, and drops a longer line without a word.
pub(crate) const NETRC_LINE_BYTES_MAX: usize = 4_000;

/// Bytes of a line beside the token: the words and the longest name of a host.
pub(crate) const NETRC_LINE_ROOM: usize = 300;

/// What a line that is too long means.
pub(crate) const NETRC_TOO_LONG: &str = "with this token, the entry has more than 4,000 bytes, and some versions of Nix drop a netrc line of that length: make a token with fewer permissions, or with patterns such as 'team-*' in place of many names";

/// The host in the form of netrc files: without user, port and brackets.
pub(crate) fn host_of(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = rest.split(['/', '?']).next().unwrap_or_default();
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    match host.strip_prefix('[').and_then(|host| host.split_once(']')) {
        Some((address, _)) => address,
        None => host.split_once(':').map_or(host, |(host, _)| host),
    }
}

/// One line of a change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Removed(String),
    Added(String),
}

impl Change {
    pub(crate) fn line(&self) -> &str {
        match self {
            Self::Removed(line) | Self::Added(line) => line,
        }
    }
}

/// The changed lines. Our edits change one run of lines, so comparing common beginnings and ends is
/// enough.
pub(crate) fn changes(before: &str, after: &str) -> Vec<Change> {
    changes_shown(before, after, |text| text.lines().map(str::to_owned).collect())
}

/// The changed lines of a netrc file without passwords, fit to be shown. The lines of others are
/// among them where an entry of ours moves.
pub(crate) fn netrc_changes(before: &str, after: &str) -> Vec<Change> {
    changes_shown(before, after, netrc_without_passwords)
}

/// `shown` gives one text for each line. A line that differs only in its password has changed, too.
fn changes_shown(before: &str, after: &str, shown: impl Fn(&str) -> Vec<String>) -> Vec<Change> {
    let (old, new): (Vec<&str>, Vec<&str>) = (before.lines().collect(), after.lines().collect());
    let head = old.iter().zip(&new).take_while(|(a, b)| a == b).count();
    let tail = old[head..].iter().rev().zip(new[head..].iter().rev()).take_while(|(a, b)| a == b).count();
    let run = |text: &str, lines: usize| shown(text).into_iter().take(lines - tail).skip(head);
    let removed = run(before, old.len()).map(Change::Removed);
    removed.chain(run(after, new.len()).map(Change::Added)).collect()
}

/// The lines of a netrc file, with `[redacted]` in place of every word after `password` or
/// `account`, on the same line or on the next that has one.
///
/// Whether such a word is a key or itself a value does not matter, nor whether it is in a comment:
/// the word after it goes. So no misunderstanding shows a password. A word in quotes may contain
/// blanks.
fn netrc_without_passwords(text: &str) -> Vec<String> {
    const BLANKS: [char; 2] = [' ', '\t'];
    let mut is_secret = false;
    let mut lines = Vec::new();
    for line in text.lines() {
        let is_comment = line.trim_start().starts_with('#');
        let was_secret = is_secret;
        let mut shown = String::new();
        let mut rest = line;
        while let Some(start) = rest.find(|c: char| !BLANKS.contains(&c)) {
            shown.push_str(&rest[..start]);
            rest = &rest[start..];
            let end = if is_secret { end_of_value(rest) } else { rest.find(BLANKS).unwrap_or(rest.len()) };
            let (word, after) = rest.split_at(end);
            rest = after;
            // The mark of a comment is no word.
            if is_comment && word.chars().all(|c| c == '#') {
                shown.push_str(word);
                continue;
            }
            shown.push_str(if is_secret { "[redacted]" } else { word });
            let key = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
            is_secret = ["password", "account"].iter().any(|secret| key.eq_ignore_ascii_case(secret));
        }
        shown.push_str(rest);
        lines.push(shown);
        // Others skip the comment, and find the value behind it.
        is_secret |= is_comment && was_secret;
    }
    lines
}

/// Where a value at the beginning of `text` ends: at a blank, or after its closing quote.
fn end_of_value(text: &str) -> usize {
    let Some(quoted) = text.strip_prefix('"') else { return text.find([' ', '\t']).unwrap_or(text.len()) };
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

    fn lines(texts: &[&str]) -> Vec<String> {
        texts.iter().map(|text| (*text).to_owned()).collect()
    }

    const FILES: [&str; 6] = [
        "",
        "\n",
        "experimental-features = nix-command\n",
        "no line break at the end",
        "dos = 1\r\nlines = 2\r\n",
        "a = 1\n\n\n# >>> dormer use half a block\nb = 2",
    ];

    #[test]
    fn taking_back_restores_every_byte() {
        for text in FILES {
            let mut file = MarkedFile::new(text);
            file.set("lab:main", &lines(&["x = 1", "y = 2"]));
            file.set("lab:other", &lines(&["z = 3"]));
            file.set("lab:main", &lines(&["x = 4"]));
            assert_eq!(file.names(), ["lab:main", "lab:other"]);
            assert!(file.text().contains("x = 4") && !file.text().contains("y = 2"));
            for order in [["lab:main", "lab:other"], ["lab:other", "lab:main"]] {
                let mut file = file.clone();
                assert!(file.remove(order[0]) && file.remove(order[1]));
                assert_eq!(file.text(), text);
                assert!(!file.remove(order[0]));
            }
        }
    }

    #[test]
    fn setting_the_same_again_changes_nothing() {
        for text in FILES {
            let mut file = MarkedFile::new(text);
            file.set("lab:main", &lines(&["x = 1"]));
            let once = file.clone();
            file.set("lab:main", &lines(&["x = 1"]));
            assert_eq!(file, once);
        }
    }

    #[test]
    fn lines_that_others_add_around_and_inside_are_respected() {
        let mut file = MarkedFile::new("a = 1\n");
        file.set("lab:main", &lines(&["x = 1"]));
        let mut file = MarkedFile::new(format!("{}b = 2\n", file.text()));
        assert_eq!(file.foreign_lines(), ["a = 1", "b = 2"]);
        assert!(file.remove("lab:main"));
        assert_eq!(file.text(), "a = 1\nb = 2\n");
    }

    #[test]
    fn settings_are_found_outside_of_our_blocks_only() {
        let mut file =
            MarkedFile::new("netrc-file = /a\n substituters=http://a  http://b # http://c\nnetrc-file=/b\n");
        file.set("lab:main", &lines(&["netrc-file = /ours", "extra-substituters = http://d"]));
        assert_eq!(find_nix_setting(&file, "netrc-file"), Some("/b"));
        assert!(nix_list_contains(&file, "substituters", "http://b"));
        assert!(!nix_list_contains(&file, "substituters", "http://c"));
        assert!(!nix_list_contains(&file, "substituters", "http://d"));
    }

    #[test]
    fn entries_of_a_netrc_are_found_in_any_layout() {
        let file = MarkedFile::new("machine a login x password y\nmachine\n  b\n login z\n# machine c\n");
        assert!(netrc_has_machine(&file, "a") && netrc_has_machine(&file, "b"));
        assert!(!netrc_has_machine(&file, "c") && !netrc_has_machine(&file, "x"));
    }

    /// Where a `default` of the user stands, ours is in front, and goes without a trace.
    #[test]
    fn no_default_hides_an_entry_of_ours() {
        for text in [
            "",
            "default login a password b",
            "machine x password y\ndefault\n login a password b\nmachine h password hidden\n",
            "# default\nmachine x login default password y\n",
        ] {
            let entry = |token: &str| lines(&[&format!("machine h login dormer password {token}")]);
            let mut file = MarkedFile::new(text);
            assert!(!netrc_has_machine(&file, "h"), "{text}");
            file.set_in_netrc("lab", &entry("one"));
            file.set_in_netrc("lab", &entry("two"));
            assert_eq!(netrc_password(file.text(), "h"), Some("two"), "{text}");
            assert!(file.remove("lab"));
            assert_eq!(file.text(), text);
            // An entry at the end, from before, moves.
            file.set("lab", &entry("old"));
            file.set_in_netrc("lab", &entry("new"));
            assert_eq!(netrc_password(file.text(), "h"), Some("new"), "{text}");
        }
        assert_eq!(netrc_hidden_hosts("machine a\ndefault\nmachine b\nmachine c\n"), ["b", "c"]);
        assert!(netrc_hidden_hosts("machine default password default\nmachine b\n").is_empty());
    }

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
    fn the_lines_of_a_block_are_those_that_were_set() {
        let mut file = MarkedFile::new("a = 1\n");
        file.set("lab:main", &lines(&["x = 1", "y = 2"]));
        assert_eq!(file.lines_of("lab:main"), ["x = 1", "y = 2"]);
        assert!(file.lines_of("lab:other").is_empty());
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
    fn changes_are_the_lines_that_differ() {
        let removed = |line: &str| Change::Removed(line.to_owned());
        let added = |line: &str| Change::Added(line.to_owned());
        assert_eq!(changes("a\nb\nc\n", "a\nx\ny\nc\n"), [removed("b"), added("x"), added("y")]);
        assert_eq!(changes("", "a\n"), [added("a")]);
        assert_eq!(changes("a\na\n", "a\n"), [removed("a")]);
        assert_eq!(changes("a\n", "a\n"), []);
        // A new password is a change, although both lines look the same.
        let (old, new) = ("machine h password one\nb\n", "machine h password two\nb\n");
        let shown = "machine h password [redacted]";
        assert_eq!(netrc_changes(old, new), [removed(shown), added(shown)]);
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
            ("a = 1  b", "a = 1  b"),
        ] {
            assert_eq!(netrc_without_passwords(text).join("\n"), shown, "{text:?}");
        }
    }
}
