//! A push from arguments to summary, against a scripted server and a program in place of `nix`.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::support::{Request, Server, Step};
use dormer_api::{CacheConfig, UploadPathNarInfo};
use dormer_client::{
    ApiClient, CaseHack, Error, Exclusion, HttpSettings, NixStore, PathDone, PushFilter, PushOptions,
    PushPlan, PushReporter, RetryPolicy, Silent, TransferId, dump_nar, execute_push, plan_push,
};
use dormer_nix::{NarHasher, StorePath};

/// A store folder with files of some sizes, and a `nix` that knows them.
pub(super) struct Store {
    folder: tempfile::TempDir,
    pub(super) nix: NixStore,
    pub(super) paths: Vec<StorePath>,
}

impl Store {
    /// One path for each `(name, bytes, signing key)`, in that order.
    pub(super) fn new(contents: &[(&str, usize, Option<&str>)]) -> Self {
        Self::with_references(contents, &[])
    }

    /// The same, where each `(path, reference)` is a pair of places in `contents`.
    pub(super) fn with_references(
        contents: &[(&str, usize, Option<&str>)],
        references: &[(usize, usize)],
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let store_dir = root.join("store");
        std::fs::create_dir(&store_dir).unwrap();
        let (mut paths, mut entries) = (Vec::new(), Vec::new());
        for (number, (name, size, key)) in contents.iter().enumerate() {
            let path: StorePath = format!("{number:032}-{name}").parse().unwrap();
            let file = store_dir.join(path.to_string());
            std::fs::write(&file, vec![u8::try_from(number).unwrap(); *size]).unwrap();
            let mut hasher = NarHasher::new();
            dump_nar(&file, CaseHack::Keep, |bytes| {
                hasher.update(bytes);
                Ok(())
            })
            .unwrap();
            let (nar_hash, nar_size) = hasher.finish();
            let references: Vec<String> = references
                .iter()
                .filter(|(from, _)| *from == number)
                .map(|(_, to)| format!("\"{}/{to:032}-{}\"", store_dir.display(), contents[*to].0))
                .collect();
            let references = references.join(",");
            let signatures = key.map_or(String::new(), |key| format!("\"{key}:AAAA\""));
            entries.push(format!(
                r#""{}":{{"narHash":"{nar_hash}","narSize":{nar_size},"references":[{references}],"signatures":[{signatures}]}}"#,
                file.display()
            ));
            paths.push(path);
        }
        std::fs::write(root.join("infos.json"), format!("{{{}}}", entries.join(","))).unwrap();
        let program = root.join("nix");
        std::fs::write(
            &program,
            format!("#!/bin/sh\necho \"$*\" >> {0}/calls\ncat {0}/infos.json\n", root.display()),
        )
        .unwrap();
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        let nix = NixStore::new(program, store_dir.to_str().unwrap().parse().unwrap());
        Self { folder, nix, paths }
    }

    /// Makes these paths invalid: `nix` fails if it is asked about one of them.
    pub(super) fn invalidate(&self, numbers: &[usize]) {
        use std::fmt::Write as _;
        let root = self.folder.path().canonicalize().unwrap();
        let full = |number: &usize| self.paths[*number].to_absolute(self.nix.store_dir());
        let mut script = String::from("#!/bin/sh\ncase \"$*\" in\n");
        for path in numbers.iter().map(full) {
            writeln!(script, "*{path}*) echo \"error: path '{path}' is not valid\" >&2; exit 1;;").unwrap();
        }
        writeln!(script, "esac\ncat {}/infos.json", root.display()).unwrap();
        std::fs::write(root.join("nix"), script).unwrap();
        // The paths are arguments after two flags, and this program prints the invalid ones.
        let mut script = String::from("#!/bin/sh\nfor path in \"$@\"; do case \"$path\" in\n");
        for path in numbers.iter().map(full) {
            writeln!(script, "{path}) echo \"$path\";;").unwrap();
        }
        script.push_str("esac; done\n");
        std::fs::write(root.join("nix-store"), script).unwrap();
        std::fs::set_permissions(root.join("nix-store"), std::fs::Permissions::from_mode(0o755)).unwrap();
        let infos = std::fs::read_to_string(root.join("infos.json")).unwrap();
        let mut infos: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&infos).unwrap();
        for path in numbers.iter().map(full) {
            infos.remove(&path);
        }
        std::fs::write(root.join("infos.json"), serde_json::to_string(&infos).unwrap()).unwrap();
    }

    /// Says that a derivation of this name made a path.
    pub(super) fn describe(&self, number: usize, deriver: &str, ca: Option<&str>) {
        let file = self.folder.path().join("infos.json");
        let mut infos: serde_json::Value =
            serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
        let info = &mut infos[self.paths[number].to_absolute(self.nix.store_dir())];
        info["deriver"] = format!("{}/{:032}-{deriver}.drv", self.nix.store_dir(), 9).into();
        info["ca"] = ca.into();
        std::fs::write(file, infos.to_string()).unwrap();
    }

    /// Makes a path the content-addressed output of a derivation of the same name, and lets `nix`
    /// tell its build trace.
    pub(super) fn trace(&mut self, number: usize) {
        let path = &self.paths[number];
        self.describe(number, path.name(), Some("fixed:r:sha256:x"));
        let id = format!("sha256:{}!out", "1".repeat(64));
        let trace = serde_json::json!([{
            "id": id, "outPath": path.to_string(), "dependentRealisations": {}, "signatures": [],
        }]);
        let traces = self.folder.path().join("traces.json");
        std::fs::write(&traces, trace.to_string()).unwrap();
        let program = self.folder.path().join("nix");
        let script = std::fs::read_to_string(&program).unwrap();
        let begin =
            format!("#!/bin/sh\ncase \"$*\" in *realisation*) cat {}; exit;; esac\n", traces.display());
        std::fs::write(program, script.replacen("#!/bin/sh\n", &begin, 1)).unwrap();
        self.nix = self.nix.clone().with_traces();
    }

    /// Puts this script in the place of `nix-store`.
    pub(super) fn replace_nix_store(&self, script: &str) {
        let program = self.folder.path().join("nix-store");
        std::fs::write(&program, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(program, std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn config(&self) -> CacheConfig {
        CacheConfig {
            store_dir: Some(self.nix.store_dir().clone()),
            upstream_cache_key_names: Some(vec!["cache.nixos.org-1".to_owned()]),
            ..CacheConfig::default()
        }
    }

    fn calls(&self) -> String {
        std::fs::read_to_string(self.folder.path().join("calls")).unwrap()
    }
}

/// A server with every path, except paths with a hash that ends with one of `missing`. It answers
/// uploads with `upload`.
async fn server(missing: &[usize], upload: impl Fn(usize) -> Step + Send + Sync + 'static) -> Server {
    let hashes: Vec<String> = missing.iter().map(|number| format!("\"{number:032}\"")).collect();
    let missing = format!("{{\"missing_paths\":[{}]}}", hashes.join(","));
    let uploads = AtomicUsize::new(0);
    Server::answering(move |_, line| {
        if line.starts_with("POST /_api/v1/get-missing-paths") {
            Step::Answer(200, "", missing.clone())
        } else {
            upload(uploads.fetch_add(1, Ordering::Relaxed))
        }
    })
    .await
}

fn uploaded(_: usize) -> Step {
    Step::Answer(200, "", r#"{"kind":"Uploaded","file_size":10,"frac_deduplicated":0.25}"#.to_owned())
}

fn api(server: &Server) -> ApiClient {
    let retry = RetryPolicy {
        tries_max: 2,
        wait_first: Duration::from_millis(10),
        wait_first_busy: Duration::from_millis(10),
        ..RetryPolicy::default()
    };
    let settings = HttpSettings { retry, ..HttpSettings::default() };
    ApiClient::new(server.address.parse().unwrap(), None, settings).unwrap()
}

async fn plan(store: &Store, server: &Server, options: &PushOptions) -> Result<PushPlan, Error> {
    let cache = "main".parse().unwrap();
    plan_push(&api(server), &store.nix, &cache, &store.config(), &store.paths, options).await
}

fn uploads(server: &Server) -> Vec<(Request, UploadPathNarInfo)> {
    let requests = server.requests().into_iter().filter(|request| request.line.starts_with("PUT "));
    let read = |request: Request| {
        let info = UploadPathNarInfo::parse(request.header("x-attic-nar-info").unwrap().as_bytes()).unwrap();
        (request, info)
    };
    requests.map(read).collect()
}

fn names(paths: &[StorePath]) -> Vec<&str> {
    paths.iter().map(StorePath::name).collect()
}

/// Records the reported events.
#[derive(Default)]
struct Log(Mutex<Vec<String>>);

impl Log {
    fn write(&self, line: String) {
        self.0.lock().unwrap().push(line);
    }
}

impl PushReporter for Log {
    fn plan_made(&self, plan: &PushPlan) {
        self.write(format!("plan {} of {}", plan.missing.len(), plan.path_count()));
    }

    fn path_started(&self, id: TransferId, path: &StorePath, _nar_size: u64) {
        self.write(format!("start {id} {}", path.name()));
    }

    fn path_progress(&self, id: TransferId, bytes: u64) {
        self.write(format!("progress {id} {bytes}"));
    }

    fn path_done(&self, id: TransferId, done: &PathDone) {
        let kept = if done.kept { " kept" } else { "" };
        self.write(format!("done {id} {}{kept}", done.path.name()));
    }

    fn path_failed(&self, id: TransferId, path: &StorePath, _error: &Error) {
        self.write(format!("failed {id} {}", path.name()));
    }
}

#[tokio::test]
async fn sizes_that_nix_does_not_know_are_measured() {
    for unknown in ["", "\"narSize\":0,", "\"narSize\":null,"] {
        let store = Store::new(&[("a", 1000, None), ("b", 70_000, None)]);
        let file = store.folder.path().join("infos.json");
        let mut text = std::fs::read_to_string(&file).unwrap();
        let known = store.nix.path_infos(&store.paths, false).await.unwrap();
        for info in &known {
            text = text.replace(&format!("\"narSize\":{},", info.nar_size), unknown);
        }
        std::fs::write(&file, text).unwrap();
        let server = server(&[0, 1], uploaded).await;
        let plan = plan(&store, &server, &PushOptions::default()).await.unwrap();
        let sizes = |infos: &[dormer_client::PathInfo]| -> Vec<u64> {
            let mut sizes: Vec<u64> = infos.iter().map(|info| info.nar_size).collect();
            sizes.sort_unstable();
            sizes
        };
        assert_eq!(sizes(&plan.missing), sizes(&known), "{unknown}");
        let summary = execute_push(&api(&server), plan, &PushOptions::default(), Arc::new(Silent)).await;
        assert!(summary.is_complete() && summary.pushed.len() == 2, "{summary:?}");
    }
}

#[tokio::test]
async fn a_path_that_cannot_be_measured_stops_only_its_referrers() {
    let contents = [("top", 10, None), ("gone", 1000, None), ("other", 70_000, None)];
    let store = Store::with_references(&contents, &[(0, 1)]);
    let file = store.folder.path().join("infos.json");
    let mut text = std::fs::read_to_string(&file).unwrap();
    for info in store.nix.path_infos(&store.paths, false).await.unwrap() {
        text = text.replace(&format!("\"narSize\":{},", info.nar_size), "");
    }
    std::fs::write(&file, text).unwrap();
    std::fs::remove_file(store.folder.path().join("store").join(store.paths[1].to_string())).unwrap();
    let server = server(&[0, 1, 2], uploaded).await;
    let options = PushOptions::default();
    let plan = plan(&store, &server, &options).await.unwrap();
    let summary = execute_push(&api(&server), plan, &options, Arc::new(Silent)).await;
    assert_eq!(summary.pushed.iter().map(|done| done.path.name()).collect::<Vec<_>>(), ["other"]);
    assert_eq!(summary.failed.iter().map(|failed| failed.path.name()).collect::<Vec<_>>(), ["gone"]);
    assert_eq!(names(&summary.not_tried.into_iter().map(|path| path.path).collect::<Vec<_>>()), ["top"]);
}

/// The filter reaches into the closure, and says nothing about what the cache or an upstream cache
/// has.
#[tokio::test]
async fn excluded_paths_and_what_refers_to_them_stay_out() {
    let contents = [
        ("top", 10, None),
        ("big-source", 1000, None),
        ("other", 70_000, None),
        ("old-source", 10, None),
        ("up-source", 10, Some("cache.nixos.org-1")),
    ];
    let store = Store::with_references(&contents, &[(0, 1), (0, 4), (2, 3), (2, 4)]);
    let server = server(&[0, 1, 2], uploaded).await;
    let filter = PushFilter { exclude: vec!["*-source".parse().unwrap()], ..PushFilter::default() };
    let mut options = PushOptions { filter, ..PushOptions::default() };
    let plan_of = async |options: &PushOptions| plan(&store, &server, options).await.unwrap();
    let planned = plan_of(&options).await;
    let missing: Vec<&str> = planned.missing.iter().map(|info| info.path.name()).collect();
    assert_eq!(
        (missing, names(&planned.present), names(&planned.upstream)),
        (vec!["other"], vec!["old-source"], vec!["up-source"])
    );
    assert_eq!(
        planned.excluded.iter().map(|one| (&one.path, &one.exclusion)).collect::<Vec<_>>(),
        [(&store.paths[1], &Exclusion::Name("*-source".parse().unwrap()),)]
    );
    let [incomplete] = planned.incomplete.as_slice() else { panic!("{planned:?}") };
    assert_eq!((&incomplete.path, &incomplete.excluded_reference), (&store.paths[0], &store.paths[1]));
    assert_eq!(planned.path_count(), 5);
    let summary = execute_push(&api(&server), planned, &options, Arc::new(Silent)).await;
    assert!(summary.is_complete());
    let sent =
        uploads(&server).into_iter().map(|(_, info)| info.store_path.rsplit('-').next().unwrap().to_owned());
    assert_eq!(sent.collect::<Vec<_>>(), ["other"]);

    options.filter.allow_incomplete = true;
    let planned = plan_of(&options).await;
    assert_eq!((planned.missing.len(), planned.excluded.len(), planned.incomplete.len()), (2, 1, 0));
    options.filter = PushFilter { exclude_larger: Some(10_000), ..PushFilter::default() };
    let planned = plan_of(&options).await;
    assert_eq!(
        (planned.missing.len(), planned.excluded[0].path.name(), planned.incomplete.len()),
        (2, "other", 0)
    );
}

/// The logs of builds go the way of their paths: what a filter keeps out is not told by its log.
#[tokio::test]
async fn the_builds_of_what_stays_out_are_not_in_the_plan() {
    let contents = [
        ("top", 10, None),
        ("a-source", 10, None),
        ("b", 10, None),
        ("b-source", 10, None),
        ("old", 10, None),
    ];
    let store = Store::with_references(&contents, &[(0, 1)]);
    for (number, deriver) in ["incomplete", "excluded", "half", "half", "old"].iter().enumerate() {
        store.describe(number, deriver, None);
    }
    let server = server(&[0, 1, 2, 3], uploaded).await;
    let filter = PushFilter { exclude: vec!["*-source".parse().unwrap()], ..PushFilter::default() };
    let options = PushOptions { filter, ..PushOptions::default() };
    let plan = plan(&store, &server, &options).await.unwrap();
    let derivers: Vec<(&str, bool)> =
        plan.derivers.iter().map(|deriver| (deriver.derivation.name(), deriver.is_new)).collect();
    assert_eq!(derivers, [("half.drv", true), ("old.drv", false)]);
}

#[tokio::test]
async fn the_files_of_a_store_may_be_in_another_folder_than_its_names_say() {
    let store = Store::new(&[("a", 1000, None), ("b", 70_000, None)]);
    let real = store.folder.path().join("root");
    std::fs::rename(store.folder.path().join("store"), &real).unwrap();
    let server = server(&[0, 1], uploaded).await;
    let options = PushOptions { real_store_dir: Some(real), ..PushOptions::default() };
    let pushed_to = plan(&store, &server, &options).await.unwrap();
    let summary = execute_push(&api(&server), pushed_to, &options, Arc::new(Silent)).await;
    assert!(summary.is_complete() && summary.pushed.len() == 2, "{summary:?}");
    // The names stay those of the store.
    let uploads = server.requests();
    let names = uploads.iter().filter_map(|request| request.header("x-attic-nar-info"));
    let expected = format!("{}/", store.nix.store_dir());
    assert_eq!(names.filter(|json| json.contains(&expected)).count(), 2);
}

#[tokio::test]
async fn a_push_sends_what_is_missing_and_accounts_for_every_path() {
    let store = Store::new(&[
        ("small", 10, None),
        ("upstream", 10, Some("cache.nixos.org-1")),
        ("large", 100_000, Some("other-1")),
        ("present", 10, None),
    ]);
    let server = server(&[0, 2], uploaded).await;
    let options = PushOptions { jobs: 1, ..PushOptions::default() };
    let plan = plan(&store, &server, &options).await.unwrap();
    assert_eq!(plan.missing.iter().map(|info| info.path.name()).collect::<Vec<_>>(), ["large", "small"]);
    assert_eq!((names(&plan.present), names(&plan.upstream)), (vec!["present"], vec!["upstream"]));
    assert_eq!(plan.missing_bytes(), 100_112 + 128);
    assert!(store.calls().contains("path-info --json --option substitute false --recursive -- "));
    // A dry run ends here: nothing was sent.
    assert!(uploads(&server).is_empty());
    let asked = String::from_utf8(server.requests()[0].body.clone()).unwrap();
    assert_eq!(
        asked,
        format!(r#"{{"cache":"main","store_path_hashes":["{:032}","{:032}","{:032}"]}}"#, 0, 2, 3)
    );

    let log = Arc::new(Log::default());
    let summary = execute_push(&api(&server), plan, &options, log.clone()).await;
    assert!(summary.is_complete());
    assert_eq!(summary.pushed.iter().map(|done| done.path.name()).collect::<Vec<_>>(), ["large", "small"]);
    assert_eq!((names(&summary.present), names(&summary.upstream)), (vec!["present"], vec!["upstream"]));
    assert_eq!((summary.bytes_read, summary.bytes_sent), (100_240, 100_240));
    assert_eq!(summary.bytes_saved, 25_028 + 32);
    assert_eq!(
        *log.0.lock().unwrap(),
        [
            "plan 2 of 4",
            "start 0 large",
            "progress 0 100112",
            "done 0 large",
            "start 1 small",
            "progress 1 128",
            "done 1 small"
        ]
    );
    for (request, info) in uploads(&server) {
        assert_eq!(request.body.len() as u64, info.nar_size);
        assert_eq!(
            Path::new(&info.store_path).parent().unwrap().to_str(),
            Some(store.nix.store_dir().as_str())
        );
    }
}

#[tokio::test]
async fn upstream_paths_are_sent_when_asked_for_and_a_closure_only_if_wanted() {
    let store = Store::new(&[("upstream", 10, Some("cache.nixos.org-1"))]);
    let server = server(&[0], uploaded).await;
    let options = PushOptions { ignore_upstream: true, closure: false, ..PushOptions::default() };
    let plan = plan(&store, &server, &options).await.unwrap();
    assert_eq!((plan.missing.len(), plan.upstream.len()), (1, 0));
    assert!(!store.calls().contains("--recursive"));
}

#[tokio::test]
async fn a_path_named_twice_is_asked_for_and_sent_once() {
    let mut store = Store::new(&[("a", 10, None)]);
    store.paths = vec![store.paths[0].clone(); 3];
    let server = server(&[0], uploaded).await;
    let plan = plan(&store, &server, &PushOptions::default()).await.unwrap();
    assert_eq!(plan.missing.len(), 1);
    assert_eq!(store.calls().matches("-a").count(), 1);
}

#[tokio::test]
async fn many_paths_are_asked_for_in_batches() {
    let contents: Vec<(&str, usize, Option<&str>)> = vec![("p", 0, None); 200];
    let store = Store::new(&contents);
    let infos = store.nix.path_infos(&store.paths, false).await.unwrap();
    assert_eq!(infos.len(), 200);
    // 5,000 is the limit, so 12,001 paths are three requests.
    let entry = |number: usize| {
        format!(
            r#""{}/{number:032}-p":{{"narHash":"{}","narSize":112,"references":[]}}"#,
            store.nix.store_dir(),
            infos[0].nar_hash
        )
    };
    let entries: Vec<String> = (0..12_001).map(entry).collect();
    std::fs::write(store.folder.path().join("infos.json"), format!("{{{}}}", entries.join(","))).unwrap();
    let server = server(&[12_000], uploaded).await;
    let plan = plan(&store, &server, &PushOptions::default()).await.unwrap();
    assert_eq!((plan.missing.len(), plan.present.len()), (1, 12_000));
    let sizes: Vec<usize> = server
        .requests()
        .iter()
        .map(|request| String::from_utf8_lossy(&request.body).matches("\"0000").count())
        .collect();
    assert_eq!(sizes, [5_000, 5_000, 2_001]);
}

#[tokio::test]
async fn one_bad_path_does_not_stop_the_others_and_is_in_the_summary() {
    let store = Store::new(&[("a", 3_000_000, None), ("b", 2_000_000, None), ("c", 10, None)]);
    let server = server(&[0, 1, 2], uploaded).await;
    let options = PushOptions { jobs: 2, ..PushOptions::default() };
    let plan = plan(&store, &server, &options).await.unwrap();
    // Damages the path between the plan and its execution.
    std::fs::write(store.folder.path().join("store").join(store.paths[0].to_string()), vec![9; 3_000_000])
        .unwrap();
    let log = Arc::new(Log::default());
    let summary = execute_push(&api(&server), plan, &options, log.clone()).await;
    assert!(!summary.is_complete());
    assert_eq!(summary.pushed.len(), 2);
    assert_eq!(summary.failed.len(), 1);
    assert_eq!(summary.failed[0].path, store.paths[0]);
    assert!(matches!(summary.failed[0].error, Error::Dump { .. }));
    assert!(summary.not_tried.is_empty());
    assert!(log.0.lock().unwrap().contains(&"failed 0 a".to_owned()));
}

#[tokio::test]
async fn a_server_that_does_not_want_us_is_not_asked_again_for_every_path() {
    let contents: Vec<(&str, usize, Option<&str>)> = vec![("p", 10, None); 50];
    let store = Store::new(&contents);
    let all: Vec<usize> = (0..50).collect();
    let server = server(&all, |number| {
        if number == 0 {
            uploaded(0)
        } else {
            Step::Answer(401, "", r#"{"code":401,"error":"Unauthorized","message":"expired"}"#.to_owned())
        }
    })
    .await;
    let options = PushOptions { jobs: 3, ..PushOptions::default() };
    let plan = plan(&store, &server, &options).await.unwrap();
    let summary = execute_push(&api(&server), plan, &options, Arc::new(Silent)).await;
    assert_eq!(summary.pushed.len(), 1);
    assert!((1..=4).contains(&summary.failed.len()), "{}", summary.failed.len());
    assert_eq!(summary.pushed.len() + summary.failed.len() + summary.not_tried.len(), 50);
    assert!(!summary.is_complete());
}

/// The events of one kind in a log, by the names of their paths.
fn events<'a>(log: &'a [String], kind: &str) -> Vec<&'a str> {
    let named = log.iter().filter(|line| line.starts_with(kind));
    named.map(|line| line.rsplit(' ').next().unwrap()).collect()
}

#[tokio::test]
async fn no_path_is_sent_before_its_references_are_acknowledged() {
    // The top is the largest and refers to everything, as in a real closure.
    let contents: Vec<(&str, usize, Option<&str>)> =
        vec![("top", 500_000, None), ("a", 300_000, None), ("b", 10, None), ("c", 90_000, None)];
    let store = Store::with_references(&contents, &[(0, 0), (0, 1), (0, 2), (0, 3), (1, 2), (3, 2)]);
    let server = server(&[0, 1, 2, 3], uploaded).await;
    for jobs in [1, 8] {
        let options = PushOptions { jobs, ..PushOptions::default() };
        let plan = plan(&store, &server, &options).await.unwrap();
        let log = Arc::new(Log::default());
        let summary = execute_push(&api(&server), plan, &options, log.clone()).await;
        assert!(summary.is_complete());
        let log = log.0.lock().unwrap();
        let order: Vec<&String> = log.iter().filter(|line| !line.starts_with("progress")).collect();
        let at = |wanted: &str, name: &str| {
            let fits = |line: &&String| line.starts_with(wanted) && line.ends_with(&format!(" {name}"));
            order.iter().position(fits).unwrap()
        };
        for (from, to) in [("top", "a"), ("top", "b"), ("top", "c"), ("a", "b"), ("c", "b")] {
            assert!(at("done", to) < at("start", from), "{from} before {to}: {log:?}");
        }
        assert_eq!(events(&log, "start"), ["b", "a", "c", "top"], "the largest that may start");
    }
}

#[tokio::test]
async fn a_push_that_is_interrupted_anywhere_leaves_no_half_closure() {
    // A chain: 0 is the top.
    let contents: Vec<(&str, usize, Option<&str>)> = vec![("p", 20_000, None); 8];
    let references: Vec<(usize, usize)> = (0..7).map(|number| (number, number + 1)).collect();
    let store = Store::with_references(&contents, &references);
    let all: Vec<usize> = (0..8).collect();
    for cut in 0..8 {
        let server =
            server(&all, move |number| if number < cut { uploaded(number) } else { Step::Stall }).await;
        let options = PushOptions { jobs: 8, ..PushOptions::default() };
        let plan = plan(&store, &server, &options).await.unwrap();
        let api = api(&server);
        let push = execute_push(&api, plan, &options, Arc::new(Silent));
        assert!(tokio::time::timeout(Duration::from_millis(300), push).await.is_err());
        let sent: Vec<String> =
            uploads(&server).into_iter().map(|(_, info)| info.store_path_hash.to_string()).collect();
        let expected: Vec<String> = (7 - cut..8).rev().map(|number| format!("{number:032}")).collect();
        assert_eq!(sent, expected, "cut after {cut}");
    }
}

#[tokio::test]
async fn a_failure_skips_the_paths_that_refer_to_it_and_says_so() {
    let contents: Vec<(&str, usize, Option<&str>)> =
        vec![("top", 10, None), ("middle", 10, None), ("damaged", 10, None), ("other", 10, None)];
    let store = Store::with_references(&contents, &[(0, 1), (1, 2)]);
    let server = server(&[0, 1, 2, 3], uploaded).await;
    let options = PushOptions::default();
    let plan = plan(&store, &server, &options).await.unwrap();
    std::fs::write(store.folder.path().join("store").join(store.paths[2].to_string()), [9; 10]).unwrap();
    let summary = execute_push(&api(&server), plan, &options, Arc::new(Silent)).await;
    assert_eq!(summary.pushed.iter().map(|done| done.path.name()).collect::<Vec<_>>(), ["other"]);
    assert_eq!(summary.failed.iter().map(|failed| failed.path.name()).collect::<Vec<_>>(), ["damaged"]);
    let skipped: Vec<&str> = summary.not_tried.iter().map(|skipped| skipped.path.name()).collect();
    assert_eq!(skipped, ["middle", "top"]);
    assert!(summary.not_tried.iter().all(|skipped| skipped.failed_reference == Some(store.paths[2].clone())));
    assert!(!uploads(&server).iter().any(|(_, info)| info.store_path.ends_with("-top")));
}

#[tokio::test]
async fn a_path_that_the_cache_kept_as_it_was_is_told_apart() {
    let store = Store::new(&[("a", 10, None), ("b", 10, None)]);
    let kept = Step::Answer(200, "", r#"{"kind":"Deduplicated","kept":true}"#.to_owned());
    let answer = move |number: usize| if number == 0 { kept.clone() } else { uploaded(number) };
    let server = server(&[0, 1], answer).await;
    let options = PushOptions::default();
    let plan = plan(&store, &server, &options).await.unwrap();
    let log = Arc::new(Log::default());
    let summary = execute_push(&api(&server), plan, &options, log.clone()).await;
    assert!(summary.is_complete());
    assert_eq!((summary.pushed.len(), summary.kept.len()), (1, 1), "{summary:?}");
    assert!(summary.kept[0].kept && !summary.pushed[0].kept);
    let said = format!("{} kept", summary.kept[0].path.name());
    let events = log.0.lock().unwrap();
    assert_eq!(events.iter().filter(|line| line.ends_with(" kept")).count(), 1, "{events:?}");
    assert!(events.iter().any(|line| line.ends_with(&said)), "{events:?}");
}

#[tokio::test]
async fn invalid_paths_do_not_stop_the_others_and_are_named() {
    let store = Store::new(&[("a", 10, None), ("gone", 10, None), ("b", 10, None), ("lost", 10, None)]);
    store.invalidate(&[1, 3]);
    let server = server(&[0, 2], uploaded).await;
    for closure in [true, false] {
        let options = PushOptions { closure, ..PushOptions::default() };
        let plan = plan(&store, &server, &options).await.unwrap();
        assert_eq!(names(&plan.invalid), ["gone", "lost"]);
        assert_eq!((plan.missing.len(), plan.path_count()), (2, 4));
        let summary = execute_push(&api(&server), plan, &options, Arc::new(Silent)).await;
        assert_eq!(summary.pushed.len(), 2);
        assert!(!summary.is_complete());
        assert_eq!(
            summary.failed.iter().map(|failed| failed.path.name()).collect::<Vec<_>>(),
            ["gone", "lost"]
        );
        assert!(matches!(summary.failed[0].error, Error::InvalidPath { .. }));
    }
    // If nothing is left to push, the reason is the answer.
    store.invalidate(&[0, 1, 2, 3]);
    let error = plan(&store, &server, &PushOptions::default()).await.unwrap_err();
    assert!(matches!(error, Error::InvalidPath { .. }));
}

/// Counts the uploads between start and end.
#[derive(Default)]
struct Running(AtomicUsize, AtomicUsize);
impl PushReporter for Running {
    fn path_started(&self, _: TransferId, _: &StorePath, _: u64) {
        let now = self.0.fetch_add(1, Ordering::SeqCst) + 1;
        self.1.fetch_max(now, Ordering::SeqCst);
    }

    fn path_done(&self, _: TransferId, _: &PathDone) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[tokio::test]
async fn uploads_run_side_by_side_up_to_the_limit() {
    let contents: Vec<(&str, usize, Option<&str>)> = vec![("p", 10, None); 12];
    let store = Store::new(&contents);
    let all: Vec<usize> = (0..12).collect();
    let server = server(&all, uploaded).await;
    for jobs in [1, 4] {
        let options = PushOptions { jobs, ..PushOptions::default() };
        let plan = plan(&store, &server, &options).await.unwrap();
        let running = Arc::new(Running::default());
        let summary = execute_push(&api(&server), plan, &options, running.clone()).await;
        assert!(summary.is_complete());
        assert_eq!(running.1.load(Ordering::SeqCst), jobs);
    }
}

#[tokio::test]
async fn a_cache_for_another_store_is_refused_before_anything_is_asked() {
    let store = Store::new(&[("a", 10, None)]);
    let server = server(&[0], uploaded).await;
    let config = CacheConfig { store_dir: Some("/nix/store".parse().unwrap()), ..store.config() };
    let error = plan_push(
        &api(&server),
        &store.nix,
        &"main".parse().unwrap(),
        &config,
        &store.paths,
        &PushOptions::default(),
    )
    .await
    .unwrap_err();
    assert!(matches!(error, Error::StoreDirMismatch { .. }));
    assert!(server.requests().is_empty());
}

#[tokio::test]
async fn a_push_that_is_dropped_leaves_nothing_running() {
    let store = Store::new(&[("a", 30_000_000, None)]);
    let server = server(&[0], |_| Step::Stall).await;
    let plan = plan(&store, &server, &PushOptions::default()).await.unwrap();
    let api = api(&server);
    let options = PushOptions::default();
    let push = execute_push(&api, plan, &options, Arc::new(Silent));
    assert!(tokio::time::timeout(Duration::from_millis(500), push).await.is_err());
    // The test's runtime ends only after the thread that reads the disk. A waiting thread would
    // hang here.
}
