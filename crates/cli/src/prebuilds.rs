//! Native files for other platforms, left out of a layer that asks for it.
//!
//! Which they are is the judgement of lint's rule `foreign-prebuild`, on the tree of this layer.

use std::fs::File;
use std::io::Read;

use anyhow::{Context as _, Result};
use tierce_lambda::{
    BaseFacts, CLibrary, Collector, EntryKind, Packing, RawEntry, RawPath, foreign_prebuilds,
};
use tierce_layer::{Content, ContentError, EntryKind as TreeKind, EntryPath, Notice, Tree};
use tierce_oci::Platform;

/// The platform whose files stay.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct PruneFor {
    architecture: String,
    has_musl: Option<bool>,
}

impl PruneFor {
    /// That of an image on a base with these facts.
    pub(crate) fn of(facts: &BaseFacts, platform: &Platform) -> Self {
        Self {
            architecture: platform.architecture.clone(),
            has_musl: facts.libc.map(|libc| libc == CLibrary::Musl),
        }
    }
}

/// Endings of files that are text whoever made them: they need not be opened.
const TEXT: [&[u8]; 11] = [
    b".js", b".mjs", b".cjs", b".ts", b".json", b".map", b".md", b".py", b".pyi", b".pyc", b".txt",
];

/// Takes the files for other platforms out of `tree`, and says how many there were.
pub(crate) fn prune(tree: &mut Tree, target: &PruneFor, notices: &mut Vec<Notice>) -> Result<()> {
    let mut collector = Collector::default();
    for (path, entry) in tree.iter() {
        let TreeKind::File(file) = &entry.kind else {
            continue;
        };
        if TEXT.iter().any(|ending| path.as_bytes().ends_with(ending)) {
            continue;
        }
        let raw = RawEntry {
            path: RawPath::new(path.as_bytes()),
            kind: EntryKind::File,
            mode: entry.attributes.mode,
            uid: 0,
            gid: 0,
            size: file.content.size(),
            modified: 0,
        };
        let context = || format!("could not read `{path}`");
        let mut bytes = open(&file.content).with_context(context)?;
        collector.add(raw, &mut bytes).with_context(context)?;
    }
    let facts = collector.finish(0, Packing::None);
    let found = foreign_prebuilds(&facts, &target.architecture, target.has_musl);
    let (mut first, mut files, mut bytes) = (None, 0, 0);
    for path in &found {
        let path = EntryPath::new(path)?;
        let gone = tree
            .iter()
            .filter(|(found, _)| **found == path || found.is_below(&path));
        for (found, entry) in gone {
            if let TreeKind::File(file) = &entry.kind {
                files += 1;
                bytes += file.content.size();
                first.get_or_insert_with(|| found.clone());
            }
        }
        tree.remove(&path);
    }
    if let Some(first) = first {
        notices.push(Notice::PrebuildsPruned {
            first,
            files,
            bytes,
        });
    }
    Ok(())
}

/// The bytes of a file in a tree. Of one on disk as few are read as are asked for: whether it is what
/// it was is found out when the layer is sealed.
fn open(content: &Content) -> Result<Box<dyn Read>> {
    if let Content::Disk(file) = content {
        return Ok(Box::new(File::open(file.path())?));
    }
    let mut bytes = Vec::new();
    content.read_pieces(1 << 20, |piece| {
        bytes.extend_from_slice(piece);
        Ok::<_, ContentError>(())
    })?;
    Ok(Box::new(std::io::Cursor::new(bytes)))
}
