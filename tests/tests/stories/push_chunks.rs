//! Push by chunks: the same objects as by Attic's API, through proxies that limit bodies and lines
//! that fail, by a client that is killed again and again, and to replicas that are. (What `dormer
//! push` does by default, every other story does too.)

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use dormer_tests::http::Reply;
use dormer_tests::{HttpProxy, Lab, Machine, Nix, Proxy, Run, times};
use rand::RngExt as _;

fn narinfo(lab: &Lab, cache: &str, path: &str) -> Reply {
    lab.get(&format!("/{cache}/{}.narinfo", &path["/nix/store/".len()..][..32]))
}

/// What a narinfo says, in an order that does not matter.
fn described(lab: &Lab, cache: &str, path: &str) -> Vec<String> {
    let narinfo = narinfo(lab, cache, path);
    assert_eq!(narinfo.status, 200, "{path}");
    let mut lines: Vec<String> = narinfo.text().lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

fn is_in(lab: &Lab, path: &str) -> bool {
    narinfo(lab, "main", path).status == 200
}

fn substitutes_and_verifies(lab: &Lab, puller: &Machine, root: &str) {
    substitutes_from(lab, "main", puller, root);
}

fn substitutes_from(lab: &Lab, cache: &str, puller: &Machine, root: &str) {
    puller.configure(&[lab.public_key(cache)]);
    puller.substitute(&lab.cache_url(cache), root).succeeds();
    puller.verify_all();
}

/// A new key of Nix with this name, in the home of a machine.
fn signing_key(machine: &Machine, name: &str) -> PathBuf {
    let [secret, public] = ["secret", "public"].map(|half| machine.home().join(format!("{name}.{half}")));
    let files = [&secret, &public].map(|file| file.to_str().expect("our folders are UTF-8"));
    machine.run("nix-store", &["--generate-binary-cache-key", name, files[0], files[1]]).succeeds();
    secret
}

/// How many bytes each request with a part had, in the order of the requests.
fn part_bytes(proxy: &Proxy) -> Vec<u64> {
    let parts = proxy.seen().into_iter().filter(|seen| seen.line.contains("/parts/"));
    parts.map(|seen| seen.body_bytes).collect()
}

fn wait_until(mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_mins(1), "it does not happen");
        thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn both_apis_make_the_same_objects_and_every_nix_substitutes_them() {
    let (by_chunks, whole) = (Lab::start(), Lab::start());
    let builder = by_chunks.machine("builder", Nix::MIDDLE);
    // Both caches sign with the same key, so their signatures are the same, too. And the builder
    // signs what it builds.
    let key = signing_key(&builder, "team-1");
    for lab in [&by_chunks, &whole] {
        let key = key.to_str().expect("our folders are UTF-8");
        lab.create_cache("team", &["--public", "--keypair-file", key]);
    }
    builder.sign_builds(&signing_key(&builder, "builder-1"));
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
    push("chunks:team", "v2");
    push("whole:team", "attic");
    for root in &roots {
        for path in builder.closure(root) {
            // The address holds the encoding tag, a digest over the stored frames.
            assert_eq!(described(&by_chunks, "team", &path), described(&whole, "team", &path), "{path}");
        }
        let lines = described(&by_chunks, "team", root);
        for name in ["Sig: builder-1:", "Sig: team-1:"] {
            assert_eq!(lines.iter().filter(|line| line.starts_with(name)).count(), 1, "{lines:?}");
        }
    }
    for nix in Nix::ALL {
        let puller = by_chunks.machine(nix.name(), nix);
        for root in &roots {
            substitutes_from(&by_chunks, "team", &puller, root);
        }
    }
}

#[test]
fn the_compression_level_changes_the_bytes_in_the_store_and_nothing_that_is_read() {
    let (fast, small) = (Lab::start(), Lab::start());
    let builder = fast.machine("builder", Nix::NEWEST);
    let library = builder.build("library", &[("salt", "level")]);
    for (lab, level) in [(&fast, "1"), (&small, "19")] {
        builder.dormer(&["login", "lab", &lab.url(), &lab.admin_token(), "--set-default"]).succeeds();
        let refused = builder.dormer(&["push", "main", &library, "--compression-level", "20"]);
        assert!(refused.code() == Some(2) && refused.stderr().contains("20 is not in 1..=19"), "{refused}");
        builder.dormer(&["push", "main", &library, "--compression-level", level]).succeeds();
    }
    let (of_fast, of_small) = (fast.stored_bytes(), small.stored_bytes());
    assert!(of_small * 10 < of_fast * 9, "{of_small} bytes at level 19, {of_fast} at level 1");
    for (lab, nix) in [(&fast, Nix::OLDEST), (&small, Nix::NEWEST)] {
        substitutes_and_verifies(lab, &lab.machine("puller", nix), &library);
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
    let direct = format!("http://{}", limiting.address());
    builder.dormer(&["login", "direct", &direct, &lab.admin_token()]).succeeds();
    let refused = builder.dormer(&["push", "direct:main", &noise, "--api", "attic"]).fails();
    assert!(refused.contains("413") && refused.contains("client_max_body_size 0"), "{refused}");
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
    // Both replicas in turn, so that at least one kill takes the connection of the push.
    const KILLS: usize = 2;
    let mut lab = Lab::start_production();
    let proxy = Proxy::watching(lab.address());
    let builder = lab.machine("builder", Nix::NEWEST);
    let url = proxy.cache_url("");
    let login = ["login", "lab", url.trim_end_matches('/'), &lab.admin_token(), "--set-default"];
    builder.dormer(&login).succeeds();
    let puller = lab.machine("puller", Nix::MIDDLE);
    let mut random = rand::rng();
    // A connection that no kill broke would repeat nothing. Chance may want more rounds.
    let (mut broken, mut round) = (0, 0);
    while round < times(2) || (broken == 0 && round < times(2) + 6) {
        let salt = format!("killed-replica-{round}");
        let noise = builder.build("noise", &[("salt", &salt), ("megabytes", "20")]);
        let crowd = builder.build("crowd", &[("salt", &salt), ("leaves", "6")]);
        proxy.forget();
        let push = ["push", "main", &noise, &crowd, "--limit-rate", "3M", "-j", "1", "--part-size", "1M"];
        let mut push = builder.spawn(&builder.dormer_path(), &push);
        let mut parts_at_kill = 1;
        for kill in 0..KILLS {
            parts_at_kill = part_bytes(&proxy).len().max(parts_at_kill) + random.random_range(0..3);
            wait_until(|| part_bytes(&proxy).len() >= parts_at_kill);
            thread::sleep(Duration::from_millis(random.random_range(0..200)));
            lab.kill_one((round + kill) % 2);
            assert!(push.try_wait().expect("our own child").is_none(), "the kill came after the push");
            thread::sleep(Duration::from_millis(random.random_range(0..300)));
            lab.restart();
        }
        Run::wait_for(push).succeeds();
        let parts = proxy.seen().into_iter().filter(|seen| seen.line.contains("/parts/"));
        let parts: Vec<String> = parts.map(|seen| seen.line).collect();
        assert!(parts.len() > parts_at_kill, "the push went on after the kills: {parts:?}");
        let twice = parts.len() - parts.iter().collect::<BTreeSet<_>>().len();
        assert!(twice <= KILLS, "each kill costs one part at most: {parts:?}");
        broken += twice;
        round += 1;
        // Each replica has to have all of it: the other one may have taken it.
        for root in [&noise, &crowd] {
            substitutes_and_verifies(&lab, &puller, root);
        }
    }
    assert!(broken > 0, "no kill came while a part was sent");

    // A replica sweeps when it starts, and once a minute. All pushes had the same session.
    let count = |table: &str| lab.sql(&format!("SELECT count(*) FROM {table}")).trim().to_owned();
    assert_eq!(count("sessions"), "1");
    assert_ne!(count("session_parts"), "0");
    lab.sql("UPDATE sessions SET ends_at = ends_at - 2 * 86400");
    lab.kill_one(0);
    lab.restart();
    let count = |table: &str| lab.sql(&format!("SELECT count(*) FROM {table}")).trim().to_owned();
    wait_until(|| count("sessions") == "0" && count("session_parts") == "0");
    let after = builder.build("noise", &[("salt", "after-the-end"), ("megabytes", "2")]);
    builder.dormer(&["push", "main", &after]).succeeds();
    substitutes_and_verifies(&lab, &puller, &after);
}

/// What a summary line of `--json` says.
fn pushed(run: &Run) -> usize {
    let said = run.succeeds();
    let summary = said.lines().find(|line| line.contains("\"summary\"")).expect("a push ends with one");
    let summary: serde_json::Value = serde_json::from_str(summary).expect("it is JSON");
    summary["pushed"].as_u64().and_then(|count| usize::try_from(count).ok()).expect("a count")
}

#[test]
fn an_interrupted_push_keeps_what_was_acknowledged_and_the_next_one_sends_the_rest() {
    const PATHS: usize = 41;
    let lab = Lab::start();
    let proxy = Proxy::watching(lab.address());
    let builder = lab.machine("builder", Nix::NEWEST);
    let url = proxy.cache_url("");
    let login = ["login", "lab", url.trim_end_matches('/'), &lab.admin_token(), "--set-default"];
    builder.dormer(&login).succeeds();
    let crowd = builder.build("crowd", &[("salt", "interrupted"), ("leaves", "40")]);
    let closure = builder.closure(&crowd);
    assert_eq!(closure.len(), PATHS);
    let before = lab.stored_bytes();
    let push = ["push", "main", &crowd, "--limit-rate", "1M", "-j", "1", "--part-size", "1M"];
    let push = builder.spawn(&builder.dormer_path(), &push);
    wait_until(|| closure.iter().any(|path| is_in(&lab, path)));
    Run::of(Command::new("kill").args(["-s", "INT", &push.id().to_string()])).succeeds();
    let interrupted = Run::wait_for(push);
    assert_eq!(interrupted.code(), Some(130), "{interrupted}");
    let said = interrupted.stderr();
    let count = said
        .split_once("interrupted: ")
        .and_then(|(_, rest)| rest.split_once(" of 41 paths pushed; they stay"));
    let acknowledged: usize =
        count.and_then(|(count, _)| count.parse().ok()).unwrap_or_else(|| panic!("{said}"));
    let visible = closure.iter().filter(|path| is_in(&lab, path)).count();
    assert!(visible >= acknowledged && (1..PATHS).contains(&visible), "{visible} of {acknowledged}: {said}");
    assert!(!is_in(&lab, &crowd), "no half closure");

    let rest = builder.dormer(&["push", "main", &crowd, "--json"]);
    // The server may have gone on with a commit that had begun.
    assert!((1..=PATHS - visible).contains(&pushed(&rest)), "{visible} were there: {rest}");
    // The part on its way is the only one that is sent twice. A part has a table beside its chunks.
    let (sent, stored) = (part_bytes(&proxy).iter().sum::<u64>(), lab.stored_bytes() - before);
    assert!(sent <= stored + stored / 50 + (1 << 20), "{sent} sent, {stored} stored");
    substitutes_and_verifies(&lab, &lab.machine("puller", Nix::MIDDLE), &crowd);
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
            for reference in narinfo(&lab, "main", &path)
                .text()
                .lines()
                .filter_map(|line| line.strip_prefix("References: "))
            {
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
    let (sent, stored) = (part_bytes(&proxy).iter().sum::<u64>(), lab.stored_bytes() - before);
    assert!(sent <= stored + stored / 50 + kills * (1 << 20), "{sent} sent, {stored} stored, {kills} kills");
    let puller = lab.machine("puller", Nix::MIDDLE);
    substitutes_and_verifies(&lab, &puller, &noise);
    substitutes_and_verifies(&lab, &puller, &crowd);
    let sessions: BTreeSet<String> = proxy
        .seen()
        .into_iter()
        .filter_map(|seen| seen.line.split_once("/sessions/").map(|(_, rest)| rest[..32].to_owned()))
        .collect();
    assert_eq!(sessions.len(), 1, "every push joined the first one's session");
}
