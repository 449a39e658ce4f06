//! Large files: in parts that belong to an upload (0.65), or in chunks that belong to a hash (before).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use axum::body::Body;
use axum::extract::{Path, Query, State};
use bytes::Bytes;
use futures_util::StreamExt;
use serde::Deserialize;
use serde_json::json;

use super::App;
use super::answers::{Answer, Refusal, nothing, random_id, success};
use super::repository::Repository;
use super::routes::{Repo, from_json, on_disk, staged_path};
use super::versions::{Content, Draft, write_whole};
use crate::hash::ContentHash;
use crate::path::RepoPath;

/// The largest file an upload takes: 1 TiB.
const MAX_BYTES: u64 = 1 << 40;

/// Uploads under way. They live in memory: a server that starts again knows none of them.
#[derive(Debug)]
pub(super) struct Uploads {
    part_bytes: AtomicU64,
    window: AtomicU64,
    open: Mutex<BTreeMap<String, Arc<Upload>>>,
}

impl Default for Uploads {
    /// What a real server says.
    fn default() -> Self {
        Self { part_bytes: AtomicU64::new(10 * 1024 * 1024), window: AtomicU64::new(102), open: Mutex::default() }
    }
}

impl Uploads {
    /// For uploads begun from now on.
    pub(super) fn set_parts(&self, part_bytes: u64, window: u64) {
        self.part_bytes.store(part_bytes.max(1), Ordering::Relaxed);
        self.window.store(window.max(1), Ordering::Relaxed);
    }

    /// The map is only ever added to or taken from.
    fn open(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Upload>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One file on its way.
#[derive(Debug)]
struct Upload {
    id: String,
    hash: ContentHash,
    size: u64,
    part_bytes: u64,
    parts: u64,
    window: u64,
    destination: Option<(String, RepoPath)>,
    draft: Draft,
    progress: Mutex<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    /// Parts that are being written.
    arriving: BTreeSet<u64>,
    /// Parts that are written.
    stored: BTreeSet<u64>,
    /// All parts are written, and the file is being verified, or was.
    ended: bool,
}

impl Progress {
    /// The first part that is not yet there.
    fn first_missing(&self) -> u64 {
        let mut first = 1;
        for part in &self.stored {
            if *part != first {
                break;
            }
            first += 1;
        }
        first
    }
}

impl Upload {
    /// Lets a part in, or says why not. `false`: it is there already.
    fn admit(&self, part: u64) -> Result<bool, Refusal> {
        if part == 0 || part > self.parts {
            return Err(self.refused(format!("part {part} is not between 1 and {}", self.parts)));
        }
        let mut progress = self.progress();
        if progress.ended {
            return Err(Refusal::part_deferred(format!("part {part}: the upload is completing")));
        }
        if progress.stored.contains(&part) {
            return Ok(false);
        }
        let first = progress.first_missing();
        if part - first >= self.window {
            let why = format!("the upload accepts {} parts at once, starting at part {first}", self.window);
            return Err(Refusal::part_deferred(format!("part {part}: {why}")));
        }
        if !progress.arriving.insert(part) {
            return Err(Refusal::part_deferred(format!("part {part}: an earlier copy of it is still being stored")));
        }
        Ok(true)
    }

    /// The length this part must have.
    fn length(&self, part: u64) -> u64 {
        if part == self.parts { self.size - (part - 1) * self.part_bytes } else { self.part_bytes }
    }

    fn refused(&self, reason: impl std::fmt::Display) -> Refusal {
        Refusal::bad_upload(format!("{reason} (upload {})", self.id))
    }

    /// Sets are changed in one step each.
    fn progress(&self) -> MutexGuard<'_, Progress> {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A part that was let in; when dropped before it is stored, it may be sent again.
struct Arriving {
    upload: Arc<Upload>,
    part: u64,
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.upload.progress().arriving.remove(&self.part);
    }
}

#[derive(Deserialize)]
struct Begin {
    hash: String,
    size: u64,
    destination: Option<Destination>,
}

#[derive(Deserialize)]
struct Destination {
    workspace_id: String,
    path: String,
}

/// `POST versions/uploads`: stages content that is here already, or begins to receive it.
pub(super) async fn begin(State(app): State<Arc<App>>, Path(repo): Path<Repo>, body: Bytes) -> Answer {
    on_disk(move || {
        let repository = repo.find(&app)?;
        let begin: Begin = from_json(&body)?;
        let destination = match &begin.destination {
            Some(Destination { workspace_id, path }) => Some((workspace_id.clone(), destination_path(path)?)),
            None => None,
        };
        let hash: ContentHash = begin
            .hash
            .parse()
            .map_err(|_| Refusal::bad_upload(format!("'{}' is not a version file hash", begin.hash)))?;
        if begin.size == 0 {
            return Err(Refusal::bad_upload("a file of zero bytes has no parts"));
        }
        if begin.size > MAX_BYTES {
            return Err(Refusal::bad_upload(format!("a file of {} bytes is too large", begin.size)));
        }
        if let Some((workspace, _)) = &destination {
            repository.workspace(workspace)?;
        }
        if let Some(content) = repository.versions.find(&hash) {
            stage(&repository, destination.as_ref(), content)?;
            return success("resource_found", json!({"file": "already_stored"}));
        }
        let part_bytes = app.uploads.part_bytes.load(Ordering::Relaxed);
        let draft = repository.versions.draft()?;
        draft.file.set_len(begin.size)?;
        let upload = Upload {
            id: random_id(),
            hash,
            size: begin.size,
            part_bytes,
            parts: begin.size.div_ceil(part_bytes),
            window: app.uploads.window.load(Ordering::Relaxed),
            destination,
            draft,
            progress: Mutex::default(),
        };
        let answer = json!({
            "file": "awaiting_parts",
            "upload_id": upload.id,
            "part_size": upload.part_bytes,
            "num_parts": upload.parts,
            "part_window": upload.window,
        });
        app.uploads.open().insert(upload.id.clone(), Arc::new(upload));
        success("resource_created", answer)
    })
    .await
}

fn destination_path(text: &str) -> Result<RepoPath, Refusal> {
    let path = staged_path("", text)?;
    if path.is_root() {
        return Err(Refusal::bad_request("Invalid destination path: it is empty"));
    }
    Ok(path)
}

fn stage(repository: &Repository, destination: Option<&(String, RepoPath)>, content: Content) -> Result<(), Refusal> {
    let Some((workspace, path)) = destination else {
        return Ok(());
    };
    repository
        .staging(workspace, |staging, base| Ok(staging.put(base, &repository.versions, &[(path.clone(), content)])?))
}

/// `PUT versions/uploads/{upload}/parts/{part}`.
pub(super) async fn part(
    State(app): State<Arc<App>>,
    Path(repo): Path<Repo>,
    Path(parameters): Path<BTreeMap<String, String>>,
    body: Body,
) -> Answer {
    let id = parameters.get("upload").cloned().unwrap_or_default();
    let part = parameters.get("part").and_then(|text| text.parse().ok());
    let part: u64 = part.ok_or_else(|| Refusal::bad_request("Invalid part number"))?;
    let finding = Arc::clone(&app);
    let repository = on_disk(move || repo.find(&finding)).await?;
    let upload = app.uploads.open().get(&id).cloned();
    let admitted = upload.ok_or_else(|| Refusal::no_upload(&id)).and_then(|upload| Ok((upload.admit(part)?, upload)));
    let upload = match admitted {
        Ok((true, upload)) => upload,
        other => {
            // A client that is still sending would see a broken connection instead of the answer.
            drain(body).await;
            other?;
            return success("resource_created", json!({"completed": false}));
        }
    };
    let arriving = Arriving { upload, part };
    store(&arriving, body).await?;
    on_disk(move || {
        let Arriving { upload, part } = &arriving;
        let complete = {
            let mut progress = upload.progress();
            progress.stored.insert(*part);
            progress.ended = progress.stored.len() as u64 == upload.parts;
            progress.ended
        };
        if complete {
            app.uploads.open().remove(&upload.id);
            finish(&repository, upload)?;
        }
        success("resource_created", json!({"completed": complete}))
    })
    .await
}

/// Reads a body to its end and forgets it.
pub(super) async fn drain(body: Body) {
    let mut stream = body.into_data_stream();
    while let Some(Ok(_)) = stream.next().await {}
}

/// Writes a part's bytes to their place as they arrive.
async fn store(arriving: &Arriving, body: Body) -> Result<(), Refusal> {
    let Arriving { upload, part } = arriving;
    let length = upload.length(*part);
    let start = (part - 1) * upload.part_bytes;
    let mut at = 0;
    let mut stream = body.into_data_stream();
    while let Some(bytes) = stream.next().await {
        let bytes = bytes.map_err(|error| Refusal::bad_request(error.to_string()))?;
        let next = at + bytes.len() as u64;
        if next > length {
            return Err(upload.refused(format!("part {part} is longer than {length} bytes")));
        }
        let (upload, place) = (Arc::clone(upload), start + at);
        on_disk(move || Ok(upload.draft.file.write_all_at(&bytes, place)?)).await?;
        at = next;
    }
    if at != length {
        return Err(upload.refused(format!("part {part} is {at} bytes, not {length}")));
    }
    Ok(())
}

/// Verifies the whole file, keeps it and stages it.
fn finish(repository: &Repository, upload: &Upload) -> Result<(), Refusal> {
    let (hash, size) = ContentHash::of_file(upload.hash.kind(), &upload.draft.file, || true)?;
    if hash != upload.hash {
        let why = format!("the file's {size} bytes hash to {hash}, not {}", upload.hash);
        return Err(upload.refused(why));
    }
    repository.versions.keep(&upload.draft, &hash)?;
    stage(repository, upload.destination.as_ref(), Content { hash, size })
}

/// `{hash}` in the path.
fn hash_of(parameters: &BTreeMap<String, String>) -> Result<ContentHash, Refusal> {
    let hash = parameters.get("hash").and_then(|text| text.parse().ok());
    hash.ok_or_else(|| Refusal::bad_request("not a version file hash"))
}

/// `POST versions/{hash}/create`: nothing to be done.
pub(super) async fn create(State(app): State<Arc<App>>, Path(repo): Path<Repo>) -> Answer {
    on_disk(move || {
        repo.find(&app)?;
        success("resource_found", nothing())
    })
    .await
}

/// `offset`.
#[derive(Debug, Deserialize)]
pub(super) struct At {
    #[serde(default)]
    offset: u64,
}

/// `PUT versions/{hash}/chunks?offset=`: a chunk that is there is not written again.
pub(super) async fn chunk(
    State(app): State<Arc<App>>,
    Path(repo): Path<Repo>,
    Path(parameters): Path<BTreeMap<String, String>>,
    Query(At { offset }): Query<At>,
    body: Bytes,
) -> Answer {
    on_disk(move || {
        let dir = repo.find(&app)?.chunks_dir(&hash_of(&parameters)?);
        fs::create_dir_all(&dir)?;
        let path = dir.join(offset.to_string());
        if !path.exists() {
            write_whole(&path, &body)?;
        }
        success("resource_created", nothing())
    })
    .await
}

#[derive(Deserialize)]
struct Complete {
    files: Vec<CompleteFile>,
    workspace_id: Option<String>,
}

#[derive(Deserialize)]
struct CompleteFile {
    file_name: String,
    #[serde(default)]
    dst_dir: Option<String>,
    num_chunks: usize,
}

/// `POST versions/{hash}/complete`: puts the chunks together, verifies the whole and stages it.
pub(super) async fn complete(
    State(app): State<Arc<App>>,
    Path(repo): Path<Repo>,
    Path(parameters): Path<BTreeMap<String, String>>,
    body: Bytes,
) -> Answer {
    on_disk(move || {
        let repository = repo.find(&app)?;
        let hash = hash_of(&parameters)?;
        let complete: Complete =
            serde_json::from_slice(&body).map_err(|_| Refusal::bad_body("Invalid request body"))?;
        let [file] = complete.files.as_slice() else {
            return Err(Refusal::bad_body("Expected a single file in the request"));
        };
        let content = assemble(&repository, &hash, file.num_chunks)?;
        if let Some(workspace) = complete.workspace_id {
            let path = staged_path(file.dst_dir.as_deref().unwrap_or_default(), &file.file_name)?;
            stage(&repository, Some(&(workspace, path)), content)?;
        }
        success("resource_found", nothing())
    })
    .await
}

/// Makes content of the chunks there are for `hash`, which must be `count`.
fn assemble(repository: &Repository, hash: &ContentHash, count: usize) -> Result<Content, Refusal> {
    let dir = repository.chunks_dir(hash);
    let mut chunks: Vec<u64> = Vec::new();
    if dir.exists() {
        for entry in fs::read_dir(&dir)? {
            // What is not named by an offset is a chunk that was cut off while it was written.
            chunks.extend(entry?.file_name().to_str().and_then(|name| name.parse::<u64>().ok()));
        }
    }
    if chunks.len() != count {
        let words = "Number of chunks does not match expected number of chunks";
        return Err(Refusal::bad_body(format!("{words}: {} != {count}", chunks.len())));
    }
    chunks.sort_unstable();
    let draft = repository.versions.draft()?;
    for chunk in chunks {
        io::copy(&mut fs::File::open(dir.join(chunk.to_string()))?, &mut &draft.file)?;
    }
    let (found, size) = ContentHash::of_file(hash.kind(), &draft.file, || true)?;
    if found != *hash {
        return Err(Refusal::internal(format!("the chunks hash to {found}, not {hash}")));
    }
    repository.versions.keep_anew(&draft, hash)?;
    fs::remove_dir_all(&dir)?;
    Ok(Content { hash: found, size })
}
