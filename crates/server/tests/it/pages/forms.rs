//! Forms: what each changes, and for whom.

use serde_json::{Value, json};

use super::{browse, form_token, named, push, submit};
use crate::common::{Server, admin, nar, path, token, token_of};

#[test]
fn forms_change_only_what_a_page_of_the_same_session_sent_with_its_permission() {
    let server = Server::start();
    let (library, program) = (named(1, "library"), named(2, "program"));
    push(&server, "main", &library, &nar(1), &json!({}));
    push(&server, "main", &program, &nar(2), &json!({"references": [library.to_string()]}));
    let owner = token_of("owner", &json!({"main": {"r": 1, "d": 1, "cq": 1}}));
    let proof = form_token(&server, &owner);
    let of = |rest: &str| format!("/main/{}/{rest}", library.hash());
    let pins = || {
        let reply = server.call(&admin(), "POST", "/_api/v2/caches/main/pins", b"{}").json();
        reply["pins"].as_array().unwrap().iter().map(|pin| pin["name"].clone()).collect::<Vec<_>>()
    };
    let fields = format!("form_token={proof}&name=release&days=30");
    let origin = format!("http://{}", server.address);
    // Another site, another session, no proof, and no permission.
    let stolen = form_token(&server, &token_of("other", &json!({"main": {"r": 1, "d": 1, "cq": 1}})));
    for (fields, more) in [
        (fields.clone(), &[("Sec-Fetch-Site", "cross-site")][..]),
        (fields.clone(), &[("Sec-Fetch-Site", "same-site")]),
        (fields.clone(), &[("Sec-Fetch-Site", ""), ("Origin", "https://evil.example")]),
        (fields.clone(), &[("Sec-Fetch-Site", ""), ("Origin", "null")]),
        ("name=release".to_owned(), &[]),
        (format!("form_token={stolen}&name=release"), &[]),
        ("form_token=&name=release".to_owned(), &[]),
    ] {
        for form in ["pin", "unpin", "remove"] {
            let reply = submit(&server, &owner, &of(form), &fields, more);
            assert_eq!(reply.status, 403, "{form} {fields} {more:?}: {reply:?}");
        }
    }
    for weak in [json!({"main": {"r": 1}}), json!({"main": {"r": 1, "w": 1}})] {
        let weak = token(&weak);
        let proof = form_token(&server, &weak);
        for form in ["pin", "unpin", "remove"] {
            let reply = submit(&server, &weak, &of(form), &format!("form_token={proof}&name=release"), &[]);
            assert_eq!(reply.status, 403, "{form}: {reply:?}");
        }
        assert_eq!(browse(&server, Some(&weak), &of("remove")).status, 403);
        assert_eq!(browse(&server, Some(&weak), "/main/pins").status, 403);
    }
    assert_eq!(pins(), Vec::<Value>::new());
    assert_eq!(server.get(&format!("/main/{}.narinfo", library.hash())).status, 200);

    let pinned = submit(&server, &owner, &of("pin"), &fields, &[("Sec-Fetch-Site", ""), ("Origin", &origin)]);
    let back = format!("../../main/{}?done=pinned", library.hash());
    assert_eq!((pinned.status, pinned.header("location")), (303, Some(back.as_str())), "{pinned:?}");
    assert_eq!(pins(), [json!("release")]);
    assert!(browse(&server, Some(&owner), "/main/pins").text().contains("release"));
    for bad in ["name=", "name=a/b", "name=x&days=0", "name=x&days=99999", "name=x&days=y"] {
        let reply = submit(&server, &owner, &of("pin"), &format!("form_token={proof}&{bad}"), &[]);
        assert_eq!(reply.status, 400, "{bad}: {reply:?}");
    }
    let consequences = browse(&server, Some(&owner), &of("remove")).text();
    assert!(
        consequences.contains("1 path in this cache needs it. It stays") && consequences.contains("program"),
        "{consequences}"
    );
    assert!(consequences.contains("It is pinned as") && consequences.contains("release"), "{consequences}");
    let unpinned =
        submit(&server, &owner, &of("unpin"), &format!("form_token={proof}&name=release&back=pins"), &[]);
    assert_eq!((unpinned.status, unpinned.header("location")), (303, Some("../pins?done=unpinned")));
    assert_eq!(pins(), Vec::<Value>::new());
    let removed = submit(&server, &owner, &of("remove"), &format!("form_token={proof}"), &[]);
    assert_eq!((removed.status, removed.header("location")), (303, Some("../?done=removed")), "{removed:?}");
    assert_eq!(server.get(&format!("/main/{}.narinfo", library.hash())).status, 404);
    let audit = server.block_on(server.index.audit_after(0, 100)).unwrap();
    assert_eq!(audit.last().unwrap().subject.as_deref(), Some("owner"));
}

#[test]
fn a_page_says_what_its_form_did_and_a_list_of_pins_goes_on_where_it_was() {
    let server = Server::start();
    push(&server, "main", &path(1), &nar(1), &json!({}));
    let owner = token_of("owner", &json!({"main": {"r": 1, "d": 1, "cq": 1}}));
    let proof = form_token(&server, &owner);
    let send = |form: &str, fields: &str| {
        let address = format!("/main/{}/{form}", path(1).hash());
        submit(&server, &owner, &address, &format!("form_token={proof}&{fields}"), &[])
    };
    for number in 0..38 {
        assert_eq!(send("pin", &format!("name=pin-{number:02}")).status, 303);
    }
    let see = |address: &str| browse(&server, Some(&owner), address).text();
    let first = see("/main/pins");
    let (_, next) = first.split_once("rel=\"next\" href=\"?").expect("there are more pins");
    let next = next.split('"').next().unwrap();
    let second = see(&format!("/main/pins?{next}"));
    assert!(second.contains(">pin-36<") && second.contains(">pin-37<"), "{second}");
    let (_, after) = second.split_once("name=\"after\" value=\"").expect("the form knows its page");
    let after = after.split('"').next().unwrap();
    for (name, left) in [("pin-36", ">pin-37<"), ("pin-37", "No more pins.")] {
        let reply = send("unpin", &format!("name={name}&back=pins&after={after}"));
        let location = reply.header("location").unwrap().strip_prefix("..").unwrap().to_owned();
        let page = see(&format!("/main{location}"));
        assert!(page.contains("The pin is removed.") && page.contains(left), "{location}: {page}");
        assert!(!page.contains(">pin-00<"), "the first page is another one: {page}");
    }
    for bad in ["x", "x.y", "//evil.example", &format!("{after}%0d%0aSet-Cookie:x")] {
        let reply = send("unpin", &format!("name=pin-00&back=pins&after={bad}"));
        assert_eq!(reply.status, 400, "{bad}: {reply:?}");
    }
    let long = format!("/main/pins?after={}.{}", path(1).hash(), "x".repeat(2_000));
    assert_eq!(browse(&server, Some(&owner), &long).status, 400);
    let removed = send("remove", "");
    assert_eq!(removed.header("location"), Some("../?done=removed"));
    assert!(see("/main/?done=removed").contains("The path is removed"));
    // A link of another site brings no session, and says nothing.
    let stranger = browse(&server, None, "/main/?done=removed").text();
    assert!(!stranger.contains("The path is removed") && stranger.contains("Use this cache"), "{stranger}");
}
