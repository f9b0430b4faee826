//! Attic's API, as its clients speak it.

use dormer_api::headers::{CELLER_NAR_INFO, CELLER_NAR_INFO_PREAMBLE_SIZE, NAR_INFO, NAR_INFO_PREAMBLE_SIZE};
use dormer_api::{
    CacheConfig, CacheName, CreateCacheRequest, GetMissingPathsRequest, GetMissingPathsResponse, Keypair,
    Permission, Quota, RetentionPeriod, Secret, TokenClaims, UploadPathNarInfo, UploadPathResult,
    UploadPathResultKind,
};
use dormer_engine::{CreateCache, Deduplication, IngestRequest, Ingested, KeyChange, UpdateCache};
use dormer_index::{Cache, CacheVisibility, CommitOutcome, Object};
use dormer_nix::{NarInfo, SecretKey};
use http::{Response, StatusCode};

use crate::app::{App, BufferShare};
use crate::body::{self, Body};
use crate::body_memory::{COPIES, LAST_RESORT_TIMEOUT};
use crate::call::Call;
use crate::codec::Compression;
use crate::failure::Failure;
use crate::handlers::checks::{
    bad_request, check_fields, check_key_names, check_signatures, log_kept, retention_period, store_dir,
};
use crate::handlers::small_body::{self, Buffered};
use crate::request_body::{BodyError, RequestBody};

/// A cache's settings, for clients that pull from it.
pub(crate) async fn show_cache(app: &App, call: &Call, name: &CacheName) -> Result<Response<Body>, Failure> {
    let cache = app.open_current_cache(call, name, Permission::Pull).await?;
    let settings = &app.settings;
    let api_endpoint =
        settings.api_endpoint.clone().unwrap_or_else(|| call.address(&settings.trusted_proxies));
    let substituters = settings.substituter_endpoint.as_ref().unwrap_or(&api_endpoint);
    let config = CacheConfig {
        substituter_endpoint: Some(format!("{substituters}{name}")),
        api_endpoint: Some(api_endpoint),
        // The newest key: each narinfo carries a signature of every active key, and the newest key
        // retires last.
        public_key: cache.keys.iter().rev().find(|key| key.active).map(|key| key.public_key.clone()),
        is_public: Some(cache.is_public),
        store_dir: Some(store_dir(&cache)?),
        priority: Some(cache.priority),
        upstream_cache_key_names: Some(cache.upstream_cache_key_names.clone()),
        retention_period: Some(retention_period(&cache)),
        quota: cache.quota_bytes.map(Quota::Bytes),
        keep_latest: cache.keep_latest,
        allow_replacement: Some(cache.allow_replacement),
        keypair: None,
    };
    Ok(body::json(StatusCode::OK, &config))
}

/// Creates a cache.
pub(crate) async fn create_cache(
    app: &App,
    call: &Call,
    body: &mut RequestBody,
    name: &CacheName,
) -> Result<Response<Body>, Failure> {
    // Before anything is looked up: the answer must not depend on whether the cache exists.
    let permissions = app.permissions(call, name);
    if permissions.is_empty() {
        return Err(Failure::Unauthorized);
    }
    if !permissions.allows(Permission::CreateCache) {
        return Err(Failure::Forbidden(Permission::CreateCache));
    }
    let Buffered::<CreateCacheRequest> { value: request, memory: _memory } =
        small_body::read_json(app, call, body).await?;
    let secret_key = match &request.keypair {
        Keypair::Generate => None,
        Keypair::Keypair(secret) => Some(parse_secret_key(secret)?),
    };
    check_key_names(&request.upstream_cache_key_names)?;
    let new = CreateCache {
        name: name.to_string(),
        is_public: request.is_public,
        store_dir: request.store_dir.to_string(),
        priority: request.priority,
        upstream_cache_key_names: request.upstream_cache_key_names,
        secret_key,
        allow_replacement: request.allow_replacement,
    };
    app.engine.create_cache(new).await?;
    tracing::info!(cache.name = %name, "created a cache");
    Ok(body::empty())
}

/// Changes any subset of a cache's settings; each needs its own permission.
pub(crate) async fn configure_cache(
    app: &App,
    call: &Call,
    body: &mut RequestBody,
    name: &CacheName,
) -> Result<Response<Body>, Failure> {
    let (cache, permissions) = app.open_cache_to_configure(call, name).await?;
    let config = [Permission::ConfigureCache, Permission::ConfigureCacheRetention];
    if !config.iter().any(|one| permissions.allows(*one)) {
        return Err(Failure::Forbidden(Permission::ConfigureCache));
    }
    let Buffered::<CacheConfig> { value: patch, memory: _memory } =
        small_body::read_json(app, call, body).await?;
    if patch.is_empty_patch() {
        return Err(Failure::BadRequest("no field was set that can be changed".to_owned()));
    }
    let without_retention =
        CacheConfig { retention_period: None, quota: None, keep_latest: None, ..patch.clone() };
    let changes_only_retention = without_retention.is_empty_patch();
    if !changes_only_retention && !permissions.allows(Permission::ConfigureCache) {
        return Err(Failure::Forbidden(Permission::ConfigureCache));
    }
    if patch.changes_retention() && !permissions.allows(Permission::ConfigureCacheRetention) {
        return Err(Failure::Forbidden(Permission::ConfigureCacheRetention));
    }
    let new_key = match &patch.keypair {
        None => None,
        Some(Keypair::Generate) => Some(KeyChange::Generate),
        Some(Keypair::Keypair(secret)) => Some(KeyChange::Given(Box::new(parse_secret_key(secret)?))),
    };
    check_key_names(patch.upstream_cache_key_names.as_deref().unwrap_or_default())?;
    let update = UpdateCache {
        is_public: patch.is_public,
        store_dir: patch.store_dir.map(|store_dir| store_dir.to_string()),
        priority: patch.priority,
        upstream_cache_key_names: patch.upstream_cache_key_names,
        retention_seconds: patch.retention_period.map(|period| match period {
            RetentionPeriod::Global => None,
            RetentionPeriod::Period(seconds) => Some(i64::from(seconds)),
        }),
        quota_bytes: patch.quota.map(|quota| match quota {
            Quota::Global => None,
            Quota::Bytes(bytes) => Some(bytes),
        }),
        keep_latest: patch.keep_latest.map(|count| Some(count).filter(|count| *count > 0)),
        new_key,
        allow_replacement: patch.allow_replacement,
    };
    app.engine.update_cache(&cache, update).await?;
    tracing::info!(cache.name = %name, "changed a cache's settings");
    Ok(body::empty())
}

/// The error says nothing of the key.
fn parse_secret_key(secret: &Secret) -> Result<SecretKey, Failure> {
    secret.expose().parse().map_err(bad_request)
}

/// Destroys a cache.
pub(crate) async fn destroy_cache(
    app: &App,
    call: &Call,
    name: &CacheName,
) -> Result<Response<Body>, Failure> {
    let cache = app.open_current_cache(call, name, Permission::DestroyCache).await?;
    let claims = app.claims(call);
    let subject = claims.as_ref().and_then(|claims| claims.sub.as_deref());
    app.engine.delete_cache(&cache, subject).await?;
    tracing::info!(cache.name = %name, "destroyed a cache");
    Ok(body::empty())
}

/// Tells which of these paths the cache lacks.
pub(crate) async fn get_missing_paths(
    app: &App,
    call: &Call,
    body: &mut RequestBody,
) -> Result<Response<Body>, Failure> {
    app.require_push_somewhere(call)?;
    let Buffered::<GetMissingPathsRequest> { value: request, memory: _memory } =
        small_body::read_json(app, call, body).await?;
    let cache = app.open_cache(call, &request.cache, Permission::Push).await?;
    let missing_paths = app.engine.missing_paths(&cache, &request.store_path_hashes).await?;
    Ok(body::json(StatusCode::OK, &GetMissingPathsResponse { missing_paths }))
}

/// Takes a store path: its metadata in a header or before the NAR, then the uncompressed NAR.
pub(crate) async fn upload_path(
    app: &App,
    call: &Call,
    body: &mut RequestBody,
) -> Result<Response<Body>, Failure> {
    app.require_push_somewhere(call)?;
    if small_body::content_encoding(call)? != Compression::None {
        return Err(Failure::ContentEncoding("upload-path takes the NAR as it is".to_owned()));
    }
    let _turn = app.admit_upload(call, body).await?;
    let mut upload = StorePathUpload::begin(app, call, body).await?;
    let info = &upload.info;
    let cache = app.open_cache(call, &info.cache, Permission::Push).await?;
    let object = object(&cache, info)?;
    let request = IngestRequest {
        store_dir: cache.store_dir.clone(),
        expected: Some((info.nar_hash, info.nar_size)),
        // The metadata lives as long as the upload.
        extra_memory_bytes: upload.metadata_bytes,
    };
    let (mut ingest, _share) = app.begin_ingest(call, request, upload.memory.as_ref()).await?;
    upload.memory = None;
    while let Some(bytes) = upload.next().await? {
        ingest.write(&bytes).await?;
    }
    let ingested = ingest.finish().await?;
    let mut result = describe(app, call, &ingested).await?;
    let path = object.path.clone();
    let (size_bytes, new_bytes) = (ingested.nar_size, ingested.new_chunk_bytes);
    let nar_hash = ingested.nar_hash;
    result.kept = app.engine.commit_object(&cache, ingested, object).await? == CommitOutcome::Kept;
    if result.kept {
        log_kept(&cache, &path, &nar_hash);
    } else {
        tracing::info!(cache.name = cache.name, %path, size_bytes, new_bytes, "took a store path");
    }
    Ok(body::json(StatusCode::OK, &result))
}

/// The body of `upload-path`: metadata, then the NAR.
struct StorePathUpload<'a> {
    info: UploadPathNarInfo,
    /// Memory that the metadata takes, in bytes.
    metadata_bytes: u64,
    /// The share of that memory, until the upload has its own.
    memory: Option<BufferShare>,
    /// The bytes of the NAR that came in the same piece as the end of the metadata.
    first: Option<bytes::Bytes>,
    body: &'a mut RequestBody,
}

impl<'a> StorePathUpload<'a> {
    async fn begin(app: &'a App, call: &Call, body: &'a mut RequestBody) -> Result<Self, Failure> {
        let metadata_bytes = |json_bytes: usize| COPIES * json_bytes as u64;
        let max = app.settings.nar_info_preamble_bytes_max;
        let too_long = || Failure::TooLong { what: "the metadata", max: max as u64 };
        let either = |ours, of_celler| call.headers().get(ours).or_else(|| call.headers().get(of_celler));
        if let Some(json) = either(NAR_INFO, CELLER_NAR_INFO) {
            if json.len() > max {
                return Err(too_long());
            }
            let info = UploadPathNarInfo::parse(json.as_bytes()).map_err(bad_request)?;
            let metadata_bytes = metadata_bytes(json.len());
            return Ok(Self { info, metadata_bytes, memory: None, first: None, body });
        }
        let Some(size) = either(NAR_INFO_PREAMBLE_SIZE, CELLER_NAR_INFO_PREAMBLE_SIZE) else {
            return Err(Failure::BadRequest(format!(
                "neither {NAR_INFO} nor {NAR_INFO_PREAMBLE_SIZE} is given"
            )));
        };
        let size =
            UploadPathNarInfo::parse_preamble_size(size.to_str().unwrap_or("?")).map_err(
                |error| match error {
                    dormer_api::Error::NarInfoTooLarge { .. } => too_long(),
                    error => bad_request(error),
                },
            )?;
        if size > max {
            return Err(too_long());
        }
        let mut memory = app.begin_buffer(call);
        let all = body.hurry(small_body::WHOLE_BODY_TIMEOUT);
        let mut json = Vec::new();
        let mut first = None;
        while json.len() < size {
            let Some(mut piece) = body.next().await? else {
                return Err(Failure::BadRequest(format!(
                    "the body ends after {} of {size} bytes of metadata",
                    json.len()
                )));
            };
            let rest = piece.split_off(piece.len().min(size - json.len()));
            if memory.grow(piece.len() as u64).await? {
                body.hurry(LAST_RESORT_TIMEOUT);
            }
            json.extend_from_slice(&piece);
            first = Some(rest).filter(|rest| !rest.is_empty());
        }
        body.allow_until(all);
        let metadata_bytes = metadata_bytes(size);
        memory.grow(metadata_bytes - size as u64).await?;
        let info = UploadPathNarInfo::parse(&json).map_err(bad_request)?;
        Ok(Self { info, metadata_bytes, memory: Some(memory), first, body })
    }

    async fn next(&mut self) -> Result<Option<bytes::Bytes>, BodyError> {
        match self.first.take() {
            Some(bytes) => Ok(Some(bytes)),
            None => self.body.next().await,
        }
    }
}

/// The object that the metadata describes, if a narinfo can hold all of it.
pub(crate) fn object(cache: &Cache, info: &UploadPathNarInfo) -> Result<Object, Failure> {
    let resolved = info.resolve(&store_dir(cache)?).map_err(bad_request)?;
    let narinfo = NarInfo {
        store_path: resolved.store_path,
        url: "nar/x".to_owned(),
        compression: "none".to_owned(),
        file_hash: None,
        file_size: None,
        nar_hash: info.nar_hash,
        nar_size: info.nar_size,
        references: resolved.references,
        deriver: resolved.deriver,
        // Clients leave out unknown fields, or send an empty text.
        system: info.system.clone().filter(|text| !text.is_empty()),
        ca: info.ca.clone().filter(|text| !text.is_empty()),
        sigs: info.sigs.clone(),
        extra: info.extra.clone(),
    };
    narinfo.check().map_err(bad_request)?;
    check_fields(&narinfo)?;
    check_signatures(&narinfo.sigs)?;
    Ok(Object {
        path: narinfo.store_path,
        references: narinfo.references,
        deriver: narinfo.deriver.map(|deriver| deriver.to_string()),
        ca: narinfo.ca,
        sigs: narinfo.sigs,
        system: narinfo.system,
        extra: narinfo.extra,
    })
}

/// The answer about deduplication. It tells a tenant nothing about the paths of other tenants.
async fn describe(app: &App, call: &Call, ingested: &Ingested) -> Result<UploadPathResult, Failure> {
    let claims = app.claims(call);
    let deduplication = if claims.as_deref().is_some_and(may_pull_everything) {
        ingested.deduplication()
    } else {
        app.engine.deduplication(ingested, |cache| may_read(claims.as_deref(), cache)).await?
    };
    let (kind, frac_deduplicated) = match deduplication {
        Deduplication::Whole => (UploadPathResultKind::Deduplicated, Some(1.0)),
        Deduplication::Part(part) => (UploadPathResultKind::Uploaded, Some(part)),
        Deduplication::Untold => (UploadPathResultKind::Uploaded, None),
    };
    Ok(UploadPathResult { kind, file_size: Some(ingested.file_size), frac_deduplicated, kept: false })
}

/// Whether a caller with these claims may read a cache.
pub(crate) fn may_read(claims: Option<&TokenClaims>, cache: &CacheVisibility) -> bool {
    let may_pull = |claims: &TokenClaims| {
        cache.name.parse().is_ok_and(|name| claims.permissions_for(&name).allows(Permission::Pull))
    };
    cache.is_public || claims.is_some_and(may_pull)
}

/// Whether the token reads every cache that exists, existed or will exist. Then nothing needs to be
/// looked up.
pub(crate) fn may_pull_everything(claims: &TokenClaims) -> bool {
    may_everywhere(claims, Permission::Pull)
}

/// Whether the token has a permission on every cache that exists, existed or will exist.
pub(crate) fn may_everywhere(claims: &TokenClaims, permission: Permission) -> bool {
    let caches = &claims.access.caches;
    caches.iter().any(|(pattern, _)| pattern.as_str() == "*")
        && caches.iter().all(|(_, permissions)| permissions.allows(permission))
}
