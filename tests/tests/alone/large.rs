//! Large paths, one and many at once, through a server that may use a quarter of a gigabyte.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::sync::LazyLock;
use std::thread;

use dormer_nix::{NarHash, NarHasher};
use dormer_tests::{Lab, LabOptions, Machine, Nix, http, nars};

/// What `dormer serve` promises to stay below, whatever is pushed.
const MEMORY_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// And `dormer push`, whatever it pushes.
const CLIENT_BYTES_MAX: u64 = 192 * 1024 * 1024;

fn lab_with_little_memory() -> Lab {
    Lab::start_with(LabOptions { memory_bytes_max: Some(MEMORY_BYTES_MAX), ..LabOptions::default() })
}

#[test]
fn a_path_of_more_than_a_gigabyte_goes_both_ways_in_bounded_memory() {
    let _turn = crate::turn(file!());
    let mut copied_to = lab_with_little_memory();
    let machine = copied_to.machine("machine", Nix::NEWEST);
    machine.set_netrc(copied_to.address(), &copied_to.token(&["--pull", "main", "--push", "main"]));
    let noise = machine.build("noise", &[("salt", "large"), ("megabytes", "1100")]);

    let target = format!("{}?compression=none", copied_to.cache_url("main"));
    machine.run("nix", &["copy", "--to", &target, &noise]).succeeds();
    assert_memory("nix copy", &mut copied_to);

    // A server of its own, because the first one knows the bytes already.
    let mut pushed_to = lab_with_little_memory();
    machine.login(&pushed_to);
    push_in_little_memory(&machine, &noise);
    assert_memory("dormer push", &mut pushed_to);

    let puller = pushed_to.machine("puller", Nix::NEWEST);
    puller.configure(&[pushed_to.public_key("main")]);
    puller.substitute(&pushed_to.cache_url("main"), &noise).succeeds();
    puller.verify_all();
    // Both keys are called `main`, and Nix knows keys by their names: one at a time.
    puller.delete(std::slice::from_ref(&noise));
    puller.configure(&[copied_to.public_key("main")]);
    puller.substitute(&copied_to.cache_url("main"), &noise).succeeds();
    puller.verify_all();
    assert_memory("pulls", &mut pushed_to);
    assert_memory("pulls", &mut copied_to);
}

/// Pushes a path by chunks, and checks the memory of the client as the kernel counts it.
#[expect(clippy::print_stdout, reason = "with --nocapture, or after a failure, it tells how much")]
fn push_in_little_memory(machine: &Machine, path: &str) {
    let dormer = machine.dormer_path();
    let push = machine.run("/bin/busybox", &["time", "-v", &dormer, "push", "main", path, "--api", "v2"]);
    push.succeeds();
    let said = push.stderr();
    let kib = said.lines().find_map(|line| line.trim().strip_prefix("Maximum resident set size (kbytes): "));
    let bytes = 1024 * kib.and_then(|kib| kib.parse::<u64>().ok()).unwrap_or_else(|| panic!("{push}"));
    println!("peak memory of dormer push: {} MiB", bytes / 1024 / 1024);
    assert!(bytes <= CLIENT_BYTES_MAX, "{bytes} bytes");
}

/// Three GiB in the long run: more than any counter of 32 bits, and nearly all of it one chunk.
#[test]
fn a_sparse_path_of_gigabytes_goes_both_ways_in_bounded_memory() {
    let _turn = crate::turn(file!());
    let megabytes = if std::env::var_os("DORMER_TEST_LONG").is_some() { "3072" } else { "200" };
    let mut lab = lab_with_little_memory();
    let machine = lab.machine("machine", Nix::NEWEST);
    machine.login(&lab);
    let sparse = machine.build("sparse", &[("salt", "sparse"), ("megabytes", megabytes)]);
    push_in_little_memory(&machine, &sparse);
    assert!(lab.stored_bytes() < 1024 * 1024, "{} bytes of holes", lab.stored_bytes());
    let puller = lab.machine("puller", Nix::NEWEST);
    puller.configure(&[lab.public_key("main")]);
    puller.substitute(&lab.cache_url("main"), &sparse).succeeds();
    puller.verify_all();
    assert_memory("a sparse path", &mut lab);
}

/// Pushed, and pulled, at the same time.
const PATHS_AT_ONCE: u64 = 8;

/// Bytes in the one large file of each: long enough that all of them are in the middle of it at
/// once. A GiB in the long run.
static FILE_BYTES: LazyLock<u64> = LazyLock::new(|| {
    let long = std::env::var_os("DORMER_TEST_LONG").is_some();
    1024 * 1024 * if long { 1024 } else { 64 }
});

/// Small files of each: their listing takes megabytes.
const SMALL_FILES: u64 = 30_000;

#[test]
fn many_large_paths_at_once_take_turns_in_bounded_memory() {
    let _turn = crate::turn(file!());
    let mut lab = lab_with_little_memory();
    let token = lab.admin_token();
    let nars: Vec<Noise> = (0..PATHS_AT_ONCE).map(Noise::new).collect();
    all_at_once(&nars, |nar| nar.push(lab.address(), &token));
    assert_memory("eight pushes at once", &mut lab);

    let missing = http::request(
        lab.address(),
        "POST",
        "/_api/v1/get-missing-paths",
        &[("Authorization", &format!("Bearer {token}"))],
        format!(
            r#"{{"cache":"main","store_path_hashes":[{}]}}"#,
            nars.iter().map(|nar| format!("{:?}", nar.path_hash())).collect::<Vec<_>>().join(",")
        )
        .as_bytes(),
    );
    assert_eq!(missing.text(), r#"{"missing_paths":[]}"#);

    // Whole NARs and listings of megabytes, by more readers than there is memory for.
    let readers: Vec<&Noise> = nars.iter().chain(&nars).collect();
    all_at_once(&readers, |nar| {
        let listing = http::get(lab.address(), &format!("/main/{}.ls", nar.path_hash()), None);
        assert!(listing.complete && listing.status == 200, "{}", listing.status);
        let entries = listing.json()["root"]["entries"].as_object().expect("a directory").len() as u64;
        assert_eq!(entries, SMALL_FILES + 1);
        nar.pull(lab.address());
    });
    assert_memory("sixteen pulls at once", &mut lab);
}

fn all_at_once<T: Sync>(all: &[T], run: impl Fn(&T) + Sync) {
    thread::scope(|scope| {
        for one in all {
            scope.spawn(|| run(one));
        }
    });
}

/// A NAR that is written as it is sent: a large file that does not compress, and many small ones.
struct Noise {
    seed: u64,
    hash: NarHash,
    size: u64,
}

impl Noise {
    fn new(seed: u64) -> Self {
        let mut hasher = NarHasher::new();
        Self::write(seed, |bytes| hasher.update(bytes));
        let (hash, size) = hasher.finish();
        Self { seed, hash, size }
    }

    fn path_hash(&self) -> String {
        self.hash.to_nix32()[..32].to_owned()
    }

    fn write(seed: u64, mut out: impl FnMut(&[u8])) {
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        out(&nars::words([b"nix-archive-1", b"(", b"type", b"directory"]));
        out(&nars::words([b"entry", b"(", b"name", b"a", b"node", b"(", b"type", b"regular", b"contents"]));
        out(&FILE_BYTES.to_le_bytes());
        let mut piece = vec![0; 1024 * 1024];
        for _ in 0..*FILE_BYTES / piece.len() as u64 {
            for word in piece.chunks_exact_mut(8) {
                word.copy_from_slice(&next().to_le_bytes());
            }
            out(&piece);
        }
        out(&nars::words([b")", b")"]));
        for number in 0..SMALL_FILES {
            let name = format!("file-{number:05}-{:016x}{:016x}", next(), next());
            out(&nars::words([b"entry", b"(", b"name", name.as_bytes(), b"node"]));
            out(&nars::words([b"(", b"type", b"regular", b"contents", name.as_bytes(), b")", b")"]));
        }
        out(&nars::word(b")"));
    }

    fn push(&self, address: &str, token: &str) {
        let (path, hash, size) = (self.path_hash(), self.hash.to_hex(), self.size);
        let info = format!(
            r#"{{"cache":"main","store_path_hash":"{path}","store_path":"/nix/store/{path}-noise","references":[],"system":null,"deriver":null,"sigs":[],"ca":null,"nar_hash":"sha256:{hash}","nar_size":{size}}}"#
        );
        let mut stream = http::connect(address);
        let head = format!(
            "PUT /_api/v1/upload-path HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\
             X-Attic-Nar-Info: {info}\r\nContent-Length: {size}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).expect("the server takes the head");
        Self::write(self.seed, |bytes| stream.write_all(bytes).expect("the server takes the NAR"));
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("the server answers");
        assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    }

    fn pull(&self, address: &str) {
        let narinfo = http::get(address, &format!("/main/{}.narinfo", self.path_hash()), None).text();
        let url = narinfo.lines().find_map(|line| line.strip_prefix("URL: ")).expect("a narinfo has a URL");
        let mut stream = http::connect(address);
        let request = format!("GET /main/{url} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).expect("the server takes the request");
        let mut answer = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(answer.read_line(&mut head).expect("the server answers") > 0, "{head}");
        }
        assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
        let mut nar = zstd::stream::read::Decoder::with_buffer(answer).expect("zstd sets up");
        let (mut hasher, mut piece) = (NarHasher::new(), vec![0; 64 * 1024]);
        loop {
            match nar.read(&mut piece).expect("a whole stream") {
                0 => break,
                length => hasher.update(&piece[..length]),
            }
        }
        assert_eq!(hasher.finish(), (self.hash, self.size));
    }
}

#[expect(clippy::print_stdout, reason = "with --nocapture, or after a failure, it tells how much")]
fn assert_memory(after: &str, lab: &mut Lab) {
    assert!(lab.is_alive(), "the server did not survive {after}");
    let peak = lab.peak_memory_bytes();
    println!("peak memory of the server after {after}: {} MiB", peak / 1024 / 1024);
    assert!(peak <= MEMORY_BYTES_MAX, "{peak} bytes after {after}");
}
