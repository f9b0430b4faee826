//! The one spelling of an address: each segment of a path is percent-decoded once, strictly.
//!
//! Nix 2.34 and later escape every character of a segment that RFC 3986 does not list as
//! unreserved (`+` in the name of a cache becomes `%2B`, `!` becomes `%21`); earlier versions send
//! these characters as they are. The server, `dormer edge serve` and the Worker decode here before
//! they look at a path, so both spellings name the same thing.
//!
//! Invariants
//! - An escape stands for one of the characters that need one. Letters, digits and `-._~` need
//!   none, so no dot is ever encoded; neither is a slash, a backslash or a percent sign, so no
//!   escape ends a segment and nothing is decoded twice.
//! - Escapes are ASCII: no byte of an over-long or other UTF-8 sequence is accepted.
//! - What is decoded still has to be a valid name: decoding alone accepts nothing.

use std::borrow::Cow;

/// The path of a request with its escapes decoded; borrowed if it has none. `None` for a path with
/// an escape that no client needs to write.
pub fn decode_path(path: &str) -> Option<Cow<'_, str>> {
    let Some((start, _)) = path.split_once('%') else { return Some(Cow::Borrowed(path)) };
    let mut decoded = String::with_capacity(path.len());
    decoded.push_str(start);
    let mut rest = &path[start.len()..];
    while let Some(escape) = rest.strip_prefix('%') {
        let (digits, after) = escape.split_at_checked(2)?;
        decoded.push(char::from(escaped(digits)?));
        let next = after.find('%').unwrap_or(after.len());
        decoded.push_str(&after[..next]);
        rest = &after[next..];
    }
    Some(Cow::Owned(decoded))
}

/// The names in the path of a file in a store path. Names are any text, so every byte may be
/// escaped, and each segment is still decoded once. `None` for a path that names nothing: with an
/// empty name, `.` or `..`, a slash or a zero byte in a name, or bytes that are no UTF-8.
pub fn decode_file_path(path: &str) -> Option<Vec<String>> {
    path.split('/').map(decode_name).collect()
}

/// An address `/{cache}/{hash}/files/…`, up to `files`, and the path behind it without a slash at
/// its end. Neither is decoded: the names of files are any text, the rest has one spelling.
pub fn split_files(path: &str) -> Option<(&str, &str)> {
    let (cache, below) = path.strip_prefix('/')?.split_once('/')?;
    let (hash, files) = below.split_once('/')?;
    let file = files.strip_prefix("files/")?;
    if hash.len() != 32 || cache.starts_with('_') {
        return None;
    }
    let address = &path[..path.len() - file.len() - 1];
    // `//` names nothing.
    let names = file.strip_suffix('/').filter(|names| !names.is_empty()).unwrap_or(file);
    Some((address, names))
}

fn decode_name(segment: &str) -> Option<String> {
    let name = String::from_utf8(unescape(segment)?).ok()?;
    (!matches!(name.as_str(), "" | "." | "..") && !name.contains(['/', '\0'])).then_some(name)
}

/// The bytes that a text with escapes stands for.
fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        let digits = std::str::from_utf8(digits)
            .ok()
            .filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = after;
    }
    Some(bytes)
}

/// The fields of a form, or of the query that a form makes (`application/x-www-form-urlencoded`):
/// names and values, in their order. `None` if an escape is malformed, if the bytes are not UTF-8,
/// or if they hold a zero byte.
pub fn decode_form(text: &str) -> Option<Vec<(String, String)>> {
    let pairs = text.split('&').filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((decode_field(name)?, decode_field(value)?))
        })
        .collect()
}

fn decode_field(text: &str) -> Option<String> {
    let text = String::from_utf8(unescape(&text.replace('+', " "))?).ok()?;
    (!text.contains('\0')).then_some(text)
}

/// The character that two hexadecimal digits stand for, if it needs an escape.
fn escaped(digits: &str) -> Option<u8> {
    let are_digits = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    let byte = u8::from_str_radix(digits, 16).ok().filter(|_| are_digits)?;
    let needs_one = byte.is_ascii_punctuation() && !b"-._~/\\%".contains(&byte);
    needs_one.then_some(byte)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 3986, 2.3.
    fn is_unreserved(byte: u8) -> bool {
        byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
    }

    /// As Nix 2.34 writes a segment.
    fn as_nix_writes(segment: &str) -> String {
        let escape = |byte: u8| {
            if is_unreserved(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }
        };
        segment.bytes().map(escape).collect()
    }

    #[test]
    fn the_path_of_a_file_has_any_names_and_no_way_out() {
        for (path, names) in [
            ("bin/hello", &["bin", "hello"][..]),
            ("a%20b/%C3%A9/%2525", &["a b", "é", "%25"]),
            ("share/..x/.y/a+b", &["share", "..x", ".y", "a+b"]),
        ] {
            assert_eq!(decode_file_path(path).unwrap(), names, "{path}");
        }
        for path in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            ".",
            "..",
            "a/../b",
            "a/%2e%2e/b",
            "%2E",
            "a%2Fb",
            "a%00",
            "%",
            "%2",
            "%g0",
            "%+1",
            "%c0%af",
            "%ff",
            "%C3",
        ] {
            assert_eq!(decode_file_path(path), None, "{path}");
        }
    }

    #[test]
    fn files_have_an_address_of_their_own() {
        let address = "/main/1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5/files";
        for (rest, file) in
            [("/", ""), ("//", "/"), ("/bin", "bin"), ("/bin/", "bin"), ("/bin/a%20b", "bin/a%20b")]
        {
            let path = format!("{address}{rest}");
            assert_eq!(split_files(&path), Some((address, file)), "{path}");
        }
        for path in
            [address, "/main/x/files/", "/_api/1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5/files/x", "/main/files/x"]
        {
            assert_eq!(split_files(path), None, "{path}");
        }
    }

    #[test]
    fn the_fields_of_a_form_are_any_text() {
        let fields = decode_form("q=a+b%2Bc&&x=%C3%A9%26%3D=&y").unwrap();
        let fields: Vec<_> = fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(fields, [("q", "a b+c"), ("x", "é&=="), ("y", "")]);
        assert_eq!(decode_form(""), Some(vec![]));
        for text in ["q=%", "q=%2", "q=%g0", "q=%ff", "q=%00", "%c0%af=x"] {
            assert_eq!(decode_form(text), None, "{text}");
        }
    }

    #[test]
    fn every_escape_is_decoded_once_or_refused() {
        for (path, decoded) in [
            ("/main/nix-cache-info", "/main/nix-cache-info"),
            ("/a%2Bb/nix-cache-info", "/a+b/nix-cache-info"),
            ("/a%2bb/nix-cache-info", "/a+b/nix-cache-info"),
            ("/a+b/nix-cache-info", "/a+b/nix-cache-info"),
            ("/main/realisations/sha256%3Aab%21out.doi", "/main/realisations/sha256:ab!out.doi"),
            ("/main/log/x%3Fy%3D.drv", "/main/log/x?y=.drv"),
            ("/%21%23", "/!#"),
            ("%2B", "+"),
        ] {
            assert_eq!(decode_path(path).as_deref(), Some(decoded), "{path}");
        }
        for path in [
            "/%",
            "/%2",
            "/%2/x",
            "/%%2B",
            "/%g0",
            "/%2G",
            "/% B",
            "/%+B",
            "/%-1",
            "/%0x2B",
            "/%u002B",
            // Unreserved: a letter, a digit, and the four signs.
            "/m%61in",
            "/%30",
            "/%2e%2e/x",
            "/%2E",
            "/x%2Dy",
            "/%5Fapi",
            "/%7E",
            // What would end a segment, or be decoded again.
            "/a%2fb",
            "/a%2Fb",
            "/a%5Cb",
            "/%252B",
            "/%25",
            // No printable ASCII: controls, a space, UTF-8, an over-long dot and slash.
            "/%00",
            "/%0A",
            "/%1f",
            "/%20",
            "/%7f",
            "/%C3%A9",
            "/%c0%ae",
            "/%c0%af",
            "/%FF",
            "/%é",
            "/%2é",
        ] {
            assert_eq!(decode_path(path), None, "{path}");
        }
    }

    proptest! {
        #[test]
        fn what_nix_escapes_comes_back(segments in proptest::collection::vec("[!-.0-\\[\\]-~&&[^%]]{0,20}", 1..4)) {
            let written: Vec<String> = segments.iter().map(|segment| as_nix_writes(segment)).collect();
            let (written, plain) = (written.join("/"), segments.join("/"));
            let decoded = decode_path(&written);
            prop_assert_eq!(decoded.as_deref(), Some(plain.as_str()));
        }

        #[test]
        fn decoding_never_adds_a_segment_or_a_dot(path in "(%[0-9a-fA-F]{2}|[ -~]|é){0,12}") {
            if let Some(decoded) = decode_path(&path) {
                for special in ['/', '.', '\\', '%'] {
                    let count = |text: &str| text.matches(special).count();
                    let expected = if special == '%' { 0 } else { count(&path) };
                    prop_assert_eq!(count(&decoded), expected, "{} in {}", special, path);
                }
            }
        }
    }
}
