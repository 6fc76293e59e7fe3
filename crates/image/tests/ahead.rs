//! The head start: what goes to a target before the image is whole, and what must not.
//!
//! Nothing here runs by itself: each test says when an offer comes and how far the future is driven.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, poll_fn};
use std::num::NonZeroUsize;
use std::pin::{Pin, pin};
use std::sync::Mutex;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, stream};
use tierce_image::{
    Ahead, Artifact, Blob, BlobAt, BlobSource, BlobStream, BoxError, Content, ImageSink, Jobs,
    Novelty, Offer, Placed, Tally, WriteError, WriteReport, move_ahead, write_after,
};
use tierce_oci::{
    Descriptor, Digest, Document, ImageFormat, Manifest, MediaType, Raw, Selector, Tag,
};

/// A target that writes down what it is asked, in words.
#[derive(Default)]
struct Target {
    /// What the blobs are called in the journal.
    called: BTreeMap<Digest, String>,
    journal: Mutex<Vec<String>>,
    names: Mutex<BTreeMap<Tag, Digest>>,
    blobs: Mutex<BTreeSet<Digest>>,
    /// Bytes are taken only while this is open.
    shut: Mutex<bool>,
    refused: Option<&'static str>,
    /// Whether names stay with what they stand for.
    immutable: bool,
}

#[derive(Debug, thiserror::Error)]
#[error("no room for {0}")]
struct Refusal(String);

impl Target {
    fn knowing(names: &[&str]) -> Self {
        Self {
            called: names
                .iter()
                .map(|name| (blob(name).descriptor.digest, (*name).to_owned()))
                .collect(),
            ..Self::default()
        }
    }

    fn note(&self, what: &str, thing: impl std::fmt::Display) {
        self.journal.lock().unwrap().push(format!("{what} {thing}"));
    }

    /// What happened since the last time.
    fn told(&self) -> Vec<String> {
        std::mem::take(&mut *self.journal.lock().unwrap())
    }

    fn name_of(&self, digest: &Digest) -> String {
        let called = self.called.get(digest);
        called.map_or_else(|| "other".to_owned(), Clone::clone)
    }

    fn set_shut(&self, shut: bool) {
        *self.shut.lock().unwrap() = shut;
    }
}

impl ImageSink for Target {
    type Error = Refusal;

    async fn current(&self, selector: &Selector) -> Result<Option<Digest>, Refusal> {
        match selector {
            Selector::Tag(tag) => {
                self.note("name?", tag);
                if self.refused == Some(tag.as_str()) {
                    return Err(Refusal(tag.to_string()));
                }
                Ok(self.names.lock().unwrap().get(tag).copied())
            }
            Selector::Digest(_) => {
                self.note("digest?", "");
                Ok(None)
            }
        }
    }

    async fn can_move(&self, _: &Tag) -> bool {
        !self.immutable
    }

    async fn place(&self, blob: &BlobAt) -> Result<Option<Placed>, Refusal> {
        let digest = blob.descriptor.digest;
        let name = self.name_of(&digest);
        self.note("has?", &name);
        if self.refused == Some(&name) {
            return Err(Refusal(name));
        }
        let there = self.blobs.lock().unwrap().contains(&digest);
        Ok(there.then_some(Placed::AlreadyThere))
    }

    async fn send<S: BlobSource>(&self, blob: &Blob<'_, S>) -> Result<(), Refusal> {
        let digest = blob.descriptor().digest;
        self.note("begin", self.name_of(&digest));
        poll_fn(|context| {
            if *self.shut.lock().unwrap() {
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            Poll::Ready(())
        })
        .await;
        let mut bytes = blob.open().await.unwrap();
        while let Some(piece) = bytes.next().await {
            drop(piece.unwrap());
        }
        self.blobs.lock().unwrap().insert(digest);
        self.note("end", self.name_of(&digest));
        Ok(())
    }

    async fn put_manifest(&self, document: &Document, tag: Option<&Tag>) -> Result<(), Refusal> {
        let tag = tag.unwrap();
        self.note("put", tag);
        let mut names = self.names.lock().unwrap();
        names.insert(tag.clone(), document.digest());
        Ok(())
    }
}

/// All content is in memory here.
struct Memory;

impl BlobSource for Memory {
    async fn open(
        &self,
        _: &Descriptor,
        content: &Content,
        _: u64,
    ) -> Result<BlobStream, BoxError> {
        let Content::Memory(bytes) = content else {
            panic!("not in memory");
        };
        Ok(stream::iter([Ok(bytes.clone())]).boxed())
    }
}

fn blob(name: &str) -> BlobAt {
    let bytes = Bytes::from(format!("the bytes of {name}"));
    BlobAt {
        descriptor: Descriptor::of(MediaType::from("x/y"), &bytes),
        content: Content::Memory(bytes),
    }
}

fn tag(name: &str) -> Tag {
    name.parse().unwrap()
}

fn image(layers: &[&str]) -> Artifact {
    let config = blob("config");
    let blobs: Vec<BlobAt> = layers.iter().map(|name| blob(name)).collect();
    let manifest = Raw::from_manifest(Manifest {
        media_type: MediaType::Manifest(ImageFormat::Oci),
        config: config.descriptor.clone(),
        layers: blobs.iter().map(|blob| blob.descriptor.clone()).collect(),
        annotations: BTreeMap::new(),
        subject: None,
        artifact_type: None,
    });
    Artifact {
        document: Document::Manifest(manifest),
        blobs: blobs.into_iter().chain([config]).collect(),
        children: Vec::new(),
    }
}

fn jobs(count: usize) -> Jobs {
    Jobs(NonZeroUsize::new(count).unwrap())
}

fn name(text: &str) -> Offer {
    Offer::Name(tag(text))
}

fn offered(name: &str) -> Offer {
    Offer::Blobs(vec![blob(name)])
}

const UNKNOWN: Offer = Offer::Making(Novelty::Unknown);
const NEW: Offer = Offer::Making(Novelty::New);

/// Offers that come when the test sends them.
fn offers(receiver: Receiver<Offer>) -> impl Stream<Item = Offer> {
    stream::poll_fn(move |_| match receiver.try_recv() {
        Ok(offer) => Poll::Ready(Some(offer)),
        // Every test polls again by itself.
        Err(TryRecvError::Empty) => Poll::Pending,
        Err(TryRecvError::Disconnected) => Poll::Ready(None),
    })
}

fn poll<F: Future>(future: &mut Pin<&mut F>) -> Poll<F::Output> {
    future
        .as_mut()
        .poll(&mut Context::from_waker(Waker::noop()))
}

/// Drives a future that never waits for anything.
#[track_caller]
fn drive<F: Future>(future: F) -> F::Output {
    match poll(&mut pin!(future)) {
        Poll::Ready(output) => output,
        Poll::Pending => panic!("it waits"),
    }
}

#[track_caller]
fn moved(target: &Target, offers: &[Offer]) -> Ahead {
    let offers = stream::iter(offers.to_vec());
    drive(move_ahead(offers, &Memory, target, jobs(4), &|_| ())).unwrap()
}

#[track_caller]
fn written(target: &Target, ahead: &mut Ahead, image: &Artifact, name: &str) -> WriteReport {
    let tag = tag(name);
    let walk = write_after(ahead, image, Some(&tag), &Memory, target, jobs(4), &|_| ());
    drive(walk).unwrap()
}

fn tally(names: &[&str]) -> Tally {
    let sizes = names.iter().map(|name| blob(name).descriptor.size);
    Tally {
        blobs: names.len(),
        bytes: sizes.sum(),
    }
}

#[test]
fn a_layer_is_sent_while_the_next_is_made() {
    let target = Target::knowing(&["first", "second", "config"]);
    let (sender, receiver) = mpsc::channel();
    let ignore = |_: tierce_image::Progress<'_>| ();
    let mut moving = pin!(move_ahead(
        offers(receiver),
        &Memory,
        &target,
        jobs(4),
        &ignore
    ));
    sender.send(name("1")).unwrap();
    assert!(poll(&mut moving).is_pending());
    assert_eq!(target.told(), [""; 0]);
    sender.send(UNKNOWN).unwrap();
    assert!(poll(&mut moving).is_pending());
    assert_eq!(target.told(), ["name? 1"]);
    // The first is there, and of the second nobody knows anything yet.
    sender.send(offered("first")).unwrap();
    assert!(poll(&mut moving).is_pending());
    assert_eq!(target.told(), ["has? first", "begin first", "end first"]);
    // The other way round: the second comes while the bytes of another are on their way.
    target.set_shut(true);
    sender.send(offered("second")).unwrap();
    assert!(poll(&mut moving).is_pending());
    sender.send(offered("config")).unwrap();
    assert!(poll(&mut moving).is_pending());
    assert_eq!(
        target.told(),
        ["has? second", "begin second", "has? config", "begin config"]
    );
    drop(sender);
    assert!(poll(&mut moving).is_pending());
    target.set_shut(false);
    let Poll::Ready(Ok(mut ahead)) = poll(&mut moving) else {
        panic!("all is there");
    };
    target.told();
    // The walk finds it done. The name was asked, and is not asked again.
    let image = image(&["first", "second"]);
    let report = written(&target, &mut ahead, &image, "1");
    assert_eq!(target.told(), ["digest? ", "put 1"]);
    let sent = tally(&["first", "second", "config"]);
    assert_eq!(
        report,
        WriteReport {
            sent,
            manifests: 1,
            ..WriteReport::default()
        }
    );
}

#[test]
fn an_image_that_is_there_is_one_question() {
    let target = Target::knowing(&["layer", "config"]);
    let image = image(&["layer"]);
    let names = [(tag("1"), image.document.digest())];
    *target.names.lock().unwrap() = names.into();
    let all = [name("1"), UNKNOWN, offered("layer"), offered("config")];
    let mut ahead = moved(&target, &all);
    let report = written(&target, &mut ahead, &image, "1");
    assert_eq!(target.told(), ["name? 1"]);
    assert!(report.up_to_date);
    assert_eq!(report.sent, Tally::default());
    // That answer was for one walk.
    assert!(written(&target, &mut ahead, &image, "1").up_to_date);
    assert_eq!(target.told(), ["name? 1"]);
}

#[test]
fn a_name_that_stands_for_another_image_holds_all_back() {
    let target = Target::knowing(&["layer", "config"]);
    *target.names.lock().unwrap() = [(tag("1"), Digest::of(b"another"))].into();
    let mut ahead = moved(&target, &[name("1"), UNKNOWN, offered("layer")]);
    assert_eq!(target.told(), ["name? 1"]);
    let report = written(&target, &mut ahead, &image(&["layer"]), "1");
    assert_eq!(report.sent, tally(&["layer", "config"]));
    let told = target.told();
    assert_eq!(told.first().unwrap(), "digest? ");
    assert_eq!(told.last().unwrap(), "put 1");
}

#[test]
fn what_was_never_made_before_goes_whatever_the_name_stands_for() {
    let target = Target::knowing(&["base", "known", "new", "config"]);
    *target.names.lock().unwrap() = [(tag("1"), Digest::of(b"another"))].into();
    target
        .blobs
        .lock()
        .unwrap()
        .insert(blob("base").descriptor.digest);
    let (sender, receiver) = mpsc::channel();
    let ignore = |_: tierce_image::Progress<'_>| ();
    let mut moving = pin!(move_ahead(
        offers(receiver),
        &Memory,
        &target,
        jobs(4),
        &ignore
    ));
    for offer in [name("1"), offered("base"), offered("known")] {
        sender.send(offer).unwrap();
    }
    // All of it was made before, and so may the image have been.
    assert!(poll(&mut moving).is_pending());
    assert_eq!(target.told(), [""; 0]);
    sender.send(NEW).unwrap();
    assert!(poll(&mut moving).is_pending());
    assert_eq!(
        target.told(),
        [
            "name? 1",
            "has? base",
            "has? known",
            "begin known",
            "end known"
        ]
    );
    sender.send(offered("new")).unwrap();
    drop(sender);
    let Poll::Ready(Ok(mut ahead)) = poll(&mut moving) else {
        panic!("all is there");
    };
    target.told();
    let image = image(&["base", "known", "new"]);
    let report = written(&target, &mut ahead, &image, "1");
    assert_eq!(
        target.told(),
        [
            "digest? ",
            "has? config",
            "begin config",
            "end config",
            "put 1"
        ]
    );
    assert_eq!(report.already_there, tally(&["base"]));
    assert_eq!(report.sent, tally(&["known", "new", "config"]));
}

#[test]
fn nothing_is_asked_when_nothing_is_made() {
    let target = Target::knowing(&["layer"]);
    moved(&target, &[name("1"), offered("layer")]);
    assert_eq!(target.told(), [""; 0]);
}

#[test]
fn what_images_share_goes_once() {
    let target = Target::knowing(&["shared", "own", "config"]);
    let all = [
        name("1-amd64"),
        UNKNOWN,
        offered("shared"),
        offered("config"),
        // That something was made holds for this one too.
        name("1-arm64"),
        offered("shared"),
        offered("own"),
        offered("own"),
        offered("config"),
    ];
    let mut ahead = moved(&target, &all);
    let told = target.told();
    for once in [
        "name? 1-amd64",
        "name? 1-arm64",
        "end shared",
        "end own",
        "end config",
    ] {
        let count = told.iter().filter(|line| *line == once).count();
        assert_eq!(count, 1, "{once}: {told:?}");
    }
    // Counted as sent where it was first needed, and only there.
    let first = written(&target, &mut ahead, &image(&["shared"]), "1-amd64");
    assert_eq!(first.sent, tally(&["shared", "config"]));
    let second = written(&target, &mut ahead, &image(&["shared", "own"]), "1-arm64");
    assert_eq!(second.sent, tally(&["own"]));
    assert_eq!(second.already_there, tally(&["shared", "config"]));
    assert!(!target.told().iter().any(|line| line.starts_with("has?")));
}

#[test]
fn each_name_is_judged_for_itself() {
    let target = Target::knowing(&["one", "two"]);
    *target.names.lock().unwrap() = [(tag("1-amd64"), Digest::of(b"another"))].into();
    let all = [
        name("1-amd64"),
        UNKNOWN,
        offered("one"),
        name("1-arm64"),
        offered("two"),
    ];
    moved(&target, &all);
    assert_eq!(
        target.told(),
        [
            "name? 1-amd64",
            "name? 1-arm64",
            "has? two",
            "begin two",
            "end two"
        ]
    );
}

#[test]
fn nothing_goes_to_a_name_that_stands_for_another_image_for_good() {
    let target = Target {
        immutable: true,
        ..Target::knowing(&["new", "config"])
    };
    let another = Digest::of(b"another");
    *target.names.lock().unwrap() = [(tag("1"), another)].into();
    let all = [name("1"), NEW, offered("new"), offered("config")];
    let ignore = |_: tierce_image::Progress<'_>| ();
    let mut moving = pin!(move_ahead(
        stream::iter(all),
        &Memory,
        &target,
        jobs(2),
        &ignore
    ));
    let Poll::Ready(Ok(mut ahead)) = poll(&mut moving) else {
        panic!("there is nothing to wait for");
    };
    let (image, name) = (image(&["new"]), tag("1"));
    let mut walk = pin!(write_after(
        &mut ahead,
        &image,
        Some(&name),
        &Memory,
        &target,
        jobs(2),
        &ignore
    ));
    let Poll::Ready(Err(error)) = poll(&mut walk) else {
        panic!("the name cannot be had");
    };
    assert!(
        matches!(&error, WriteError::ImmutableTag { found, .. } if *found == another),
        "{error}"
    );
    assert_eq!(target.told(), ["name? 1"]);
}

#[test]
fn no_more_are_on_their_way_than_there_are_jobs() {
    let names = ["a", "b", "c", "d", "e"];
    let target = Target::knowing(&names);
    target.set_shut(true);
    let all: Vec<Offer> = [name("1"), NEW]
        .into_iter()
        .chain(names.map(offered))
        .collect();
    let ignore = |_: tierce_image::Progress<'_>| ();
    let mut moving = pin!(move_ahead(
        stream::iter(all),
        &Memory,
        &target,
        jobs(2),
        &ignore
    ));
    assert!(poll(&mut moving).is_pending());
    assert_eq!(
        target.told(),
        ["name? 1", "has? a", "begin a", "has? b", "begin b"]
    );
    target.set_shut(false);
    assert!(poll(&mut moving).is_ready());
    assert_eq!(target.blobs.lock().unwrap().len(), names.len());
}

#[test]
fn a_refusal_ends_it_while_more_is_being_made() {
    let told = |refused: &'static str| {
        let target = Target {
            refused: Some(refused),
            ..Target::knowing(&["first"])
        };
        let (sender, receiver) = mpsc::channel();
        for offer in [name("1"), UNKNOWN, offered("first")] {
            sender.send(offer).unwrap();
        }
        let ignore = |_: tierce_image::Progress<'_>| ();
        let mut moving = pin!(move_ahead(
            offers(receiver),
            &Memory,
            &target,
            jobs(4),
            &ignore
        ));
        let Poll::Ready(Err(error)) = poll(&mut moving) else {
            panic!("it was refused");
        };
        // Whoever makes layers is still at it.
        drop(sender);
        error
    };
    let digest = blob("first").descriptor.digest;
    assert!(matches!(told("first"), WriteError::Blob { digest: named, .. } if named == digest));
    assert!(
        matches!(told("1"), WriteError::Current { selector, .. } if selector == Selector::Tag(tag("1")))
    );
}
