//! Cut connections, killed servers, pushers that race.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use dormer_nix::NarHash;
use dormer_tests::http;
use dormer_tests::nars;
use dormer_tests::{Lab, Nix, Proxy, Run, times};
use rand::{RngExt as _, SeedableRng as _};

#[test]
fn a_download_that_is_cut_goes_on_where_it_stopped() {
    let lab = Lab::start();
    let builder = lab.machine("builder", Nix::NEWEST);
    builder.login(&lab);
    let noise = builder.build("noise", &[("salt", "cut"), ("megabytes", "48")]);
    builder.dormer(&["push", "main", &noise]).succeeds();

    for nix in Nix::ALL {
        let machine = lab.machine(nix.name(), nix);
        machine.configure(&[lab.public_key("main")]);
        // Two cuts, far enough apart that nix has written what came before them.
        let proxy = Proxy::cutting(lab.address(), 2, 12 * 1024 * 1024);
        machine.substitute(&proxy.cache_url("main"), &noise).succeeds();
        assert_eq!(proxy.cuts_left(), 0, "the proxy cut nothing");
        machine.verify_all();
        let ranges: Vec<String> = proxy.seen().into_iter().filter_map(|seen| seen.range).collect();
        assert_eq!(ranges.len(), 2, "{:?}", proxy.seen());
        let starts: Vec<u64> = ranges
            .iter()
            .map(|range| range.strip_prefix("bytes=").unwrap().trim_end_matches('-').parse().unwrap())
            .collect();
        assert!(
            starts[0] > 0 && starts[1] > starts[0],
            "each goes on where the last one stopped: {starts:?}"
        );
    }
}

#[test]
fn two_machines_that_push_one_closure_at_once_both_succeed() {
    let lab = Lab::start();
    let token = lab.token(&["--pull", "main", "--push", "main"]);
    for round in 0..times(2) {
        let salt = format!("race-{round}");
        let machines: Vec<_> = [Nix::MIDDLE, Nix::NEWEST, Nix::NEWEST]
            .into_iter()
            .enumerate()
            .map(|(n, nix)| lab.machine(&format!("racer-{round}-{n}"), nix))
            .collect();
        let mut paths = Vec::new();
        for machine in &machines {
            machine.login(&lab);
            machine.set_netrc(lab.address(), &token);
            paths.push(machine.build("all", &[("salt", &salt)]));
        }
        assert!(paths.iter().all(|path| *path == paths[0]), "the same build everywhere: {paths:?}");
        let dormer = machines[0].dormer_path();
        let copy_to = format!("{}?compression=zstd", lab.cache_url("main"));
        let children = [
            machines[0].spawn(&dormer, &["push", "main", &paths[0]]),
            machines[1].spawn(&dormer, &["push", "main", &paths[0]]),
            machines[2].spawn("nix", &["copy", "--to", &copy_to, &paths[0]]),
        ];
        for child in children {
            Run::wait_for(child).succeeds();
        }
        let puller = lab.machine(&format!("puller-{round}"), Nix::NEWEST);
        puller.configure(&[lab.public_key("main")]);
        puller.substitute(&lab.cache_url("main"), &paths[0]).succeeds();
        puller.verify_all();
    }
}

/// What a pusher was told is safe.
#[derive(Debug, Clone)]
struct Acknowledged {
    path_hash: String,
    nar_hash: NarHash,
}

/// Pushes NARs of its own by Attic's API until the server dies; half of each NAR is shared with all
/// others.
fn push_until_the_server_dies(
    address: &str,
    token: &str,
    seed: u64,
    dead: &AtomicBool,
    safe: &Mutex<Vec<Acknowledged>>,
) {
    let mut random = rand::rngs::SmallRng::seed_from_u64(seed);
    let common: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
    while !dead.load(Ordering::SeqCst) {
        let mut contents = vec![0; random.random_range(1..1_500_000)];
        random.fill(&mut contents[..]);
        contents.extend_from_slice(&common);
        let nar = nars::file(&contents);
        let info = nars::attic_info("main", &nar, "pushed");
        let head = format!(
            "PUT /_api/v1/upload-path HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\
             X-Attic-Nar-Info: {info}\r\nContent-Length: {}\r\n\r\n",
            nar.len()
        );
        if try_exchange(address, &[head.as_bytes(), &nar].concat()) == Some(200) {
            let acknowledged =
                Acknowledged { path_hash: nars::path_hash(&nar), nar_hash: NarHash::digest(&nar) };
            safe.lock().unwrap().push(acknowledged);
        }
    }
}

/// The status of an answer, if one came.
fn try_exchange(address: &str, request: &[u8]) -> Option<u16> {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(address).ok()?;
    stream.set_read_timeout(Some(Duration::from_mins(1))).ok()?;
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    std::str::from_utf8(answer.get(9..12)?).ok()?.parse().ok()
}

#[test]
fn what_was_acknowledged_before_a_kill_is_there_after_it() {
    let mut lab = Lab::start();
    let seed = rand::random::<u64>();
    println!("seed {seed}");
    let mut random = rand::rngs::SmallRng::seed_from_u64(seed);
    let safe = Mutex::new(Vec::new());
    for round in 0..times(4) {
        let (address, token) = (lab.address().to_owned(), lab.admin_token());
        let dead = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..4 {
                let own_seed = random.random();
                let (address, token, dead, safe) = (&address, &token, &dead, &safe);
                scope.spawn(move || push_until_the_server_dies(address, token, own_seed, dead, safe));
            }
            thread::sleep(Duration::from_millis(random.random_range(1000..4000)));
            lab.kill();
            dead.store(true, Ordering::SeqCst);
        });
        lab.restart();
        let safe = safe.lock().unwrap().clone();
        assert!(safe.len() > round, "nothing was pushed in round {round}, so nothing was tried");
        for acknowledged in &safe {
            let narinfo = lab.get(&format!("/main/{}.narinfo", acknowledged.path_hash));
            assert_eq!(narinfo.status, 200, "lost after {} rounds: {acknowledged:?}", round + 1);
            let text = narinfo.text();
            let url = text.lines().find_map(|line| line.strip_prefix("URL: ")).unwrap();
            let nar = lab.get(&format!("/main/{url}"));
            assert!(nar.status == 200 && nar.complete, "{nar:?}");
            let bytes = zstd::decode_all(nar.body.as_slice()).unwrap();
            assert_eq!(NarHash::digest(&bytes), acknowledged.nar_hash, "{acknowledged:?}");
        }
        // The same asked of the database and the store themselves.
        let hashes: Vec<NarHash> = safe.iter().map(|acknowledged| acknowledged.nar_hash).collect();
        let leaks = lab.inspection().check(&hashes);
        assert_eq!(leaks.nars, 0, "a NAR's row and its name are one commit");
        println!("round {round}: {} paths were acknowledged and are there; {leaks}", safe.len());
    }
}

#[test]
fn a_push_that_a_kill_interrupted_is_healed_by_the_next_one() {
    const MEMBERS: &str = "60";
    let mut lab = Lab::start();
    let builder = lab.machine("builder", Nix::NEWEST);
    builder.login(&lab);
    let crowd = builder.build("crowd", &[("salt", "killed"), ("leaves", MEMBERS)]);
    let closure = builder.closure(&crowd);
    let count_present = |lab: &Lab| {
        closure
            .iter()
            .filter(|path| {
                let narinfo = format!("/main/{}.narinfo", &path["/nix/store/".len()..][..32]);
                http::get(lab.address(), &narinfo, None).status == 200
            })
            .count()
    };
    let child = builder.spawn(&builder.dormer_path(), &["push", "main", &crowd, "-j", "2"]);
    while count_present(&lab) < 5 {
        thread::sleep(Duration::from_millis(5));
    }
    lab.kill();
    let interrupted = Run::wait_for(child);
    interrupted.fails();
    lab.restart();
    let kept = count_present(&lab);
    assert!((5..closure.len()).contains(&kept), "the kill came in the middle: {kept} of {}", closure.len());

    builder.dormer(&["push", "main", &crowd]).succeeds();
    assert_eq!(count_present(&lab), closure.len());
    let puller = lab.machine("puller", Nix::MIDDLE);
    puller.configure(&[lab.public_key("main")]);
    puller.substitute(&lab.cache_url("main"), &crowd).succeeds();
    puller.verify_all();
}

#[test]
fn an_upload_whose_sender_goes_away_leaves_nothing() {
    use std::io::Write as _;
    let lab = Lab::start();
    let mut contents = vec![0; 4_000_000];
    rand::rngs::SmallRng::seed_from_u64(1).fill(&mut contents[..]);
    let nar = nars::file(&contents);
    let info = nars::attic_info("main", &nar, "gone");
    let head = format!(
        "PUT /_api/v1/upload-path HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\nX-Attic-Nar-Info: {info}\r\n\
         Content-Length: {}\r\n\r\n",
        lab.address(),
        lab.admin_token(),
        nar.len()
    );
    let mut stream = http::connect(lab.address());
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(&nar[..nar.len() / 2]).unwrap();
    drop(stream);
    let narinfo = format!("/main/{}.narinfo", nars::path_hash(&nar));
    assert_eq!(lab.get(&narinfo).status, 404);
    // The same NAR, whole this time, is taken as if nothing had happened.
    assert_eq!(
        try_exchange(
            lab.address(),
            &[head.replace("Host:", "Connection: close\r\nHost:").as_bytes(), &nar].concat()
        ),
        Some(200)
    );
    assert_eq!(lab.get(&narinfo).status, 200);
}

#[test]
fn a_second_start_finds_what_the_first_one_made() {
    let mut lab = Lab::start();
    let builder = lab.machine("builder", Nix::NEWEST);
    builder.login(&lab);
    let all = builder.build("all", &[("salt", "restart")]);
    builder.dormer(&["push", "main", &all]).succeeds();
    let (key, token) = (lab.public_key("main"), lab.admin_token());
    lab.kill();
    lab.restart();
    assert_eq!((lab.public_key("main"), lab.admin_token()), (key.clone(), token));
    let puller = lab.machine("puller", Nix::OLDEST);
    puller.configure(&[key]);
    puller.substitute(&lab.cache_url("main"), &all).succeeds();
    puller.verify_all();
}
