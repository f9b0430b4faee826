//! Real proxies before the lab: the address that `dormer use` writes works with real Nix.

use std::fs;

use dormer_tests::{HttpProxy, Lab, Nix};

/// What the user is told besides.
const NOTHING: &str = "";
const UNKNOWN_ADDRESS: &str = "api-endpoint";

#[test]
fn dormer_use_writes_an_address_that_works_behind_every_proxy() {
    let lab = Lab::start();
    lab.create_cache("secret", &[]);
    let builder = lab.machine("builder", Nix::NEWEST);
    builder.login(&lab);
    let (public, private) =
        (builder.build("all", &[("salt", "public")]), builder.build("all", &[("salt", "private")]));
    builder.dormer(&["push", "main", &public]).succeeds();
    builder.dormer(&["push", "secret", &private]).succeeds();
    // A proxy knows the lab under a name that its users do not have.
    let inner = lab.address().replace("127.0.0.1", "localhost");
    let proxies = [
        (HttpProxy::nginx_bare(&inner), "", UNKNOWN_ADDRESS),
        (HttpProxy::nginx_below(&inner, "/nix"), "/nix", UNKNOWN_ADDRESS),
        (HttpProxy::nginx_below_with_headers(&inner, "/nix"), "/nix", NOTHING),
        (HttpProxy::haproxy_below(lab.address(), "/cache/nix"), "/cache/nix", NOTHING),
        (HttpProxy::haproxy_forwarded(lab.address()), "", NOTHING),
    ];
    for (number, (proxy, path, hint)) in proxies.iter().enumerate() {
        let what = format!("{} below {path:?}", proxy.name());
        let user = lab.machine(&format!("user-{number}"), Nix::ALL[number % Nix::ALL.len()]);
        let url = format!("http://{}{path}", proxy.address());
        user.dormer(&["login", "lab", &url, &lab.admin_token(), "--set-default"]).succeeds();
        for (cache, root) in [("main", &public), ("secret", &private)] {
            let used = user.dormer(&["use", cache]);
            used.succeeds();
            assert_eq!(used.stderr().contains(UNKNOWN_ADDRESS), !hint.is_empty(), "{what}: {used}");
            let conf = fs::read_to_string(user.home().join(".config/nix/nix.conf")).expect("it was written");
            assert!(conf.contains(&format!("extra-substituters = {url}/{cache}\n")), "{what}: {conf}");
            user.run("nix-store", &["--realise", root]).succeeds();
        }
        user.verify_all();
        let own = user.build("tool", &[("salt", &format!("of-user-{number}"))]);
        user.dormer(&["push", "secret", &own]).succeeds();
        assert_eq!(lab.get(&format!("/secret/{}.narinfo", &own["/nix/store/".len()..][..32])).status, 200);
    }
}
