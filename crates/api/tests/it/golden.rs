//! The wire, as literal texts: what Attic's client sends and Attic's server answers, and what we
//! write.
//!
//! The texts are the contract. A change here breaks clients that are already installed.

#![expect(clippy::unwrap_used, reason = "a failed unwrap fails the test, as it should")]

use dormer_api::v2::{
    CommitEntry, CommitResponse, CommitResult, ListCachesResponse, RemovePathResponse, SessionResponse,
    StatusResponse,
};
use dormer_api::{
    CacheConfig, CreateCacheRequest, ErrorBody, ErrorName, GetMissingPathsRequest, GetMissingPathsResponse,
    Keypair, NarInfoForm, Permission, Permissions, RetentionPeriod, Secret, TokenClaims, UploadPathNarInfo,
    UploadPathResult, UploadPathResultKind, headers,
};
use dormer_nix::StoreDir;
use serde::Serialize;
use serde::de::DeserializeOwned;

const HASH: &str = "1k8c1hiysz6aaks2mpfc5k7xbbjpw5z5";

/// Reads `json`, and checks that writing the value gives `json` again, byte for byte.
fn both_ways<T: Serialize + DeserializeOwned>(json: &str) -> T {
    let value: T = serde_json::from_str(json).unwrap_or_else(|error| panic!("{error}: {json}"));
    assert_eq!(serde_json::to_string(&value).unwrap(), json);
    value
}

#[test]
fn cache_config_answers_read_and_write_as_attic_writes_them() {
    let config: CacheConfig = both_ways(concat!(
        r#"{"substituter_endpoint":"http://localhost:8080/main","api_endpoint":"http://localhost:8080/","#,
        r#""public_key":"main:4L2NxGVZuyLqyLvrWMcAnGPPXWuK0e4fzHHZZ7zoVfM=","is_public":false,"store_dir":"/nix/store","#,
        r#""priority":41,"upstream_cache_key_names":["cache.nixos.org-1"],"retention_period":"Global"}"#
    ));
    assert_eq!(config.retention_period, Some(RetentionPeriod::Global));
    assert_eq!(config.store_dir, Some(StoreDir::default()));
    assert_eq!(config.keypair, None);
    assert!(!config.is_empty_patch());
}

#[test]
fn patches_hold_only_what_changes() {
    let patch: CacheConfig = both_ways("{}");
    assert!(patch.is_empty_patch());
    let patch: CacheConfig = both_ways(r#"{"is_public":true}"#);
    assert_eq!(patch, CacheConfig { is_public: Some(true), ..CacheConfig::default() });
    let patch: CacheConfig = both_ways(r#"{"retention_period":{"Period":7776000}}"#);
    assert_eq!(patch.retention_period, Some(RetentionPeriod::Period(7_776_000)));
    let patch: CacheConfig =
        both_ways(r#"{"keypair":"Generate","priority":-1,"upstream_cache_key_names":[]}"#);
    assert_eq!(patch.keypair, Some(Keypair::Generate));
    // What only the server fills does not make a patch.
    assert!(both_ways::<CacheConfig>(r#"{"public_key":"a:b"}"#).is_empty_patch());
    // Explicit nulls, as other JSON writers send them, mean absent.
    let patch: CacheConfig = serde_json::from_str(r#"{"is_public":null,"priority":3}"#).unwrap();
    assert_eq!(patch, CacheConfig { priority: Some(3), ..CacheConfig::default() });
}

#[test]
fn malformed_settings_are_refused() {
    for json in [
        r#"{"retention_period":"Local"}"#,
        r#"{"retention_period":{"Period":-1}}"#,
        r#"{"retention_period":{"Period":4294967296}}"#,
        r#"{"retention_period":{"Global":null,"Period":1}}"#,
        r#"{"store_dir":"nix/store"}"#,
        r#"{"store_dir":"/nix/../store"}"#,
        r#"{"priority":1.5}"#,
        r#"{"is_public":1}"#,
        r#"{"keypair":"Make"}"#,
        "7",
        "[]1",
    ] {
        assert!(serde_json::from_str::<CacheConfig>(json).is_err(), "{json}");
    }
}

#[test]
fn create_requests_name_a_key_or_ask_for_one() {
    let request: CreateCacheRequest = both_ways(concat!(
        r#"{"keypair":"Generate","is_public":false,"store_dir":"/nix/store","priority":41,"#,
        r#""upstream_cache_key_names":["cache.nixos.org-1"]}"#
    ));
    assert_eq!(request.keypair, Keypair::Generate);
    let request: CreateCacheRequest = both_ways(concat!(
        r#"{"keypair":{"Keypair":"main:c2VjcmV0"},"is_public":true,"store_dir":"/nix/store","priority":30,"#,
        r#""upstream_cache_key_names":[]}"#
    ));
    assert_eq!(request.keypair, Keypair::Keypair(Secret::new("main:c2VjcmV0")));
    assert!(!format!("{request:?}").contains("c2VjcmV0"));
    assert!(
        serde_json::from_str::<CreateCacheRequest>(r#"{"keypair":"Generate","is_public":true}"#).is_err()
    );
}

#[test]
fn missing_path_questions_and_answers() {
    let request: GetMissingPathsRequest = both_ways(&format!(
        r#"{{"cache":"main","store_path_hashes":["{HASH}","00000000000000000000000000000000"]}}"#
    ));
    assert_eq!(request.cache.as_str(), "main");
    assert_eq!(request.store_path_hashes[0].to_string(), HASH);
    let answer: GetMissingPathsResponse = both_ways(&format!(r#"{{"missing_paths":["{HASH}"]}}"#));
    assert_eq!(answer.missing_paths.len(), 1);
    both_ways::<GetMissingPathsResponse>(r#"{"missing_paths":[]}"#);
    for json in [
        r#"{"cache":"../etc","store_path_hashes":[]}"#,
        r#"{"cache":"main","store_path_hashes":["short"]}"#,
        r#"{"cache":"main","store_path_hashes":["eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee"]}"#,
        r#"{"cache":"main"}"#,
    ] {
        assert!(serde_json::from_str::<GetMissingPathsRequest>(json).is_err(), "{json}");
    }
}

/// As Attic's client writes it: hash in hex, references as base names, unknown things as null.
fn nar_info_json() -> String {
    format!(
        concat!(
            r#"{{"cache":"main","store_path_hash":"{h}","store_path":"/nix/store/{h}-hello-2.12.1","#,
            r#""references":["{h}-hello-2.12.1","00000000000000000000000000000000-glibc"],"system":null,"#,
            r#""deriver":"11111111111111111111111111111111-hello.drv","#,
            r#""sigs":["cache.nixos.org-1:8ijECciSFzWHwwGVOIVYdp2fOIOJAfmzGHPQVwpktfTQJF6kMPPDre7UtFw3o+VqenC5P8RikKOAAfN7CvPEAg=="],"#,
            r#""ca":null,"nar_hash":"sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855","nar_size":226560}}"#
        ),
        h = HASH
    )
}

#[test]
fn upload_metadata_reads_and_writes_as_attic_writes_it() {
    let json = nar_info_json();
    let info: UploadPathNarInfo = both_ways(&json);
    assert_eq!(info, UploadPathNarInfo::parse(json.as_bytes()).unwrap());
    assert_eq!(info.encode().unwrap(), NarInfoForm::Header(json));
    let resolved = info.resolve(&StoreDir::default()).unwrap();
    assert_eq!(resolved.store_path.name(), "hello-2.12.1");
    assert_eq!(resolved.references[0].name(), "glibc");
    assert_eq!(resolved.deriver.unwrap().name(), "hello.drv");
}

#[test]
fn upload_metadata_may_omit_what_is_unknown() {
    let json = nar_info_json().replace(r#""system":null,"#, "").replace(r#""ca":null,"#, "");
    let info = UploadPathNarInfo::parse(json.as_bytes()).unwrap();
    assert_eq!((info.system, info.ca), (None, None));
    for required in ["cache", "store_path_hash", "store_path", "references", "sigs", "nar_hash", "nar_size"] {
        let json = nar_info_json().replace(&format!("\"{required}\""), "\"other\"");
        assert!(UploadPathNarInfo::parse(json.as_bytes()).is_err(), "{required}");
    }
}

#[test]
fn metadata_of_4_kib_goes_into_the_body() {
    let mut info = UploadPathNarInfo::parse(nar_info_json().as_bytes()).unwrap();
    let length = |info: &UploadPathNarInfo| serde_json::to_string(info).unwrap().len();
    info.system = Some(String::new());
    let fill = 4095 - length(&info);
    info.system = Some("x".repeat(fill));
    assert!(matches!(info.encode().unwrap(), NarInfoForm::Header(text) if text.len() == 4095));
    info.system = Some("x".repeat(fill + 1));
    assert!(matches!(info.encode().unwrap(), NarInfoForm::Preamble(bytes) if bytes.len() == 4096));
    // A header cannot hold this, however short.
    info.system = Some("é".to_owned());
    assert!(matches!(info.encode().unwrap(), NarInfoForm::Preamble(_)));
    info.system = Some("x".repeat(1024 * 1024));
    assert!(info.encode().is_err());
}

#[test]
fn preamble_sizes_are_decimal_and_bounded() {
    let parse = |text| UploadPathNarInfo::parse_preamble_size(text).map_err(drop);
    assert_eq!(parse("4096"), Ok(4096));
    assert_eq!(parse("1048576"), Ok(1_048_576));
    for text in ["1048577", "99999999999999999999999", "-1", "+1", "", " 1", "0x10", "1e3"] {
        assert_eq!(parse(text), Err(()), "{text:?}");
    }
    assert!(
        UploadPathNarInfo::parse(&vec![b' '; 1024 * 1024 + 1]).unwrap_err().to_string().contains("1048577")
    );
}

#[test]
fn metadata_that_does_not_fit_the_cache_is_refused() {
    let refused = |from: &str, to: &str| {
        let json = nar_info_json().replace(from, to);
        UploadPathNarInfo::parse(json.as_bytes()).and_then(|info| info.resolve(&StoreDir::default())).is_err()
    };
    assert!(refused("/nix/store/", "/gnu/store/"));
    assert!(refused("/nix/store/", "/nix/store/../"));
    assert!(refused("/nix/store/", ""));
    assert!(refused(
        &format!("\"store_path_hash\":\"{HASH}\""),
        "\"store_path_hash\":\"00000000000000000000000000000000\""
    ));
    assert!(refused("-glibc", "-gl/ibc"));
    assert!(refused("-hello.drv", "-"));
    assert!(!refused("\"11111111111111111111111111111111-hello.drv\"", "\"unknown-deriver\""));
    assert!(!refused(
        "\"00000000000000000000000000000000-glibc\"",
        "\"/nix/store/00000000000000000000000000000000-glibc\""
    ));
}

#[test]
fn upload_answers() {
    let answer: UploadPathResult =
        both_ways(r#"{"kind":"Uploaded","file_size":1234,"frac_deduplicated":0.25}"#);
    assert_eq!(answer.kind, UploadPathResultKind::Uploaded);
    let answer: UploadPathResult = both_ways(r#"{"kind":"Deduplicated"}"#);
    assert_eq!((answer.kind, answer.file_size), (UploadPathResultKind::Deduplicated, None));
    let answer: UploadPathResult =
        serde_json::from_str(r#"{"kind":"Teleported","file_size":null,"more":1}"#).unwrap();
    assert_eq!((answer.kind, answer.file_size), (UploadPathResultKind::Unknown, None));
}

#[test]
fn error_bodies_carry_attics_names_and_codes() {
    let body: ErrorBody =
        both_ways(r#"{"code":404,"error":"NoSuchObject","message":"the requested object does not exist"}"#);
    assert_eq!(body.name(), Some(ErrorName::NoSuchObject));
    let table = [
        ("NotFound", 404),
        ("Unauthorized", 401),
        ("NoSuchCache", 404),
        ("NoSuchObject", 404),
        ("AccessError", 403),
        ("CacheAlreadyExists", 400),
        ("RequestError", 400),
        ("InvalidCompressionType", 400),
        ("IncompleteNar", 503),
        ("InternalServerError", 500),
        ("TooManyRequests", 429),
        ("TooManySessions", 429),
        ("ServiceUnavailable", 503),
    ];
    assert_eq!(table.len(), ErrorName::ALL.len());
    for (name, code) in table {
        let body = ErrorBody::new(ErrorName::from_wire(name).unwrap(), "m");
        assert_eq!(
            serde_json::to_string(&body).unwrap(),
            format!(r#"{{"code":{code},"error":"{name}","message":"m"}}"#)
        );
    }
    assert_eq!(both_ways::<ErrorBody>(r#"{"code":418,"error":"Teapot","message":""}"#).name(), None);
}

#[test]
fn a_token_of_make_token_reads_and_writes() {
    let json = concat!(
        r#"{"sub":"alice","exp":1763800000,"nbf":1700000000,"iss":"lab","aud":["dormer"],"#,
        r#""https://jwt.attic.rs/v1":{"caches":{"team-*":{"r":1,"w":1,"d":1,"cc":1,"cr":1,"cq":1,"cd":1},"main":{"r":1}}}}"#
    );
    let claims: TokenClaims = both_ways(json);
    assert_eq!(claims.sub.as_deref(), Some("alice"));
    assert_eq!(claims.permissions_for(&"team-a".parse().unwrap()), Permissions::ALL);
    assert_eq!(claims.permissions_for(&"main".parse().unwrap()), Permissions::NONE.with(Permission::Pull));
    assert_eq!(claims.permissions_for(&"other".parse().unwrap()), Permissions::NONE);
}

#[test]
fn header_names_are_attics() {
    assert_eq!(headers::NAR_INFO, "X-Attic-Nar-Info".to_lowercase());
    assert_eq!(headers::NAR_INFO_PREAMBLE_SIZE, "X-Attic-Nar-Info-Preamble-Size".to_lowercase());
    assert_eq!(headers::CACHE_VISIBILITY, "X-Attic-Cache-Visibility".to_lowercase());
}

#[test]
fn a_session_says_what_it_takes_and_a_commit_what_became_of_each_path() {
    let session: SessionResponse = both_ways(concat!(
        r#"{"format":1,"store_dir":"/nix/store","chunk_min":32768,"chunk_avg":131072,"chunk_max":524288,"level":6,"#,
        r#""part_bytes_max":8388608,"part_chunks_max":4096,"missing_chunks_max":65536,"commit_bytes_max":25165824,"#,
        r#""commit_paths_max":512,"ends_at":1700000000}"#
    ));
    assert_eq!((session.format, session.level, session.ends_at), (1, 6, 1_700_000_000));
    let commit: CommitResponse = both_ways(concat!(
        r#"{"results":[{"state":"committed","kind":"Uploaded","file_size":1234},{"state":"verifying"},{"state":"waiting"},"#,
        r#"{"state":"missing","chunks":[0,7]},"#,
        r#"{"state":"failed","error":{"code":400,"error":"RequestError","message":"no"}}]}"#
    ));
    assert_eq!(commit.results.len(), 5);
    assert_eq!(commit.results[3], CommitResult::Missing { chunks: vec![0, 7] });
    // A later server may say more.
    let later = r#"{"results":[{"state":"verifying","seconds":5},{"state":"queued","behind":[7]}],"more":1}"#;
    let later: CommitResponse = serde_json::from_str(later).unwrap();
    assert_eq!(later.results, [CommitResult::Verifying, CommitResult::Unknown]);
}

/// Lengths are 32 bits, lowest byte first; the entries follow each other.
#[test]
fn the_body_of_a_commit_has_this_form() {
    let body = b"\x02\0\0\0{}\x03\0\0\0abc\x01\0\0\x007\0\0\0\0";
    let entries = [CommitEntry { info: b"{}", manifest: b"abc" }, CommitEntry { info: b"7", manifest: b"" }];
    let mut written = Vec::new();
    for entry in &entries {
        entry.encode_to(&mut written).unwrap();
    }
    assert_eq!(written, body);
    assert_eq!(CommitEntry::decode_all(body, 2).unwrap(), entries);
}

#[test]
fn version_2_lists_caches_and_removes_paths() {
    let list: ListCachesResponse = both_ways(concat!(
        r#"{"caches":[{"name":"main","is_public":true,"store_dir":"/nix/store","priority":41,"#,
        r#""upstream_cache_key_names":["cache.nixos.org-1"],"retention_period":{"Period":60},"public_keys":["main:AAAA"]}]}"#
    ));
    assert_eq!((list.caches[0].name.as_str(), list.next), ("main", None));
    let page: ListCachesResponse = both_ways(r#"{"caches":[],"next":"main"}"#);
    assert_eq!(dormer_api::routes::v2_caches(page.next.as_ref()), "/_api/v2/caches?after=main");
    assert!(both_ways::<RemovePathResponse>(r#"{"removed":true}"#).removed);
    assert_eq!(both_ways::<RemovePathResponse>(r#"{"removed":false,"purging":true}"#).purging, Some(true));
    assert!(both_ways::<RemovePathResponse>(r#"{"removed":false,"removed_log":true}"#).removed_log);
}

#[test]
fn version_2_tells_what_a_server_does() {
    let status: StatusResponse = both_ways(concat!(
        r#"{"process":"process 12 on lab","version":"0.1.0","started_at":1,"now":2,"#,
        r#""requests":{"answered":9,"failed":1,"refused":0,"in_flight":2,"connections":3,"received_bytes":4,"sent_bytes":5},"#,
        r#""reads":{"narinfos":6,"missing":7,"nars":8},"pushes":{"nars":1,"nar_bytes":2,"new_bytes":3,"uploading":4},"#,
        r#""queues":[{"name":"uploads","waiting":1},{"name":"read_memory","waiting":0,"in_use":5,"limit":6}],"#,
        r#""jobs":[{"id":7,"kind":"delete-cache","cache":"main","rows_done":4096,"created_at":1,"failures":0}],"#,
        r#""more_jobs":false,"targets":[{"name":"edge","lag_seconds":3,"published":10,"pending":2,"error":"no"}]}"#
    ));
    assert_eq!((status.not_ready, status.jobs[0].holder.as_deref()), (None, None));
    let unready = r#""now":2,"not_ready":"the database does not answer""#;
    let json = serde_json::to_string(&StatusResponse { not_ready: None, ..status }).unwrap();
    let status = both_ways::<StatusResponse>(&json.replace(r#""now":2"#, unready));
    assert_eq!((status.not_ready.is_some(), status.job_counts), (true, None));
    let counts = r#""more_jobs":true,"job_counts":{"open":30,"running":2,"failing":1}"#;
    let status = both_ways::<StatusResponse>(&json.replace(r#""more_jobs":false"#, counts));
    assert_eq!(status.job_counts.map(|of| [of.open, of.running, of.failing]), Some([30, 2, 1]));
}

/// Servers and readers of the status have versions of their own.
#[test]
fn a_list_that_the_database_did_not_name_is_no_empty_list() {
    let answer = |not_ready: &str, jobs: &str, more: &str| {
        format!(
            r#"{{"process":"p","version":"0.1.0","started_at":1,"now":2,{not_ready}"requests":{{"answered":9,"failed":1,"refused":0,"in_flight":2,"connections":3,"received_bytes":4,"sent_bytes":5}},"reads":{{"narinfos":6,"missing":7,"nars":8}},"pushes":{{"nars":1,"nar_bytes":2,"new_bytes":3,"uploading":4}},"queues":[],"jobs":[{jobs}],{more}"#
        )
    };
    let (ready, unready) = ("", r#""not_ready":"the object store does not answer","#);
    let job = r#"{"id":7,"kind":"scrub","rows_done":1,"created_at":1,"failures":0}"#;
    let known = |json: &str| {
        let status = both_ways::<StatusResponse>(json);
        (status.known_jobs().map(<[_]>::len), status.known_targets().map(<[_]>::len))
    };
    // An earlier server does not say so: what it could not ask for is unknown.
    let earlier = r#""more_jobs":false,"targets":[]}"#;
    assert_eq!(known(&answer(ready, "", earlier)), (Some(0), Some(0)));
    assert_eq!(known(&answer(unready, "", earlier)), (None, None));
    assert_eq!(known(&answer(unready, job, earlier)), (Some(1), None));
    // This one does, whether it is ready or not.
    let says = |jobs: bool, targets: bool| {
        format!(r#""jobs_known":{jobs},"more_jobs":false,"targets":[],"targets_known":{targets}}}"#)
    };
    assert_eq!(known(&answer(ready, "", &says(true, false))), (Some(0), None));
    assert_eq!(known(&answer(unready, "", &says(true, true))), (Some(0), Some(0)));
    assert_eq!(known(&answer(unready, "", &says(false, false))), (None, None));
    // An earlier reader requires both lists, and passes over what it does not know.
    let now: serde_json::Value = serde_json::from_str(&answer(unready, "", &says(false, false))).unwrap();
    assert!(now["jobs"].is_array() && now["targets"].is_array() && now["more_jobs"].is_boolean());
}
