//! Layers over each other, told once more and simply: one tree in memory, changed by one member
//! after the other. What comes out on disk must be that.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use tar::EntryType;
use tierce_layer::Limits;
use tierce_runner::rootfs::{Form, StackError};

use super::{Bench, append, diff_id, ended, listing, seen_by_find, seen_in_overlay};

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Directory(u32),
    File(u32, String),
    Symlink(String),
    Link(String),
    Whiteout,
    Opaque,
}

type Member = (String, Kind);

/// What a model cannot say: members that are refused, or on which unpackers do not agree.
struct Unclear;

type Tree = BTreeMap<String, Kind>;

fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(parent, _)| parent)
}

/// A path and the directories that it lies in, the nearest first, the root apart.
fn way(path: &str) -> impl Iterator<Item = &str> {
    std::iter::successors(Some(path), |path| Some(parent(path))).take_while(|path| !path.is_empty())
}

/// Follows symlinks, which are added to `through`; what is missing is taken as it is.
fn follow(tree: &Tree, path: &str, through: &mut BTreeSet<String>) -> Result<String, Unclear> {
    let mut left: Vec<String> = path.split('/').rev().map(str::to_owned).collect();
    let mut way: Vec<String> = Vec::new();
    let mut links = 0;
    while let Some(name) = left.pop() {
        match &*name {
            "" | "." => {}
            ".." => {
                way.pop();
            }
            _ => {
                way.push(name);
                match tree.get(&way.join("/")) {
                    Some(Kind::Symlink(target)) => {
                        links += 1;
                        if links > 20 {
                            return Err(Unclear);
                        }
                        through.insert(way.join("/"));
                        way.pop();
                        if target.starts_with('/') {
                            way.clear();
                        }
                        left.extend(target.split('/').rev().map(str::to_owned));
                    }
                    Some(Kind::File(..)) => return Err(Unclear),
                    // A `..` behind it would be walked by some and refused by others.
                    None if left.iter().any(|name| name == "..") => return Err(Unclear),
                    _ => {}
                }
            }
        }
    }
    Ok(way.join("/"))
}

fn remove(tree: &mut Tree, path: &str) {
    let inside = format!("{path}/");
    tree.retain(|name, _| name != path && !name.starts_with(&inside));
}

fn apply(tree: &mut Tree, layer: &[Member]) -> Result<(), Unclear> {
    let own: BTreeMap<&str, &Kind> = layer
        .iter()
        .filter(|(_, kind)| !matches!(kind, Kind::Whiteout | Kind::Opaque))
        .map(|(path, kind)| (&**path, kind))
        .collect();
    // What lies in something that is no directory is refused in one order of members, and in another
    // replaced.
    let is_file = |path: &str| matches!(own.get(path), Some(Kind::File(..) | Kind::Link(_)));
    for path in own.keys() {
        if way(parent(path)).any(is_file) {
            return Err(Unclear);
        }
    }
    delete(tree, layer, &own)?;
    let placed = place(tree, layer)?;
    // The same of what comes there through symlinks of its own.
    for (path, kind) in layer {
        let deleted_in = match kind {
            Kind::Whiteout => parent(path),
            Kind::Opaque => path,
            _ => continue,
        };
        let is_other = |path: &str| !matches!(tree[path], Kind::Directory(_));
        if way(deleted_in).any(|path| placed.contains(path) && is_other(path)) {
            return Err(Unclear);
        }
    }
    Ok(())
}

/// Applies the deletions of a layer which also has `own`.
fn delete(tree: &mut Tree, layer: &[Member], own: &BTreeMap<&str, &Kind>) -> Result<(), Unclear> {
    let before = tree.clone();
    for (path, kind) in layer {
        if !matches!(kind, Kind::Whiteout | Kind::Opaque) {
            continue;
        }
        let whole = *kind == Kind::Whiteout || own.contains_key(&**path);
        // How a deletion meets what its own layer puts on the way to it has tests of its own.
        for ancestor in way(parent(path)) {
            let passable = matches!(
                (own.get(ancestor), tree.get(ancestor)),
                (None, _) | (Some(Kind::Directory(_)), Some(Kind::Directory(_)))
            );
            if !passable {
                return Err(Unclear);
            }
        }
        if !matches!(own.get(&**path), None | Some(Kind::Directory(_))) {
            if *kind == Kind::Opaque {
                return Err(Unclear);
            }
            continue;
        }
        if whole {
            let Ok(place) = follow(&before, parent(path), &mut BTreeSet::new()) else {
                continue;
            };
            let name = path.rsplit('/').next().unwrap_or_default();
            remove(tree, &join(&place, name));
        } else {
            let Ok(place) = follow(&before, path, &mut BTreeSet::new()) else {
                continue;
            };
            let inside = join(&place, "");
            tree.retain(|name, _| !name.starts_with(&inside));
        }
    }
    Ok(())
}

/// Puts the members of a layer into the tree; says what is there by it.
fn place(tree: &mut Tree, layer: &[Member]) -> Result<BTreeSet<String>, Unclear> {
    let mut placed: BTreeSet<String> = BTreeSet::new();
    let mut described: BTreeSet<String> = BTreeSet::new();
    let mut through: BTreeSet<String> = BTreeSet::new();
    // Hardlinks to symlinks. Who unpacks a layer apart cannot know where one to a lower layer's leads.
    let mut linked: BTreeSet<String> = BTreeSet::new();
    for (path, kind) in layer {
        let place = match kind {
            Kind::Whiteout | Kind::Opaque => continue,
            _ => follow(tree, parent(path), &mut through)?,
        };
        let mut directory = String::new();
        for name in place.split('/').filter(|name| !name.is_empty()) {
            directory = join(&directory, name);
            match tree.get(&directory) {
                Some(Kind::Directory(_)) => {}
                Some(_) => return Err(Unclear),
                None => {
                    tree.insert(directory.clone(), Kind::Directory(0o755));
                    placed.insert(directory.clone());
                }
            }
        }
        let path = join(&place, path.rsplit('/').next().unwrap_or_default());
        let is_link = matches!(kind, Kind::Link(_));
        let kind = match kind {
            Kind::Link(target) => {
                let directory = follow(tree, parent(target), &mut through)?;
                let name = target.rsplit('/').next().unwrap_or_default();
                let target = join(&directory, name);
                match tree.get(&target) {
                    Some(kind @ (Kind::File(..) | Kind::Symlink(_))) => kind.clone(),
                    _ => return Err(Unclear),
                }
            }
            kind => kind.clone(),
        };
        if through.intersection(&linked).next().is_some() {
            return Err(Unclear);
        }
        if is_link && matches!(kind, Kind::Symlink(_)) {
            linked.insert(path.clone());
        }
        match (&kind, tree.get(&path)) {
            (Kind::Directory(mode), Some(Kind::Directory(before))) => {
                if described.contains(&path) && mode != before {
                    return Err(Unclear);
                }
            }
            _ => {
                // Reached in two ways, one place: which of them comes last is nobody's promise.
                let inside = format!("{path}/");
                if placed
                    .iter()
                    .any(|name| *name == path || name.starts_with(&inside))
                {
                    return Err(Unclear);
                }
                // A symlink that a member came through, which is then gone for the next: where that
                // one goes depends on its order, and on whether each layer is unpacked apart.
                if through.contains(&path) {
                    return Err(Unclear);
                }
                remove(tree, &path);
            }
        }
        placed.insert(path.clone());
        if let Kind::Directory(_) = kind {
            described.insert(path.clone());
        }
        tree.insert(path, kind);
    }
    Ok(placed)
}

fn join(directory: &str, name: &str) -> String {
    if directory.is_empty() {
        return name.to_owned();
    }
    format!("{directory}/{name}")
}

fn bytes(layer: &[Member]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (path, kind) in layer {
        let (name, entry, mode, target, content) = match kind {
            Kind::Directory(mode) => (path.clone(), EntryType::Directory, *mode, "", ""),
            Kind::File(mode, content) => (path.clone(), EntryType::Regular, *mode, "", &**content),
            Kind::Symlink(target) => (path.clone(), EntryType::Symlink, 0o777, &**target, ""),
            Kind::Link(target) => (path.clone(), EntryType::Link, 0o644, &**target, ""),
            Kind::Whiteout => {
                let name = format!(".wh.{}", path.rsplit('/').next().unwrap_or_default());
                (join(parent(path), &name), EntryType::Regular, 0, "", "")
            }
            Kind::Opaque => (join(path, ".wh..wh..opq"), EntryType::Regular, 0, "", ""),
        };
        append(
            &mut archive,
            name.as_bytes(),
            entry,
            mode,
            target.as_bytes(),
            content.as_bytes(),
        );
    }
    ended(archive)
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4)
        .prop_map(|names| names.join("/"))
}

fn kind() -> impl Strategy<Value = Kind> {
    let mode = || prop::sample::select(vec![0o755, 0o711, 0o700]);
    let target = prop::sample::select(vec!["a", "b", "/b", "../c", "b/a", "/a/c", "..", "d"]);
    prop_oneof![
        4 => mode().prop_map(Kind::Directory),
        4 => (mode(), "[a-z]{0,3}").prop_map(|(mode, content)| Kind::File(mode, content)),
        2 => target.prop_map(|target| Kind::Symlink(target.to_owned())),
        2 => path().prop_map(Kind::Link),
        2 => Just(Kind::Whiteout),
        1 => Just(Kind::Opaque),
    ]
}

/// A layer in which each path has one member, in an order in which unpackers agree on it.
fn layer() -> impl Strategy<Value = Vec<Member>> {
    prop::collection::vec((path(), kind()), 1..8).prop_map(|members| {
        let mut taken = BTreeSet::new();
        let mut members: Vec<_> = members
            .into_iter()
            .filter(|(path, kind)| {
                let deletes = matches!(kind, Kind::Whiteout | Kind::Opaque);
                deletes || taken.insert(path.clone())
            })
            .collect();
        // By components, as they come when directories are walked; but nothing is linked before it is
        // there.
        members.sort_by_key(|(path, kind)| match kind {
            Kind::Link(_) => (true, Vec::new()),
            _ => (false, path.split('/').map(str::to_owned).collect()),
        });
        members
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn layers_come_to_what_the_model_says(
        layers in prop::collection::vec(layer(), 1..5),
        in_overlay in prop::sample::select(vec![true, false, false, false, false, false, false]),
    ) {
        let mut tree = Tree::new();
        let clear = layers.iter().all(|layer| apply(&mut tree, layer).is_ok());
        let bench = Bench::new();
        let mut ids = Vec::new();
        for layer in &layers {
            let bytes = bytes(layer);
            let id = diff_id(&bytes);
            let unpacked = bench.cache.unpack(id, Form::AsPacked, &bytes[..], Limits::default());
            // What the model does not know must still be told or unpacked.
            if !clear && unpacked.is_err() {
                return Ok(());
            }
            unpacked.unwrap();
            ids.push(id);
        }
        let flat = bench.cache.flatten(&ids, Form::AsPacked, &[]);
        // Whatever layers do to each other, it is not the file system that refuses it.
        let refused = matches!(flat, Err(StackError::File(_) | StackError::Cache(_)));
        prop_assert!(!refused, "{flat:?}");
        if !clear {
            return Ok(());
        }
        let flat = flat.unwrap();
        let expected: BTreeMap<_, _> = tree
            .into_iter()
            .map(|(path, kind)| {
                let line = match kind {
                    Kind::Directory(mode) => format!("{mode:o} directory"),
                    Kind::File(mode, content) => format!("{mode:o} {content}"),
                    Kind::Symlink(target) => format!("-> {target}"),
                    Kind::Link(_) | Kind::Whiteout | Kind::Opaque => unreachable!(),
                };
                (path, line)
            })
            .collect();
        prop_assert_eq!(listing(&flat.directories[0]), expected);
        if in_overlay {
            let stacked = bench.cache.stack(&ids, Form::AsPacked, &[]).unwrap();
            prop_assert_eq!(
                seen_in_overlay(&stacked),
                seen_by_find("", &flat.directories[0])
            );
        }
    }
}
