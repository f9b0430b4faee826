//! Pages for people: how to use a cache, its keys, what is in it. No script, one small style,
//! readable on a phone.

use std::fmt::Write as _;

use crate::answer::Answer;
use crate::caching::{AnswerKind, Visibility};
use crate::state::{CacheState, Catalog};

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:44rem;margin:2rem auto;padding:0 1rem;color:#222;background:#fff}\
pre{background:#f4f4f4;padding:.8rem;white-space:pre-wrap;overflow-wrap:anywhere;border-radius:.3rem}h1,li,dd{overflow-wrap:anywhere}dt{font-weight:600}dd{margin:0 0 .6rem}\
@media(prefers-color-scheme:dark){body{color:#ddd;background:#181818}pre{background:#262626}a{color:#8ab4f8}}";

/// No page needs more than its style.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'";

/// The page at `/`: the public caches that are published here. Private ones are not named.
pub fn home(catalog: Option<&Catalog>, is_head: bool) -> Answer {
    let mut html = String::from("<h1>Nix binary caches</h1>\n");
    match catalog.map(|catalog| catalog.caches.as_slice()) {
        Some(caches) if !caches.is_empty() => {
            html.push_str("<ul>\n");
            for cache in caches {
                // Names of caches consist of characters that stand for themselves, in HTML and in
                // addresses.
                let _ = writeln!(html, "<li><a href=\"/{cache}\">{cache}</a></li>");
            }
            html.push_str("</ul>\n");
        }
        _ => html.push_str("<p>No public cache is published here.</p>\n"),
    }
    page("Nix binary caches", &html, Visibility::Public, is_head)
}

/// The page of a cache, for readers with access to it.
pub(crate) fn of_cache(state: &CacheState, origin: Option<&str>, is_head: bool) -> Answer {
    let cache = &state.cache;
    let mut html = format!("<h1>{cache}</h1>\n<p>A Nix binary cache. In <code>nix.conf</code>:</p>\n<pre>");
    let _ = match origin {
        Some(origin) => writeln!(html, "extra-substituters = {}/{cache}", escape(origin)),
        None => writeln!(html, "extra-substituters = <em>address of this page</em>"),
    };
    let _ =
        write!(html, "extra-trusted-public-keys = {}</pre>\n<dl>\n", escape(&state.public_keys.join(" ")));
    let mut row = |name: &str, value: &str| {
        let _ = writeln!(html, "<dt>{name}</dt><dd>{}</dd>", escape(value));
    };
    row("Store paths", &state.object_count.to_string());
    row("Size", &human_size(state.file_bytes));
    row("Last published", &date(state.published_at));
    row("Store folder", &state.store_dir);
    row("Priority", &state.priority.to_string());
    if !state.public {
        row("Access", "private: put a token as the password into netrc");
    }
    html.push_str("</dl>\n");
    page(cache.as_str(), &html, state.visibility(), is_head)
}

fn page(title: &str, body: &str, visibility: Visibility, is_head: bool) -> Answer {
    let html = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\
         <title>{}</title><style>{STYLE}</style></head><body>\n{body}</body></html>\n",
        escape(title)
    );
    Answer::new(200, AnswerKind::Page, visibility)
        .text("text/html; charset=utf-8", html, is_head)
        .with("content-security-policy", POLICY)
        .with("referrer-policy", "no-referrer")
}

/// Whether this can be shown as an address to paste: a scheme and a host, and nothing that would be
/// another word.
pub(crate) fn is_plain_origin(origin: &str) -> bool {
    let host = origin.strip_prefix("https://").or_else(|| origin.strip_prefix("http://"));
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".-_:[]".contains(&byte);
    host.is_some_and(|host| (1..=255).contains(&host.len()) && host.bytes().all(plain))
}

fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

fn human_size(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} bytes");
    }
    let mut tenths = u128::from(bytes) * 10 / 1024;
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
}

/// `2026-11-23 04:05 UTC`. The civil calendar from days since 1970, after Howard Hinnant.
fn date(seconds: i64) -> String {
    let (days, rest) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02} UTC", rest / 3_600, rest / 60 % 60)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::answer::Body;

    #[test]
    fn dates_and_sizes_are_for_people() {
        assert_eq!(date(0), "1970-01-01 00:00 UTC");
        assert_eq!(date(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(date(1_800_000_000), "2027-01-15 08:00 UTC");
        assert_eq!(human_size(1_023), "1023 bytes");
        assert_eq!(human_size(1_536), "1.5 KiB");
        assert_eq!(human_size(5 << 30), "5.0 GiB");
    }

    #[test]
    fn only_what_is_a_host_is_shown_as_an_address() {
        for origin in ["https://cache.example.org", "http://127.0.0.1:8080", "http://[::1]:8080"] {
            assert!(is_plain_origin(origin), "{origin}");
        }
        for origin in ["", "https://", "https://a b", "https://a/b", "https://<b>", "ftp://a", "https://a\nb"]
        {
            assert!(!is_plain_origin(origin), "{origin}");
        }
        let long = format!("https://{}", "a".repeat(256));
        assert!(!is_plain_origin(&long));
    }

    #[test]
    fn what_a_document_says_is_text_and_no_markup() {
        let state = CacheState {
            version: 1,
            cache: "main".parse().unwrap(),
            public: true,
            store_dir: "/nix/<script>\"'&".to_owned(),
            priority: 41,
            public_keys: vec!["<b>:AAAA".to_owned()],
            object_count: 1,
            file_bytes: 1,
            published_at: 0,
            revoked: vec![],
        };
        let Body::Text(html) = of_cache(&state, Some("https://c.org"), false).body else { panic!("no page") };
        assert!(!html.contains("<script>") && !html.contains("<b>:"), "{html}");
        assert!(html.contains("&lt;script&gt;&quot;&#39;&amp;"));
        assert!(html.contains("extra-substituters = https://c.org/main\n"), "{html}");
        let Body::Text(html) = of_cache(&state, None, false).body else { panic!("no page") };
        assert!(html.contains("address of this page"), "{html}");
    }

    #[test]
    fn the_home_page_names_public_caches() {
        let catalog = Catalog::new(vec!["main".parse().unwrap()]);
        let Body::Text(html) = home(Some(&catalog), false).body else { panic!("no page") };
        assert!(html.contains("<a href=\"/main\">main</a>"));
        assert_eq!(home(None, true).body, Body::Empty);
    }
}
