//! The page of a path, what leads to it, and the search for one.

use dormer_nix::StorePath;
use serde_json::json;

use super::{browse, form_token, named, push, submit, tree};
use crate::common::{Server, admin, nar, path, token};

#[test]
fn a_path_leads_to_what_it_needs_and_what_needs_it() {
    let server = Server::start();
    let (library, program) = (named(1, "library-1.0"), named(2, "program-2.0"));
    push(&server, "main", &library, &tree(), &json!({}));
    let more = json!({"references": [library.to_string(), path(9).to_string()], "deriver": format!("{}.drv", program)});
    push(&server, "main", &program, &nar(2), &more);
    let page = browse(&server, None, &format!("/main/{}", program.hash()));
    assert_eq!(page.status, 200);
    let text = page.text();
    assert!(text.contains(&format!("/nix/store/{program}")), "{text}");
    assert!(text.contains(&format!("href=\"../main/{}\"", library.hash())), "{text}");
    assert!(text.contains("nix copy --from") && text.contains("Signed here with"), "{text}");
    assert!(
        !text.contains("Needed by") && !text.contains("Pin this path") && !text.contains("Remove"),
        "{text}"
    );
    let owner = browse(&server, Some(&admin()), &format!("/main/{}", library.hash())).text();
    assert!(owner.contains("Needed by") && owner.contains(&program.hash().to_string()), "{owner}");
    assert!(owner.contains("Pin this path") && owner.contains("Remove this path"), "{owner}");
    let references = browse(&server, None, &format!("/main/{}/references", program.hash())).text();
    assert!(
        references.contains("1 to 2 of 2 other paths.") && references.contains("library-1.0"),
        "{references}"
    );
    let referrers = format!("/main/{}/referrers", library.hash());
    assert_eq!(browse(&server, None, &referrers).status, 403, "what needs a path is for the owner");
    let all = browse(&server, Some(&admin()), &referrers).text();
    assert!(all.contains("program-2.0") && !all.contains("rel=\"next\""), "{all}");
    let rest = browse(&server, Some(&admin()), &format!("{referrers}?after={}", program.hash())).text();
    assert!(!rest.contains("program-2.0") && rest.contains("Nothing here."), "{rest}");
    for bad in ["references?from=x", "referrers?after=x"] {
        let address = format!("/main/{}/{bad}", library.hash());
        assert_eq!(browse(&server, Some(&admin()), &address).status, 400, "{bad}");
    }
    let closure = browse(&server, None, &format!("/main/{}/closure", program.hash())).text();
    assert!(closure.contains("2 paths") && closure.contains("library-1.0"), "{closure}");
    assert!(closure.contains("Not in this cache") && closure.contains(path(9).name()), "{closure}");
    let miss = browse(&server, None, &format!("/main/{}", path(7).hash()));
    assert_eq!(miss.status, 404);
    assert!(miss.text().contains("Nothing here"), "{miss:?}");
}

#[test]
fn a_search_finds_a_path_by_hash_or_name_and_reads_a_bounded_part_of_a_cache() {
    let server = Server::start();
    for (number, name) in [(1, "hello-2.12"), (2, "hello-3.0"), (3, "other")] {
        push(&server, "main", &named(number, name), &nar(number.into()), &json!({}));
    }
    let hash = path(1).hash().to_string();
    for query in [
        hash.clone(),
        format!("{hash}-hello-2.12"),
        format!("/nix/store/{hash}-hello-2.12"),
        format!("+/nix/store/{hash}-hello-2.12/bin/hello+"),
    ] {
        let reply = browse(&server, None, &format!("/main/paths?q={}", query.replace('/', "%2F")));
        assert_eq!(
            (reply.status, reply.header("location")),
            (303, Some(format!("../main/{hash}").as_str())),
            "{query}"
        );
    }
    let found = |query: &str| browse(&server, Some(&admin()), &format!("/main/paths?{query}")).text();
    let hello = found("q=hello");
    assert!(
        hello.contains("hello-2.12") && hello.contains("hello-3.0") && !hello.contains(">other<"),
        "{hello}"
    );
    assert!(found("q=hello*0&sort=age").contains("hello-3.0"));
    assert!(!found("q=hello*0").contains("hello-2.12"));
    assert!(found("q=no+such+thing").contains("Nothing here."));
    assert!(found("").contains(">other<"));
    for bad in ["q=%ff", "sort=x", "after=x", &format!("q={}", "x".repeat(301))] {
        assert_eq!(browse(&server, Some(&admin()), &format!("/main/paths?{bad}")).status, 400, "{bad}");
    }
    // A reader of a public cache learns no names.
    for reader in [None, Some(token(&json!({"main": {"r": 1, "w": 1}})))] {
        let page = browse(&server, reader.as_deref(), "/main/paths?q=hello").text();
        assert!(!page.contains("hello-2.12") && page.contains("may not search by name"), "{page}");
    }
    let before = server.index.statement_count();
    found("q=nothing-fits");
    let cost = server.index.statement_count() - before;
    assert!(cost <= 4, "{cost} statements");
}

/// Neither the answer nor the work of a search depends on other tenants, so its time does not tell
/// of them.
#[test]
fn a_search_neither_finds_nor_reads_what_other_caches_hold() {
    let server = Server::start();
    push(&server, "main", &named(1, "hello-2.12"), &nar(1), &json!({}));
    let owner = token(&json!({"main": {"r": 1, "cq": 1}}));
    let search = |query: &str| {
        let before = server.index.statement_count();
        let page = browse(&server, Some(&owner), &format!("/main/paths?q={query}")).text();
        assert!(!page.contains("secret") || query == "secret", "{page}");
        (page.matches("<th scope=\"row\">").count(), server.index.statement_count() - before)
    };
    browse(&server, Some(&owner), "/main/");
    let alone = [search("hello"), search("secret")];
    for number in 2..=40 {
        push(&server, "team-a", &named(number, "hello-secret"), &nar(1), &json!({}));
    }
    assert_eq!([search("hello"), search("secret")], alone);
    assert_eq!([alone[0].0, alone[1].0], [1, 0]);
}

#[test]
fn the_page_of_a_path_says_when_and_why_it_goes() {
    let server = Server::start();
    let (library, program) = (named(1, "library-1.0"), named(2, "program-2.0"));
    push(&server, "main", &library, &nar(1), &json!({}));
    let see = |token: Option<&str>, path: &StorePath| {
        browse(&server, token, &format!("/main/{}", path.hash())).text()
    };
    let for_good = "It stays for good: the cache keeps its paths";
    assert!(see(None, &library).contains(for_good) && see(Some(&admin()), &library).contains(for_good));
    let week = br#"{"retention_period": {"Period": 604800}}"#;
    let patched = server.call(&admin(), "PATCH", "/_api/v1/cache-config/main", week);
    assert_eq!(patched.status, 200, "{patched:?}");
    let owner = see(Some(&admin()), &library);
    // Within the first second it is seven days.
    let is_dated = owner.contains("</strong>, in 6 days") || owner.contains("</strong>, in 7 days");
    assert!(owner.contains("It goes after ") && is_dated, "{owner}");
    let stranger = see(None, &library);
    assert!(stranger.contains("keeps a path for 7 days after its last use."), "{stranger}");
    assert!(!stranger.contains("It goes after"), "when a path was used is for the owner: {stranger}");

    push(&server, "main", &program, &nar(2), &json!({"references": [library.to_string()]}));
    let proof = form_token(&server, &admin());
    let pin = format!("/main/{}/pin", program.hash());
    let pinned = submit(&server, &admin(), &pin, &format!("form_token={proof}&name=release"), &[]);
    assert_eq!(pinned.status, 303, "{pinned:?}");
    let owner = see(Some(&admin()), &library);
    let program_link = format!("href=\"../main/{}\"", program.hash());
    for text in [
        "It stays as long as ",
        &program_link,
        "by the pin <strong>release</strong>, for good",
        "Without that, ",
    ] {
        assert!(owner.contains(text), "{text} in {owner}");
    }
    assert!(see(Some(&admin()), &program).contains("The pin <strong>release</strong> keeps it for good."));
    let deleter = see(Some(&token(&json!({"main": {"r": 1, "d": 1}}))), &library);
    assert!(
        deleter.contains("It stays as long as ") && !deleter.contains("release"),
        "pins need `cq`: {deleter}"
    );
    assert!(deleter.contains(", unless a pin, which you may not see, keeps it, or somebody "), "{deleter}");
    let stranger = see(None, &library);
    assert!(!stranger.contains("release") && !stranger.contains("program-2.0"), "{stranger}");
}
