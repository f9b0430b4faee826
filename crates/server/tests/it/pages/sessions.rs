//! Signing in, and what a session is worth.

use serde_json::{Value, json};

use super::{BROWSER, browse, cookie, ended_token, form_token, push, submit, without_way_back};
use crate::common::{Server, admin, nar, path, token};

#[test]
fn a_token_becomes_a_session_that_ends_with_it_and_is_no_token_elsewhere() {
    let server = Server::start();
    push(&server, "team-a", &path(1), &nar(1), &json!({}));
    let good = token(&json!({"team-a": {"r": 1}}));
    let sign_in = |token: &str, more: &[(&str, &str)]| {
        let mut headers = vec![BROWSER, ("Sec-Fetch-Site", "same-origin")];
        headers.retain(|(name, _)| more.iter().all(|(other, _)| other != name));
        headers.extend(more);
        server.request("POST", "/_dormer/sign-in", &headers, format!("token=+{token}%0A").as_bytes())
    };
    let reply = sign_in(&good, &[]);
    assert_eq!((reply.status, reply.header("location")), (303, Some("../")), "{reply:?}");
    let set = reply.header("set-cookie").unwrap().to_owned();
    let (pair, attributes) = set.split_once("; ").unwrap();
    assert_eq!(pair, cookie(&good));
    let (attributes, life) = attributes.split_once("; Max-Age=").unwrap();
    assert_eq!(attributes, "Path=/; HttpOnly; SameSite=Strict");
    assert!((3_500..=3_600).contains(&life.parse::<i64>().unwrap()), "{life}");
    // It leads back to the page that asked, and to no other host.
    let asked = browse(&server, None, "/team-a/paths?q=x").text();
    let form = "_dormer/sign-in?back=team-a%2Fpaths%3Fq%3Dx";
    assert!(asked.contains(&format!("href=\"../{form}\"")), "{asked}");
    let form = browse(&server, None, &format!("/{form}")).text();
    assert!(form.contains("name=\"back\" value=\"team-a/paths?q=x\""), "{form}");
    let evil = browse(&server, None, "/_dormer/sign-in?back=//evil.example/").text();
    assert!(!evil.contains("evil"), "{evil}");
    for (back, location) in [
        ("team-a%2Fpaths%3Fq%3Dx", "../team-a/paths?q=x"),
        ("%2F%2Fevil.example", "../"),
        ("https%3A%2F%2Fevil.example", "../"),
        ("%5C%5Cevil.example", "../"),
        ("x%0D%0ASet-Cookie%3A+a", "../"),
        ("..%2F..%2Fx", "../"),
    ] {
        let headers = [BROWSER, ("Sec-Fetch-Site", "same-origin")];
        let fields = format!("token={good}&back={back}");
        let reply = server.request("POST", "/_dormer/sign-in", &headers, fields.as_bytes());
        assert_eq!((reply.status, reply.header("location")), (303, Some(location)), "{back}: {reply:?}");
    }
    let secure = sign_in(&good, &[("X-Forwarded-Proto", "https")]);
    let set = secure.header("set-cookie").unwrap();
    assert!(set.starts_with("__Host-dormer=") && set.contains("; Secure"), "{set}");
    // A proxy that ends TLS need not be a trusted one: the operator said what the address is.
    let behind_proxy =
        Server::start_with(|options| options.server.api_endpoint = Some("https://cache.example/".to_owned()));
    let headers = [BROWSER, ("Sec-Fetch-Site", "same-origin")];
    let signed_in =
        behind_proxy.request("POST", "/_dormer/sign-in", &headers, format!("token={}", admin()).as_bytes());
    let set = signed_in.header("set-cookie").unwrap();
    assert!(set.starts_with("__Host-dormer=") && set.contains("; Secure"), "{set}");
    // At another address of the server, the page says where to go.
    let own = format!("http://{}", behind_proxy.address);
    let body = format!("token={}", admin());
    let elsewhere = |origin: &str| {
        behind_proxy.request("POST", "/_dormer/sign-in", &[BROWSER, ("Origin", origin)], body.as_bytes())
    };
    let reply = elsewhere(&own);
    assert_eq!((reply.status, reply.header("set-cookie")), (403, None), "{reply:?}");
    assert!(reply.text().contains("sign in at https://cache.example/"), "{reply:?}");
    let foreign = elsewhere("https://evil.example");
    assert!(foreign.status == 403 && !foreign.text().contains("sign in at"), "{foreign:?}");
    // Over HTTPS, only the cookie that no other host can plant counts.
    let over_https = |cookie: String| {
        let headers = [BROWSER, ("X-Forwarded-Proto", "https"), ("Cookie", cookie.as_str())];
        server.request("GET", "/team-a/", &headers, b"").status
    };
    assert_eq!([over_https(cookie(&good)), over_https(format!("__Host-{}", cookie(&good)))], [404, 200]);

    for bad in ["", "garbage", "a.b.c", &good[1..], &format!("{good}%3B+Domain%3Dx")] {
        let reply = sign_in(bad, &[]);
        assert_eq!((reply.status, reply.header("set-cookie")), (403, None), "{bad}: {reply:?}");
        assert!(bad.len() < 10 || !reply.text().contains(bad), "no page shows a token");
    }
    let long: Value =
        (0..200).map(|n| (format!("cache-{n}"), json!({"r": 1}))).collect::<serde_json::Map<_, _>>().into();
    let reply = sign_in(&token(&long), &[]);
    assert!(reply.status == 403 && reply.text().contains("too long"), "{reply:?}");
    for foreign in
        [("Sec-Fetch-Site", "cross-site"), ("Sec-Fetch-Site", "same-site"), ("Sec-Fetch-Site", "none")]
    {
        let reply = sign_in(&good, &[foreign]);
        assert_eq!((reply.status, reply.header("set-cookie")), (403, None), "{foreign:?}");
    }

    // Anybody may send a form: none is decoded.
    for (address, coding) in [("sign-in", "gzip"), ("sign-in", "bzip2"), ("sign-out", "zstd")] {
        let address = format!("/_dormer/{address}");
        let reply = submit(&server, &good, &address, "garbage", &[("Content-Encoding", coding)]);
        assert_eq!(reply.status, 415, "{address} as {coding}: {reply:?}");
    }

    assert_eq!(browse(&server, Some(&good), "/team-a/").status, 200);
    let ended = ended_token("team-a");
    assert_eq!(browse(&server, Some(&ended), "/team-a/").status, 404, "it has ended");

    // The protocols and the API know no cookies.
    let cookie = cookie(&admin());
    for (method, address, status) in [
        ("GET", "/team-a/nix-cache-info".to_owned(), 401),
        ("GET", format!("/team-a/{}.narinfo", path(1).hash()), 401),
        ("GET", "/_api/v1/cache-config/team-a".to_owned(), 401),
        ("DELETE", format!("/_api/v2/caches/team-a/objects/{}", path(1).hash()), 401),
        ("GET", format!("/_api/v2/caches/team-a/objects/{}/file/bin/x", path(1).hash()), 401),
    ] {
        let reply = server.request(method, &address, &[("Cookie", &cookie), BROWSER], b"");
        assert_eq!(reply.status, status, "{method} {address}");
    }
    assert!(!server.request("GET", "/_api/v2/caches", &[("Cookie", &cookie)], b"").text().contains("team-a"));

    let proof = form_token(&server, &good);
    assert!(!proof.contains(&good));
    let out = submit(&server, &good, "/_dormer/sign-out", &format!("form_token={proof}"), &[]);
    assert_eq!(out.status, 303, "{out:?}");
    assert!(
        out.header("set-cookie").unwrap().starts_with("dormer=; ")
            && out.header("set-cookie").unwrap().contains("Max-Age=0")
    );
}

#[test]
fn a_form_after_the_end_of_its_session_says_so_and_leads_back_to_its_page() {
    let server = Server::start();
    let path = path(1);
    push(&server, "main", &path, &nar(1), &json!({}));
    let ended = ended_token("main");
    push(&server, "team-a", &path, &nar(1), &json!({}));
    let page = format!("main/{}", path.hash());
    for (form, back) in [("pin", &page), ("unpin", &page), ("remove", &page)] {
        let reply = submit(&server, &ended, &format!("/{page}/{form}"), "form_token=x&name=a", &[]);
        let text = reply.text();
        assert!(reply.status == 403 && text.contains("Your session has ended"), "{form}: {text}");
        let (_, way) = text.split_once("?back=").expect("a way to sign in, and back");
        let (way, _) = way.split_once('"').expect("the address ends");
        assert_eq!(&way.replace("%2F", "/"), back, "{form}");
    }
    let unseen = ["absent", "team-a"].map(|cache| {
        let address = format!("/{cache}/{}/pin", path.hash());
        without_way_back(submit(&server, &ended, &address, "form_token=x", &[]).without_noise())
    });
    assert!(unseen[0] == unseen[1] && unseen[0].text().contains("Your session has ended"), "{unseen:?}");
    let out = submit(&server, &ended, "/_dormer/sign-out", "form_token=x", &[]);
    assert!(out.status == 303 && out.header("set-cookie").unwrap().contains("Max-Age=0"), "{out:?}");
    let foreign = [("Sec-Fetch-Site", "cross-site")];
    assert_eq!(submit(&server, &ended, "/_dormer/sign-out", "", &foreign).status, 403);
}

/// A proxy with a password of its own: the browser sends it with every request.
#[test]
fn a_session_counts_beside_a_password_that_is_no_token() {
    let server = Server::start();
    let owner = token(&json!({"team-a": {"r": 1}}));
    push(&server, "team-a", &path(1), &nar(1), &json!({}));
    for password in ["Basic dXNlcjpwYXNzd29yZA==", "Bearer no-token"] {
        let headers = [BROWSER, ("Cookie", &cookie(&owner)), ("Authorization", password)];
        assert_eq!(server.request("GET", "/team-a/", &headers, b"").status, 200, "{password}");
        let headers = [BROWSER, ("Authorization", password)];
        assert_eq!(server.request("GET", "/team-a/", &headers, b"").status, 404, "{password}");
    }
}

/// A browser keeps the session back from what a page of another site leads to.
#[test]
fn a_page_that_a_link_of_another_site_leads_to_can_be_opened_again() {
    let server = Server::start();
    push(&server, "team-a", &path(1), &nar(1), &json!({}));
    let see = |address: &str, session: Option<&str>, site: Option<&str>| {
        let cookie = session.map(cookie);
        let mut headers = vec![BROWSER];
        headers.extend(cookie.as_deref().map(|value| ("Cookie", value)));
        headers.extend(site.map(|site| ("Sec-Fetch-Site", site)));
        server.request("GET", address, &headers, b"")
    };
    let again = "<a href=\"\">Open this page again</a>";
    for (address, status) in [("/team-a/", 404), ("/none/", 404), ("/main/pins", 403), ("/_dormer/", 404)] {
        for site in [Some("cross-site"), None] {
            let reply = see(address, None, site);
            assert_eq!(reply.status, status, "{address}: {reply:?}");
            assert!(reply.text().contains(again), "{address} from {site:?}: {}", reply.text());
        }
        // Here the browser has sent what it has.
        for site in ["same-origin", "same-site", "none"] {
            assert!(!see(address, None, Some(site)).text().contains(again), "{address} from {site}");
        }
        let weak = token(&json!({"main": {"r": 1}}));
        let reply = see(address, Some(&weak), Some("same-origin"));
        assert!(reply.status == status && !reply.text().contains(again), "{address}: {reply:?}");
    }
    let reader = token(&json!({"team-a": {"r": 1}}));
    assert_eq!(see("/team-a/", Some(&reader), Some("same-origin")).status, 200);
    let sent = server.request("POST", "/_dormer/collection", &[BROWSER], b"form_token=x");
    assert!(!sent.text().contains(again), "the address of a form is no page");
}
