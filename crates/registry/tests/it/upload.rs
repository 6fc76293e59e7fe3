//! Blobs that go in chunks, and go on where they broke.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use tierce_image::{Blob, BlobSource, BlobStream, BoxError, Content, ImageSink as _};
use tierce_oci::{Descriptor, Digest, Hasher};
use tierce_registry::{Client, ClientSettings, RegistryError, Step, UploadSettings};
use tierce_testkit::{FakeRegistry, Fault, LocationStyle, Method, Offsets};

use crate::support::{bytes, client, patch, place, send, settings};

/// Bytes of a chunk in these tests.
const CHUNK: usize = 40_000;

/// A blob that counts as large.
const LARGE: usize = 500_000;

fn resuming(notes: Option<&Path>) -> Client {
    let settings = ClientSettings {
        uploads: UploadSettings {
            resume_above: 100_000,
            chunk: CHUNK as u64,
        },
        unfinished_uploads: notes.map(Path::to_owned),
        ..settings()
    };
    Client::new(settings).expect("these settings are fine")
}

fn assert_stored(registry: &FakeRegistry, bytes: &Bytes) {
    let stored = registry.blob("app", &Digest::of(bytes));
    assert_eq!(stored.as_ref(), Some(bytes), "{}", registry.log());
    assert_eq!(registry.pending_faults(), Vec::<String>::new());
}

/// The `Content-Range` of every chunk.
fn ranges(registry: &FakeRegistry) -> Vec<String> {
    let log = registry.log();
    let chunks = log.matching(&Method::PATCH, "/uploads/");
    chunks
        .records()
        .iter()
        .map(|record| {
            let range = record.header("content-range").unwrap_or_default();
            range.to_owned()
        })
        .collect()
}

#[tokio::test]
async fn a_large_blob_goes_on_in_chunks_where_its_first_body_broke() {
    let registry = FakeRegistry::start();
    let bytes = bytes(LARGE);
    registry.inject(Fault::disconnect_after_receiving(450_000).on(Method::PUT, "/uploads/"));
    send(&place(&resuming(None), &registry, "app"), &bytes, &bytes)
        .await
        .unwrap();
    assert_stored(&registry, &bytes);
    assert_eq!(ranges(&registry), ["450000-489999", "490000-499999"]);
    let log = registry.log();
    assert_eq!(log.blob_bytes_received(), LARGE as u64, "{log}");
    assert_eq!(log.count(Method::POST, "/uploads/"), 1, "{log}");
}

#[tokio::test]
async fn a_small_blob_is_begun_anew() {
    let registry = FakeRegistry::start();
    let bytes = bytes(100_000);
    registry.inject(Fault::disconnect_after_receiving(60_000).on(Method::PUT, "/uploads/"));
    send(&place(&resuming(None), &registry, "app"), &bytes, &bytes)
        .await
        .unwrap();
    assert_stored(&registry, &bytes);
    assert_eq!(ranges(&registry), Vec::<String>::new());
    assert_eq!(registry.log().count(Method::POST, "/uploads/"), 2);
}

#[tokio::test]
async fn a_broken_chunk_goes_on_where_the_registry_says() {
    let registry = FakeRegistry::start();
    let bytes = bytes(LARGE);
    registry.inject(Fault::disconnect().on(Method::PUT, "/uploads/"));
    registry.inject(
        Fault::disconnect_after_receiving(15_000)
            .on(Method::PATCH, "/uploads/")
            .nth(2),
    );
    registry.inject(Fault::lose_answer().on(Method::PATCH, "/uploads/").nth(4));
    send(&place(&resuming(None), &registry, "app"), &bytes, &bytes)
        .await
        .unwrap();
    assert_stored(&registry, &bytes);
    let ranges = ranges(&registry);
    assert_eq!(
        ranges[..5],
        [
            "0-39999",
            "40000-79999",
            "55000-79999",
            "80000-119999",
            "120000-159999"
        ]
    );
    assert_eq!(registry.log().blob_bytes_received(), LARGE as u64);
}

#[tokio::test]
async fn another_run_goes_on_with_what_one_has_left() {
    let registry = FakeRegistry::start();
    let bytes = bytes(LARGE);
    let notes = tempfile::tempdir().unwrap();
    // Once while the first body is on its way, once in the midst of the chunks.
    let always = |fault: Fault, method: Method| fault.on(method, "/uploads/").always();
    registry.inject(always(
        Fault::disconnect_after_receiving(210_000),
        Method::PUT,
    ));
    registry.inject(always(Fault::status(403), Method::PATCH));
    let client = resuming(Some(notes.path()));
    let error = send(&place(&client, &registry, "app"), &bytes, &bytes).await;
    assert!(error.unwrap_err().is_denied());
    registry.clear_faults();
    registry.inject(always(Fault::disconnect(), Method::PATCH).nth(3));
    let client = resuming(Some(notes.path()));
    let error = send(&place(&client, &registry, "app"), &bytes, &bytes).await;
    assert_eq!(error.unwrap_err().step(), Some(Step::Transfer));
    registry.clear_faults();

    let client = resuming(Some(notes.path()));
    send(&place(&client, &registry, "app"), &bytes, &bytes)
        .await
        .unwrap();
    assert_stored(&registry, &bytes);
    let log = registry.log();
    assert_eq!(log.blob_bytes_received(), LARGE as u64, "{log}");
    assert_eq!(log.count(Method::POST, "/uploads/"), 1, "{log}");
    let left = std::fs::read_dir(notes.path()).unwrap().count();
    assert_eq!(left, 0, "what is done is forgotten");
}

#[tokio::test]
async fn a_session_that_is_gone_is_begun_anew_and_one_of_another_blob_is_not_taken() {
    let notes = tempfile::tempdir().unwrap();
    let (bytes, other) = (bytes(LARGE), bytes(LARGE + 1));
    let registry = FakeRegistry::start();
    let client = resuming(Some(notes.path()));
    let place = place(&client, &registry, "app");
    let break_it = async || {
        let fault = Fault::disconnect_after_receiving(200_000).on(Method::PUT, "/uploads/");
        registry.inject(fault.always());
        registry.inject(Fault::status(403).on(Method::PATCH, "/uploads/").always());
        send(&place, &bytes, &bytes).await.unwrap_err();
        registry.clear_faults();
        registry.clear_log();
    };
    break_it().await;
    send(&place, &other, &other).await.unwrap();
    let posts = registry.log().count(Method::POST, "/uploads/");
    assert_eq!(posts, 1, "another blob has a session of its own");
    registry.clear_log();

    registry.inject(Fault::status(404).on(Method::GET, "/uploads/"));
    send(&place, &bytes, &bytes).await.unwrap();
    assert_stored(&registry, &bytes);
    let log = registry.log();
    assert_eq!(log.count(Method::POST, "/uploads/"), 1, "{log}");
    assert_eq!(log.blob_bytes_received(), LARGE as u64, "{log}");
}

#[tokio::test]
async fn a_session_with_other_bytes_is_found_out_by_the_digest() {
    let registry = FakeRegistry::start();
    let bytes = bytes(LARGE);
    let notes = tempfile::tempdir().unwrap();
    registry.inject(Fault::disconnect_after_receiving(200_000).on(Method::PUT, "/uploads/"));
    registry.inject(Fault::status(403).on(Method::PATCH, "/uploads/").always());
    let client = resuming(Some(notes.path()));
    let place = place(&client, &registry, "app");
    send(&place, &bytes, &bytes).await.unwrap_err();
    registry.clear_faults();
    // Somebody has put other bytes there, of a length that could be ours.
    let note = note(notes.path());
    let address = note["url"].as_str().unwrap();
    let address = address.strip_prefix(&registry.url()).unwrap();
    let answer = patch(&registry.host(), address, 200_000, &[0x55; 1000]);
    assert!(answer.starts_with("HTTP/1.1 202 "), "{answer}");
    registry.clear_log();
    send(&place, &bytes, &bytes).await.unwrap();
    assert_stored(&registry, &bytes);
    let ranges = ranges(&registry);
    assert_eq!(
        (&*ranges[0], &*ranges[8]),
        ("201000-240999", "0-39999"),
        "{ranges:?}"
    );
}

#[tokio::test]
async fn a_body_that_is_too_large_goes_in_chunks() {
    let registry = FakeRegistry::builder().chunk_status(201).start();
    let bytes = bytes(90_000);
    registry.inject(
        Fault::status(413)
            .with_body("<html>nginx</html>")
            .on(Method::PUT, "/uploads/"),
    );
    send(&place(&resuming(None), &registry, "app"), &bytes, &bytes)
        .await
        .unwrap();
    assert_stored(&registry, &bytes);
    assert_eq!(ranges(&registry), ["0-39999", "40000-79999", "80000-89999"]);
    for record in registry.log().matching(&Method::PATCH, "").records() {
        assert_eq!(record.header("transfer-encoding"), None);
        assert!(record.header("content-length").is_some());
    }
}

#[tokio::test]
async fn chunks_are_as_large_as_the_registry_wants_them() {
    let registry = FakeRegistry::builder().minimum_chunk(120_000).start();
    let bytes = bytes(LARGE);
    registry.inject(Fault::disconnect().on(Method::PUT, "/uploads/"));
    send(&place(&resuming(None), &registry, "app"), &bytes, &bytes)
        .await
        .unwrap();
    assert_stored(&registry, &bytes);
    assert_eq!(ranges(&registry)[0], "0-119999");
}

#[tokio::test]
async fn an_answer_to_the_last_request_that_is_lost_costs_a_question() {
    let registry = FakeRegistry::start();
    let bytes = bytes(LARGE);
    registry.inject(Fault::disconnect().on(Method::PUT, "/uploads/"));
    registry.inject(Fault::lose_answer().on(Method::PUT, "/uploads/").nth(2));
    send(&place(&resuming(None), &registry, "app"), &bytes, &bytes)
        .await
        .unwrap();
    assert_stored(&registry, &bytes);
    assert_eq!(registry.log().blob_bytes_received(), LARGE as u64);
}

#[tokio::test]
async fn chunks_of_a_spoilt_blob_become_none() {
    let registry = FakeRegistry::start();
    let promised = bytes(LARGE);
    let mut spoilt = promised.to_vec();
    spoilt[LARGE - 1] ^= 1;
    let shorter = promised.slice(..LARGE - 1);
    for content in [Bytes::from(spoilt), shorter] {
        registry.inject(Fault::disconnect().on(Method::PUT, "/uploads/"));
        let client = resuming(None);
        let error = send(&place(&client, &registry, "app"), &promised, &content).await;
        let error = error.unwrap_err();
        assert!(matches!(error, RegistryError::Source(_)), "{error:?}");
        assert_eq!(registry.blobs("app"), []);
        assert_eq!(registry.open_uploads(), 0, "it is cancelled");
    }
}

#[tokio::test]
async fn a_chunk_that_breaks_always_is_given_up_and_says_so() {
    let registry = FakeRegistry::start();
    let bytes = bytes(LARGE);
    registry.inject(Fault::disconnect().on(Method::PUT, "/uploads/"));
    registry.inject(
        Fault::status(503)
            .on(Method::PATCH, "/uploads/")
            .nth(3)
            .always(),
    );
    let client = resuming(None);
    let error = send(&place(&client, &registry, "app"), &bytes, &bytes).await;
    let error = error.unwrap_err();
    assert_eq!(error.status(), Some(503));
    assert!(
        error.to_string().contains(", after 4 attempts in "),
        "{error}"
    );
    assert_eq!(registry.blobs("app"), []);
}

/// A registry that takes every chunk and never the whole, or never the second one, is given up: what
/// was sent before is no progress.
#[tokio::test]
async fn an_upload_that_is_refused_again_and_again_is_given_up() {
    let bytes = bytes(LARGE);
    // More often than anything is tried, and not for ever, so that this test ends in any case.
    let put = vec![
        Fault::status(400)
            .on(Method::PUT, "/uploads/")
            .nth(2)
            .times(20),
    ];
    // One session has two of them.
    let every_second = (1..20).map(|number| {
        let refusal = Fault::status(400).on(Method::PATCH, "/uploads/");
        refusal.nth(2 * number)
    });
    for refusals in [put, every_second.collect()] {
        let registry = FakeRegistry::start();
        registry.inject(Fault::disconnect().on(Method::PUT, "/uploads/"));
        for refusal in refusals {
            registry.inject(refusal);
        }
        let client = resuming(None);
        let error = send(&place(&client, &registry, "app"), &bytes, &bytes).await;
        let error = error.unwrap_err();
        assert_eq!(error.status(), Some(400));
        assert!(
            error.to_string().contains(", after 4 attempts in "),
            "{error}"
        );
        assert_eq!(registry.open_uploads(), 0, "they are cancelled");
    }
}

/// Breaks an upload in its midst, with a note that says so.
async fn break_off(
    place: &tierce_registry::RepositoryClient,
    registry: &FakeRegistry,
    bytes: &Bytes,
) {
    let fault = Fault::disconnect_after_receiving(200_000).on(Method::PUT, "/uploads/");
    registry.inject(fault.always());
    registry.inject(Fault::status(403).on(Method::PATCH, "/uploads/").always());
    send(place, bytes, bytes).await.expect_err("it is refused");
    registry.clear_faults();
    registry.clear_log();
}

/// The session may be of another user, or its address a signature that has ended.
#[tokio::test]
async fn a_left_session_that_the_registry_does_not_take_is_begun_anew() {
    let bytes = bytes(LARGE);
    for (status, on_put) in [(403, false), (405, false), (500, false), (403, true)] {
        let notes = tempfile::tempdir().unwrap();
        let registry = FakeRegistry::start();
        let client = resuming(Some(notes.path()));
        let place = place(&client, &registry, "app");
        break_off(&place, &registry, &bytes).await;
        let session = note(notes.path())["url"].as_str().unwrap().to_owned();
        let session = session.rsplit_once("uploads/").unwrap().1;
        let session = session.split('?').next().unwrap();
        let refused = || Fault::status(status).on_path(session).always();
        if on_put {
            // All of it is there, says the note.
            edit_note(notes.path(), |note| note["at"] = LARGE.into());
        }
        registry.inject(refused());
        let outcome = send(&place, &bytes, &bytes).await;
        if status == 500 {
            // That might pass; when it does not, the next run is free of it.
            assert_eq!(outcome.unwrap_err().status(), Some(500));
            send(&place, &bytes, &bytes).await.unwrap();
        } else {
            outcome.unwrap();
        }
        assert_stored(&registry, &bytes);
    }
}

fn note_path(notes: &Path) -> PathBuf {
    std::fs::read_dir(notes)
        .expect("notes are kept there")
        .flatten()
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|it| it == "json"))
        .expect("an upload was written down")
}

/// What is written down of the one upload.
fn note(notes: &Path) -> serde_json::Value {
    let note = std::fs::read(note_path(notes)).expect("it can be read");
    serde_json::from_slice(&note).expect("it is JSON")
}

fn edit_note(notes: &Path, edit: impl FnOnce(&mut serde_json::Value)) {
    let mut saved = note(notes);
    edit(&mut saved);
    std::fs::write(note_path(notes), saved.to_string()).expect("it can be written");
}

/// A note is a hint: whoever wrote it, bytes go only where the registry says.
#[tokio::test]
async fn a_note_leads_nowhere_but_to_the_registry() {
    let bytes = bytes(LARGE);
    let notes = tempfile::tempdir().unwrap();
    let (registry, other) = (FakeRegistry::start(), FakeRegistry::start());
    let client = resuming(Some(notes.path()));
    let place = place(&client, &registry, "app");
    break_off(&place, &registry, &bytes).await;
    edit_note(notes.path(), |note| {
        let url = note["url"]
            .as_str()
            .unwrap()
            .replace(&registry.host(), &other.host());
        note["url"] = url.into();
    });
    send(&place, &bytes, &bytes).await.unwrap();
    assert_stored(&registry, &bytes);
    assert_eq!(other.log().records().len(), 0, "{}", other.log());
}

/// What a manifest says of a blob's size may be anything.
#[tokio::test]
async fn a_size_that_no_memory_holds_is_found_to_be_false() {
    let registry = FakeRegistry::start();
    registry.inject(Fault::status(413).on(Method::PUT, "/uploads/"));
    let content = bytes(LARGE);
    let descriptor = Descriptor {
        size: u64::MAX / 2,
        ..crate::support::descriptor(&content)
    };
    let (blobs, content) = (crate::support::Blobs(client()), Content::Memory(content));
    let blob = Blob::new(&descriptor, &content, &blobs, &|_| ());
    let error = place(&client(), &registry, "app").send(&blob).await;
    let error = error.unwrap_err();
    assert!(matches!(error, RegistryError::Source(_)), "{error:?}");
}

/// So many bytes that are made when they are read.
struct Made(u64);

/// Bytes of a piece of [`Made`].
const PIECE: u64 = 1 << 20;

impl Made {
    fn piece(number: u64) -> Bytes {
        let number = u8::try_from(number % 251).expect("less than 256");
        vec![number; usize::try_from(PIECE).expect("it is small")].into()
    }

    fn descriptor(&self) -> Descriptor {
        let mut hasher = Hasher::new();
        for number in 0..self.0 / PIECE {
            hasher.update(&Self::piece(number));
        }
        Descriptor {
            digest: hasher.finish(),
            size: self.0,
            ..crate::support::descriptor(b"")
        }
    }
}

impl BlobSource for Made {
    async fn open(&self, _: &Descriptor, _: &Content, from: u64) -> Result<BlobStream, BoxError> {
        assert_eq!(from, 0, "an upload verifies all that it reads");
        let pieces = (0..self.0 / PIECE).map(|number| Ok(Self::piece(number)));
        Ok(stream::iter(pieces).boxed())
    }
}

/// A chunk is held in memory until it was taken.
#[tokio::test]
async fn a_registry_cannot_ask_for_chunks_that_no_memory_holds() {
    let registry = FakeRegistry::start();
    let blob = Made(130 << 20);
    let wish = Fault::header("oci-chunk-min-length", &u64::MAX.to_string());
    registry.inject(wish.on(Method::POST, "/uploads/").always());
    registry.inject(Fault::status(413).on(Method::PUT, "/uploads/"));
    let descriptor = blob.descriptor();
    let (content, ignore) = (Content::Memory(Bytes::new()), |_| ());
    let sent = Blob::new(&descriptor, &content, &blob, &ignore);
    place(&client(), &registry, "app")
        .send(&sent)
        .await
        .unwrap();
    assert_eq!(ranges(&registry), ["0-134217727", "134217728-136314879"]);
}

/// How many bytes are sent twice when a blob of 500 MB breaks at nine tenths: in its first body, and
/// in a chunk.
#[tokio::test(flavor = "multi_thread")]
async fn a_break_at_nine_tenths_of_a_large_blob_costs_no_more_than_a_chunk() {
    const SIZE: u64 = 500 << 20;
    const CHUNK: u64 = 10 << 20;
    let blob = Made(SIZE);
    let descriptor = blob.descriptor();
    let ecr = || {
        FakeRegistry::builder()
            .location(LocationStyle::Absolute)
            .chunk_status(201)
            .offsets(Offsets::Ecr)
            .stale_range()
            .atomic_chunks()
            .minimum_part(5 << 20)
    };
    let in_body = Fault::disconnect_after_receiving(SIZE / 10 * 9).on(Method::PUT, "/uploads/");
    let at_first = Fault::disconnect().on(Method::PUT, "/uploads/");
    // The 46th chunk begins at nine tenths.
    let in_chunk = Fault::disconnect_after_receiving(CHUNK / 2)
        .on(Method::PATCH, "/uploads/")
        .nth(46);
    for (builder, faults, sent_twice) in [
        (FakeRegistry::builder(), vec![in_body.clone()], 0),
        (
            FakeRegistry::builder(),
            vec![at_first.clone(), in_chunk.clone()],
            0,
        ),
        // Of one body ECR keeps nothing; that is why no second one follows.
        (ecr(), vec![in_body], SIZE / 10 * 9),
        (ecr(), vec![at_first, in_chunk], CHUNK / 2),
    ] {
        let registry = builder.start();
        for fault in faults {
            registry.inject(fault);
        }
        let client = client();
        let place = place(&client, &registry, "app");
        let (content, ignore) = (Content::Memory(Bytes::new()), |_| ());
        let sent = Blob::new(&descriptor, &content, &blob, &ignore);
        place.send(&sent).await.unwrap();
        assert_eq!(registry.blobs("app"), [descriptor.digest]);
        assert_eq!(registry.pending_faults(), Vec::<String>::new());
        let log = registry.log();
        assert_eq!(log.blob_bytes_received() - SIZE, sent_twice, "{log}");
    }
}
