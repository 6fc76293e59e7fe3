//! Which images of a repository may go.
//!
//! The choice is a function of what was read before; nothing is asked here and nothing deleted.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tierce_oci::{Digest, Timestamp};

use crate::repositories::Image;
use crate::wildcard::Wildcard;

/// What is to be kept whatever else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PruneRules {
    /// So many of the newest images; when nothing is said, age alone decides.
    pub keep: Option<usize>,
    /// All that are younger; when nothing is said, number alone decides.
    pub older_than: Option<Duration>,
    /// What time it is.
    pub now: Timestamp,
    /// Images with a tag that fits one of these.
    pub protected_tags: Vec<Wildcard>,
}

/// What goes and what stays.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PrunePlan {
    /// What goes, in the order in which it must: an index before what it names.
    pub deletions: Vec<Deletion>,
    /// What stays.
    pub kept: Vec<Kept>,
}

/// An image that goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deletion {
    /// The image.
    pub image: Image,
    /// Why.
    pub reason: DeleteReason,
    /// The indexes that must be gone before: ECR refuses to delete what an index names.
    pub after: BTreeSet<Digest>,
}

/// Why an image goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeleteReason {
    /// Enough others are newer, or it is old enough, or both: whatever the rules ask for.
    Rules,
    /// It belongs to this index, which goes.
    ChildOf(Digest),
    /// It is about this image, which goes.
    RefersTo(Digest),
}

/// An image that stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The image.
    pub image: Image,
    /// Why.
    pub reason: KeepReason,
}

/// Why an image stays.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeepReason {
    /// This function runs it.
    Function(String),
    /// It has this tag, which is protected.
    Tag(String),
    /// It is among the newest.
    Newest,
    /// It is too young.
    Young,
    /// Nobody knows how old it is.
    Undated,
    /// This index names it, and stays.
    ChildOf(Digest),
    /// It is an index, and names this image, which is in use or protected.
    ParentOf(Digest),
    /// It is about this image, which stays.
    RefersTo(Digest),
}

/// What an image has to do with others of the repository.
#[derive(Debug, Default)]
struct Relations {
    parents: BTreeMap<Digest, BTreeSet<Digest>>,
    subjects: BTreeMap<Digest, Digest>,
    /// Those that are about something that is not there.
    orphans: BTreeSet<Digest>,
}

impl Relations {
    fn of(images: &[Image]) -> Self {
        let present: BTreeMap<Digest, &Image> =
            images.iter().map(|image| (image.digest, image)).collect();
        let mut relations = Self::default();
        for image in images {
            for child in image
                .children
                .iter()
                .filter(|child| present.contains_key(child))
            {
                let parents = relations.parents.entry(*child).or_default();
                parents.insert(image.digest);
            }
            match image.subject.or_else(|| subject_in_tags(image, &present)) {
                Some(subject) if present.contains_key(&subject) => {
                    relations.subjects.insert(image.digest, subject);
                }
                Some(_) => {
                    relations.orphans.insert(image.digest);
                }
                None => {}
            }
        }
        relations
    }

    fn parents(&self, digest: &Digest) -> impl Iterator<Item = &Digest> {
        self.parents.get(digest).into_iter().flatten()
    }

    /// Whether an image is there for itself, and not as a part or a companion of another.
    fn stands_alone(&self, digest: &Digest) -> bool {
        !self.parents.contains_key(digest)
            && !self.subjects.contains_key(digest)
            && !self.orphans.contains(digest)
    }
}

/// What an image is about by its tag: `sha256-HEX`, the referrers of an image where the registry has
/// no API for them (distribution-spec, "Referrers Tag Schema"), and cosign's `sha256-HEX.sig`.
///
/// People tag images by hashes of their sources as well. Such an image must not be taken for the
/// companion of one that is gone: where there is no image of that digest the ending must be cosign's,
/// or the image an index of what is about that digest, as far as it is there. An image with another
/// tag besides is one that somebody runs.
fn subject_in_tags(image: &Image, present: &BTreeMap<Digest, &Image>) -> Option<Digest> {
    let mut subject = None;
    for tag in &image.tags {
        let rest = tag.strip_prefix("sha256-")?;
        let (hex, ending) = match rest.split_once('.') {
            Some((hex, ending)) => (hex, Some(ending)),
            None => (rest, None),
        };
        let found: Digest = format!("sha256:{hex}").parse().ok()?;
        let fits = present.contains_key(&found)
            || match ending {
                Some(ending) => COSIGN_ENDINGS.contains(&ending),
                None => {
                    let children = image.children.iter();
                    let mut present = children.filter_map(|child| present.get(child));
                    image.is_index() && present.all(|child| child.subject == Some(found))
                }
            };
        if !fits || subject.is_some_and(|subject| subject != found) {
            return None;
        }
        subject = Some(found);
    }
    subject
}

/// What cosign puts behind the digest of an image for what is about it.
const COSIGN_ENDINGS: [&str; 3] = ["sig", "att", "sbom"];

impl PrunePlan {
    /// Chooses among `images`, of which `used` are run by functions.
    ///
    /// An index with its children, and an image with what refers to it, count as one and go or stay
    /// together; but what a function runs or a protected tag names stays, and keeps an index that
    /// names it: without one it would be untagged, and a lifecycle policy could take it.
    pub fn make(images: &[Image], used: &BTreeMap<Digest, String>, rules: &PruneRules) -> Self {
        let relations = Relations::of(images);
        let mut reasons = BTreeMap::new();
        for image in images {
            if let Some(reason) = own_reason(image, used, rules) {
                reasons.insert(image.digest, reason);
            }
        }
        keep_parents(&mut reasons, &relations);
        for digest in newest(images, &relations, rules) {
            reasons.entry(digest).or_insert(KeepReason::Newest);
        }
        keep_companions(&mut reasons, images, &relations);

        let mut plan = Self::default();
        let mut going = Vec::new();
        for image in images {
            match reasons.remove(&image.digest) {
                Some(reason) => plan.kept.push(Kept {
                    image: image.clone(),
                    reason,
                }),
                None => going.push(image),
            }
        }
        plan.kept.sort_by_key(|kept| order(&kept.image));
        plan.deletions = in_order(&going, &relations);
        plan
    }

    /// The deletions that `other` has as well, for what is read a second time.
    #[must_use]
    pub fn agreed(self, other: &Self) -> Vec<Deletion> {
        let also: BTreeSet<Digest> = other
            .deletions
            .iter()
            .map(|deletion| deletion.image.digest)
            .collect();
        self.deletions
            .into_iter()
            .filter(|deletion| also.contains(&deletion.image.digest))
            .collect()
    }
}

/// What keeps an image whatever it has to do with others.
fn own_reason(
    image: &Image,
    used: &BTreeMap<Digest, String>,
    rules: &PruneRules,
) -> Option<KeepReason> {
    if let Some(function) = used.get(&image.digest) {
        return Some(KeepReason::Function(function.clone()));
    }
    let is_protected = |tag: &&String| rules.protected_tags.iter().any(|it| it.matches(tag));
    if let Some(tag) = image.tags.iter().find(is_protected) {
        return Some(KeepReason::Tag(tag.clone()));
    }
    let Some(pushed) = image.pushed else {
        return Some(KeepReason::Undated);
    };
    let age = rules.now.seconds().saturating_sub(pushed.seconds());
    // What comes from the future is new.
    let age = Duration::from_secs(u64::try_from(age).unwrap_or(0));
    let is_young = rules.older_than.is_some_and(|limit| age <= limit);
    is_young.then_some(KeepReason::Young)
}

/// An index stays for the sake of what is used or protected in it.
fn keep_parents(reasons: &mut BTreeMap<Digest, KeepReason>, relations: &Relations) {
    let mut next: Vec<Digest> = reasons
        .iter()
        .filter(|(_, reason)| matches!(reason, KeepReason::Function(_) | KeepReason::Tag(_)))
        .map(|(digest, _)| *digest)
        .collect();
    while let Some(child) = next.pop() {
        for parent in relations.parents(&child) {
            let newly = !matches!(
                reasons.get(parent),
                Some(KeepReason::Function(_) | KeepReason::Tag(_) | KeepReason::ParentOf(_))
            );
            if newly {
                reasons.insert(*parent, KeepReason::ParentOf(child));
                next.push(*parent);
            }
        }
    }
}

/// The newest images of those that stand alone. What refers to something that is gone is no image
/// that anybody runs, and takes no place among them.
fn newest(images: &[Image], relations: &Relations, rules: &PruneRules) -> Vec<Digest> {
    let Some(keep) = rules.keep else {
        return Vec::new();
    };
    let mut ranked: Vec<&Image> = images
        .iter()
        .filter(|image| relations.stands_alone(&image.digest))
        .collect();
    ranked.sort_by_key(|image| order(image));
    ranked.iter().take(keep).map(|image| image.digest).collect()
}

/// The newest first. Of two that were pushed in the same second, those with tags first; what then
/// decides is the digest, so that the choice is the same each time.
fn order(image: &Image) -> (std::cmp::Reverse<Option<i64>>, bool, Digest) {
    // An image without a date counts as new.
    let pushed = image.pushed.map_or(i64::MAX, Timestamp::seconds);
    (
        std::cmp::Reverse(Some(pushed)),
        image.tags.is_empty(),
        image.digest,
    )
}

/// What an index that stays names stays with it, and so does what refers to an image that stays.
fn keep_companions(
    reasons: &mut BTreeMap<Digest, KeepReason>,
    images: &[Image],
    relations: &Relations,
) {
    loop {
        let mut more = BTreeMap::new();
        for image in images {
            let digest = image.digest;
            if reasons.contains_key(&digest) {
                continue;
            }
            let parent = relations
                .parents(&digest)
                .find(|parent| reasons.contains_key(parent));
            let subject = relations
                .subjects
                .get(&digest)
                .filter(|subject| reasons.contains_key(subject));
            if let Some(parent) = parent {
                more.insert(digest, KeepReason::ChildOf(*parent));
            } else if let Some(subject) = subject {
                more.insert(digest, KeepReason::RefersTo(*subject));
            }
        }
        if more.is_empty() {
            return;
        }
        reasons.extend(more);
    }
}

/// Puts each image after the indexes that name it. Beyond that the oldest goes first.
fn in_order(going: &[&Image], relations: &Relations) -> Vec<Deletion> {
    let all: BTreeSet<Digest> = going.iter().map(|image| image.digest).collect();
    let mut rest: Vec<&Image> = going.to_vec();
    rest.sort_by_key(|image| std::cmp::Reverse(order(image)));
    let mut placed = BTreeSet::new();
    let mut deletions = Vec::new();
    while !rest.is_empty() {
        let is_ready = |image: &Image| {
            let mut parents = relations.parents(&image.digest);
            parents.all(|parent| placed.contains(parent) || !all.contains(parent))
        };
        let (mut ready, waiting): (Vec<&Image>, Vec<&Image>) =
            rest.into_iter().partition(|image| is_ready(image));
        rest = waiting;
        if ready.is_empty() {
            // Digests cannot name each other in a ring; what says so is not taken apart.
            break;
        }
        for image in ready.drain(..) {
            placed.insert(image.digest);
            let after: BTreeSet<Digest> = relations
                .parents(&image.digest)
                .filter(|parent| all.contains(parent))
                .copied()
                .collect();
            let reason = match (after.first(), relations.subjects.get(&image.digest)) {
                (Some(parent), _) => DeleteReason::ChildOf(*parent),
                (None, Some(subject)) => DeleteReason::RefersTo(*subject),
                (None, None) => DeleteReason::Rules,
            };
            deletions.push(Deletion {
                image: image.clone(),
                reason,
                after,
            });
        }
    }
    deletions
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400;
    const NOW: i64 = 1000 * DAY;

    fn digest(name: &str) -> Digest {
        Digest::of(name.as_bytes())
    }

    fn moment(seconds: i64) -> Timestamp {
        seconds.to_string().parse().unwrap()
    }

    /// An image that was pushed so many days ago.
    fn image(name: &str, days: i64) -> Image {
        Image {
            digest: digest(name),
            tags: vec![name.to_owned()],
            pushed: Some(moment(NOW - days * DAY)),
            size: Some(1),
            media_type: None,
            children: Vec::new(),
            subject: None,
        }
    }

    fn index(name: &str, days: i64, children: &[&str]) -> Image {
        let children = children.iter().map(|child| digest(child)).collect();
        Image {
            children,
            ..image(name, days)
        }
    }

    fn about(name: &str, days: i64, subject: &str) -> Image {
        Image {
            subject: Some(digest(subject)),
            tags: Vec::new(),
            ..image(name, days)
        }
    }

    fn rules(keep: Option<usize>, days: Option<u64>) -> PruneRules {
        PruneRules {
            keep,
            older_than: days.map(|days| Duration::from_secs(days * 86_400)),
            now: moment(NOW),
            protected_tags: Vec::new(),
        }
    }

    /// What goes, by the names that digests were made of, in order.
    fn going(images: &[Image], used: &[&str], rules: &PruneRules, names: &[&str]) -> Vec<String> {
        let used = used
            .iter()
            .map(|name| (digest(name), format!("function of {name}")));
        let plan = PrunePlan::make(images, &used.collect(), rules);
        assert_eq!(plan.deletions.len() + plan.kept.len(), images.len());
        let mut gone = BTreeSet::new();
        for deletion in &plan.deletions {
            assert!(deletion.after.iter().all(|parent| gone.contains(parent)));
            gone.insert(deletion.image.digest);
        }
        let name_of = |deletion: &Deletion| {
            let wanted = deletion.image.digest;
            let name = names.iter().find(|name| digest(name) == wanted);
            (*name.unwrap_or(&"?")).to_owned()
        };
        plan.deletions.iter().map(name_of).collect()
    }

    #[test]
    fn number_and_age_decide() {
        let names = ["a", "b", "c", "d"];
        let images: Vec<Image> = names
            .iter()
            .zip([1, 10, 20, 30])
            .map(|(name, days)| image(name, days))
            .collect();
        for (keep, days, expected) in [
            (Some(0), None, &["d", "c", "b", "a"][..]),
            (Some(1), None, &["d", "c", "b"]),
            (Some(4), None, &[]),
            (Some(9), None, &[]),
            (None, Some(0), &["d", "c", "b", "a"]),
            (None, Some(10), &["d", "c"]),
            (None, Some(15), &["d", "c"]),
            (None, Some(30), &[]),
            // Both must be so.
            (Some(1), Some(15), &["d", "c"]),
            (Some(3), Some(5), &["d"]),
            (Some(1), Some(40), &[]),
            (Some(0), Some(25), &["d"]),
        ] {
            let gone = going(&images, &[], &rules(keep, days), &names);
            assert_eq!(gone, expected, "{keep:?} {days:?}");
        }
    }

    #[test]
    fn nothing_in_use_goes() {
        let names = ["a", "b", "c"];
        let images = [image("a", 1), image("b", 2), image("c", 3)];
        let gone = going(&images, &["c"], &rules(Some(0), None), &names);
        assert_eq!(gone, ["b", "a"]);
        let plan = PrunePlan::make(
            &images,
            &BTreeMap::from([(digest("c"), "orders:7".to_owned())]),
            &rules(Some(0), Some(0)),
        );
        assert_eq!(
            plan.kept.first().map(|kept| &kept.reason),
            Some(&KeepReason::Function("orders:7".to_owned()))
        );
    }

    #[test]
    fn no_protected_tag_goes() {
        let names = ["prod", "prod-old", "dev", "both"];
        let mut both = image("both", 40);
        both.tags = vec!["dev-1".to_owned(), "prod".to_owned()];
        let images = [
            image("prod", 10),
            image("prod-old", 20),
            image("dev", 30),
            both,
        ];
        let protecting = |patterns: &[&str]| PruneRules {
            protected_tags: patterns.iter().copied().map(Wildcard::new).collect(),
            ..rules(Some(0), None)
        };
        for (patterns, expected) in [
            (&["prod"][..], &["dev", "prod-old"][..]),
            (&["prod*"], &["dev"]),
            (&["prod*", "dev"], &[]),
            (&["*"], &[]),
            (&["x"], &["both", "dev", "prod-old", "prod"]),
        ] {
            let gone = going(&images, &[], &protecting(patterns), &names);
            assert_eq!(gone, expected, "{patterns:?}");
        }
    }

    #[test]
    fn an_index_and_its_children_are_one() {
        let names = ["new", "new-arm", "new-amd", "old", "old-arm", "shared"];
        let images = [
            image("new-arm", 2),
            image("new-amd", 2),
            index("new", 1, &["new-arm", "new-amd", "shared", "never pushed"]),
            image("old-arm", 9),
            image("shared", 9),
            index("old", 8, &["old-arm", "shared"]),
        ];
        // Two indexes, not six images; the new one keeps what both have.
        let gone = going(&images, &[], &rules(Some(1), None), &names);
        assert_eq!(gone, ["old", "old-arm"]);
        assert!(going(&images, &[], &rules(Some(2), None), &names).is_empty());
        // A function runs a child: its index stays, and all that it names.
        let mut gone = going(&images, &["old-arm"], &rules(Some(0), None), &names);
        assert_eq!(gone.remove(0), "new");
        gone.sort();
        assert_eq!(gone, ["new-amd", "new-arm"]);
    }

    #[test]
    fn indexes_in_indexes_go_from_the_outside() {
        let names = ["outer", "inner", "image"];
        let images = [
            image("image", 3),
            index("inner", 2, &["image"]),
            index("outer", 1, &["inner"]),
        ];
        let gone = going(&images, &[], &rules(Some(0), None), &names);
        assert_eq!(gone, ["outer", "inner", "image"]);
        assert!(going(&images, &["image"], &rules(Some(0), None), &names).is_empty());
        assert!(going(&images, &[], &rules(Some(1), None), &names).is_empty());
    }

    #[test]
    fn what_refers_to_an_image_goes_with_it() {
        let names = [
            "new",
            "new-sbom",
            "new-sbom-sig",
            "old",
            "old-sbom",
            "orphan",
        ];
        let images = [
            image("new", 20),
            about("new-sbom", 19, "new"),
            about("new-sbom-sig", 18, "new-sbom"),
            image("old", 30),
            about("old-sbom", 29, "old"),
            about("orphan", 1, "long gone"),
        ];
        // One image is kept, and what is newer than it but no image takes no place.
        let gone = going(&images, &[], &rules(Some(1), None), &names);
        assert_eq!(gone, ["old", "old-sbom", "orphan"]);
        let gone = going(&images, &[], &rules(None, Some(25)), &names);
        assert_eq!(gone, ["old", "old-sbom"]);
        assert!(going(&images, &["old"], &rules(Some(1), Some(5)), &names).is_empty());
    }

    #[test]
    fn companions_are_known_by_their_tags_too() {
        let hex = digest("old").hex();
        let mut signature = image("signature", 1);
        signature.tags = vec![format!("sha256-{hex}.sig")];
        let mut referrers = index("referrers", 1, &["sbom"]);
        referrers.tags = vec![format!("sha256-{}", digest("new").hex())];
        let images = [
            image("new", 5),
            image("old", 6),
            signature,
            referrers,
            image("sbom", 7),
        ];
        let names = ["new", "old", "signature", "referrers", "sbom"];
        let gone = going(&images, &[], &rules(Some(1), None), &names);
        assert_eq!(gone, ["old", "signature"]);
    }

    #[test]
    fn images_that_are_tagged_by_hashes_are_images() {
        let tag = |name: &str| format!("sha256-{}", digest(name).hex());
        let tagged = |image: Image, tags: &[String]| Image {
            tags: tags.to_vec(),
            ..image
        };
        let images = [
            tagged(image("a", 1), &[tag("source of a")]),
            tagged(image("b", 2), &[tag("source of b"), "1.0".to_owned()]),
            tagged(index("c", 3, &["c-arm"]), &[tag("source of c")]),
            image("c-arm", 3),
            tagged(
                image("d", 4),
                &[format!("{}.sig", tag("gone")), "2.0".to_owned()],
            ),
            // And these are what their tags say.
            tagged(index("list", 1, &["note"]), &[tag("long gone")]),
            about("note", 1, "long gone"),
            tagged(image("signature", 1), &[format!("{}.sig", tag("gone"))]),
            image("old", 9),
        ];
        let names = [
            "a",
            "b",
            "c",
            "c-arm",
            "d",
            "list",
            "note",
            "signature",
            "old",
        ];
        let mut gone = going(&images, &[], &rules(Some(4), None), &names);
        gone.sort();
        assert_eq!(gone, ["list", "note", "old", "signature"]);
    }

    #[test]
    fn what_has_no_date_stays() {
        let mut undated = image("undated", 0);
        undated.pushed = None;
        let mut future = image("future", -5);
        future.tags.clear();
        let images = [undated, future, image("old", 50)];
        let names = ["undated", "future", "old"];
        let gone = going(&images, &[], &rules(None, Some(1)), &names);
        assert_eq!(gone, ["old"]);
        let gone = going(&images, &[], &rules(Some(0), None), &names);
        assert_eq!(gone, ["old", "future"]);
    }

    #[test]
    fn only_what_both_readings_let_go_goes() {
        let images = [image("a", 1), image("b", 2)];
        let plan = |used: &[&str]| {
            let used = used.iter().map(|name| (digest(name), String::new()));
            PrunePlan::make(&images, &used.collect(), &rules(Some(0), None))
        };
        let agreed = plan(&[]).agreed(&plan(&["a"]));
        let digests: Vec<Digest> = agreed.iter().map(|it| it.image.digest).collect();
        assert_eq!(digests, [digest("b")]);
    }
}
