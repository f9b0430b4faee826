//! Push by chunks: the same objects as by Attic's API, through proxies that limit bodies and lines
//! that fail, by a client that is killed again and again, and to replicas that are. (What `dormer
//! push` does by default, every other story does too.)

use std::collections::BTreeMap;
use std::thread;
use std::time::Duration;

use dormer_tests::{HttpProxy, Lab, Machine, Nix, Proxy, Run, times};
use rand::RngExt as _;

/// What a narinfo says, apart from the signatures: they are the lab's own.
fn described(lab: &Lab, path: &str) -> BTreeMap<String, String> {
    let narinfo = lab.get(&format!("/main/{}.narinfo", &path["/nix/store/".len()..][..32]));
    assert_eq!(narinfo.status, 200, "{path}");
    let text = narinfo.text();
    let fields = text.lines().filter_map(|line| line.split_once(": "));
    fields.filter(|(key, _)| *key != "Sig").map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

fn substitutes_and_verifies(lab: &Lab, puller: &Machine, root: &str) {
    puller.configure(&[lab.public_key("main")]);
    puller.substitute(&lab.cache_url("main"), root).succeeds();
    puller.verify_all();
}

#[test]
fn both_apis_make_the_same_objects_and_every_nix_substitutes_them() {
    let (by_chunks, whole) = (Lab::start(), Lab::start());
    let builder = by_chunks.machine("builder", Nix::MIDDLE);
    builder.dormer(&["login", "chunks", &by_chunks.url(), &by_chunks.admin_token()]).succeeds();
    builder.dormer(&["login", "whole", &whole.url(), &whole.admin_token()]).succeeds();
    let roots = [
        builder.build("all", &[("salt", "same")]),
        builder.build("farm", &[("salt", "same"), ("leaves", "300")]),
        builder.build("noise", &[("salt", "same"), ("megabytes", "9")]),
    ];
    let roots: Vec<&str> = roots.iter().map(String::as_str).collect();
    let push = |cache: &str, api: &str| {
        let pushed = builder.dormer(&[&["push", cache], &roots[..], &["--json", "--api", api]].concat());
        let said = pushed.succeeds();
        assert!(said.contains(&format!("\"api\":\"{api}\"")), "{said}");
    };
    push("chunks:main", "v2");
    push("whole:main", "attic");
    for root in &roots {
        for path in builder.closure(root) {
            // The address holds the encoding tag, a digest over the stored frames.
            assert_eq!(described(&by_chunks, &path), described(&whole, &path), "{path}");
        }
    }
    for nix in Nix::ALL {
        let puller = by_chunks.machine(nix.name(), nix);
        for root in &roots {
            substitutes_and_verifies(&by_chunks, &puller, root);
        }
    }
}

#[test]
fn several_caches_get_what_they_lack() {
    let (one, two) = (Lab::start(), Lab::start());
    two.create_cache("team", &[]);
    let builder = one.machine("builder", Nix::NEWEST);
    builder.login(&one);
    builder.dormer(&["login", "lab2", &two.url(), &two.admin_token()]).succeeds();
    let all = builder.build("all", &[("salt", "several")]);
    builder.dormer(&["push", "main", &all]).succeeds();
    let said = builder.dormer(&["push", "main", "lab2:team", &all, "--json"]);
    let said = said.succeeds();
    let summaries: Vec<&str> = said.lines().filter(|line| line.contains("\"summary\"")).collect();
    assert_eq!(summaries.len(), 2, "{said}");
    assert!(summaries[0].contains("\"cache\":\"main\"") && summaries[0].contains("\"pushed\":0"), "{said}");
    assert!(
        summaries[1].contains("\"cache\":\"lab2:team\"") && summaries[1].contains("\"pushed\":6"),
        "{said}"
    );
    let narinfo = format!("/team/{}.narinfo", &all["/nix/store/".len()..][..32]);
    assert_eq!(two.get(&narinfo).status, 200);
}

/// Runs `dormer` in a machine, and kills it after so many seconds if it still runs. A machine has
/// no `timeout`, only a shell.
fn killed_after(machine: &Machine, seconds: &str, arguments: &[&str]) -> Run {
    const SCRIPT: &str = "seconds=$1; shift; \"$@\" & push=$!; \
        (busybox sleep \"$seconds\"; kill -9 \"$push\" 2>/dev/null) & wait \"$push\"";
    let dormer = machine.dormer_path();
    machine.run("sh", &[&["-c", SCRIPT, "sh", seconds, &dormer][..], arguments].concat())
}

/// A proxy that refuses bodies over 32 MB, behind one that cuts every request that is still being
/// sent after a second: a minute, for a line that is sixty times as fast.
#[test]
fn a_proxy_that_limits_bodies_and_time_passes_chunks() {
    let lab = Lab::start();
    let limiting = HttpProxy::nginx_limiting(lab.address(), "32m");
    let hasty = Proxy::hasty(limiting.address(), Duration::from_secs(1));
    let builder = lab.machine("builder", Nix::NEWEST);
    let url = format!("http://{}", hasty.address());
    builder.dormer(&["login", "lab", &url, &lab.admin_token(), "--set-default"]).succeeds();
    let noise = builder.build("noise", &[("salt", "limited"), ("megabytes", "40")]);
    // The answer is 413, which the client may not get to read before the connection ends.
    builder.dormer(&["push", "main", &noise, "--api", "attic"]).fails();
    let small = builder.build("noise", &[("salt", "late"), ("megabytes", "20")]);
    let before = hasty.late_requests();
    let whole = ["push", "main", &small, "--api", "attic", "--limit-rate", "10M"];
    let cut = killed_after(&builder, "2", &whole);
    assert!(!cut.is_success() && hasty.late_requests() > before, "the time counts: {cut}");
    let before = hasty.late_requests();
    let parts = ["push", "main", &noise, &small, "-j", "1", "--part-size", "4M", "--limit-rate", "30M"];
    builder.dormer(&parts).succeeds();
    assert_eq!(hasty.late_requests(), before, "no part was cut");
    let puller = lab.machine("puller", Nix::OLDEST);
    substitutes_and_verifies(&lab, &puller, &noise);
    substitutes_and_verifies(&lab, &puller, &small);
}

#[test]
fn a_line_that_fails_four_of_ten_requests_loses_nothing() {
    let lab = Lab::start();
    let proxy = Proxy::failing(lab.address());
    let builder = lab.machine("builder", Nix::NEWEST);
    let noise = builder.build("noise", &[("salt", "failing-line"), ("megabytes", "12")]);
    let all = builder.build("all", &[("salt", "failing-line")]);
    let (url, token) = (proxy.cache_url(""), lab.admin_token());
    let arguments = ["push", "main", &noise, &all, "--part-size", "1M"];
    let mut push = builder.command(&builder.dormer_path(), &arguments);
    push.env("DORMER_ENDPOINT", url.trim_end_matches('/')).env("DORMER_TOKEN", &token);
    Run::of(&mut push).succeeds();
    assert!(proxy.seen().len() > 12, "every part is a request: {:?}", proxy.seen());
    let puller = lab.machine("puller", Nix::MIDDLE);
    substitutes_and_verifies(&lab, &puller, &noise);
    substitutes_and_verifies(&lab, &puller, &all);
}

#[test]
fn a_push_outlives_replicas_that_are_killed() {
    let mut lab = Lab::start_production();
    let builder = lab.machine("builder", Nix::NEWEST);
    builder.login(&lab);
    let puller = lab.machine("puller", Nix::MIDDLE);
    let mut random = rand::rng();
    for round in 0..times(3) {
        let salt = format!("killed-replica-{round}");
        let noise = builder.build("noise", &[("salt", &salt), ("megabytes", "12")]);
        let crowd = builder.build("crowd", &[("salt", &salt), ("leaves", "6")]);
        let roots = [&noise, &crowd];
        thread::scope(|scope| {
            let arguments = ["push", "main", roots[0], roots[1], "--limit-rate", "15M", "--part-size", "1M"];
            let builder = &builder;
            let push = scope.spawn(move || builder.dormer(&arguments));
            thread::sleep(Duration::from_millis(random.random_range(100..1_000)));
            lab.kill_one(round % 2);
            thread::sleep(Duration::from_millis(random.random_range(0..300)));
            lab.restart();
            push.join().expect("the push does not panic").succeeds();
        });
        // Each replica has to have all of it: the other one may have taken it.
        for root in roots {
            substitutes_and_verifies(&lab, &puller, root);
        }
    }
}

#[test]
fn a_client_that_is_killed_again_and_again_gets_there() {
    let lab = Lab::start();
    let proxy = Proxy::watching(lab.address());
    let builder = lab.machine("builder", Nix::NEWEST);
    let url = proxy.cache_url("");
    builder
        .dormer(&["login", "lab", url.trim_end_matches('/'), &lab.admin_token(), "--set-default"])
        .succeeds();
    let noise = builder.build("noise", &[("salt", "killed-client"), ("megabytes", "24")]);
    let crowd = builder.build("crowd", &[("salt", "killed-client"), ("leaves", "12")]);
    let mut random = rand::rng();
    let (mut kills, before) = (0, lab.stored_bytes());
    for _ in 0..times(3) {
        let seconds = format!("{:.3}", random.random_range(0.05..1.2));
        let push = ["push", "main", &noise, &crowd, "--limit-rate", "20M", "-j", "1", "--part-size", "1M"];
        // It may also be fast enough.
        kills += u64::from(!killed_after(&builder, &seconds, &push).is_success());
        // Whatever is visible is whole: nothing refers to what is not there.
        for path in builder.closure(&crowd) {
            let narinfo = lab.get(&format!("/main/{}.narinfo", &path["/nix/store/".len()..][..32]));
            for reference in narinfo.text().lines().filter_map(|line| line.strip_prefix("References: ")) {
                for name in reference.split_whitespace() {
                    assert_eq!(lab.get(&format!("/main/{}.narinfo", &name[..32])).status, 200, "{path}");
                }
            }
        }
    }
    // The first push takes more than a second, and its kill comes before nearly always.
    assert!(kills > 0, "no push was killed");
    builder.dormer(&["push", "main", &noise, &crowd, "--part-size", "1M"]).succeeds();
    // Each kill costs the part that was on its way. A part has a table beside its chunks, and the
    // chunks of other parts come in other packs.
    let parts = proxy.seen().into_iter().filter(|seen| seen.line.contains("/parts/"));
    let (sent, stored) = (parts.map(|seen| seen.body_bytes).sum::<u64>(), lab.stored_bytes() - before);
    assert!(sent <= stored + stored / 50 + kills * (1 << 20), "{sent} sent, {stored} stored, {kills} kills");
    let puller = lab.machine("puller", Nix::MIDDLE);
    substitutes_and_verifies(&lab, &puller, &noise);
    substitutes_and_verifies(&lab, &puller, &crowd);
    let sessions: std::collections::BTreeSet<String> = proxy
        .seen()
        .into_iter()
        .filter_map(|seen| seen.line.split_once("/sessions/").map(|(_, rest)| rest[..32].to_owned()))
        .collect();
    assert_eq!(sessions.len(), 1, "every push joined the first one's session");
}
