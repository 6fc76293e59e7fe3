//! Reads layer tars and applies them on top of each other, in memory.
//!
//! The reader shares no code with tierce or the `tar` crate, so that a mistake in either shows.

use std::collections::BTreeMap;
use std::fmt;

/// What an entry of a layer is.
#[derive(Clone, PartialEq, Eq)]
pub enum Node {
    /// A directory.
    Directory,
    /// A regular file and its bytes.
    File(Vec<u8>),
    /// A symbolic link and its target as written.
    Symlink(String),
    /// A hard link and the path of the file it shares. [`extract`] resolves it to that file.
    Hardlink(String),
    /// Anything else, by its type flag: devices, FIFOs.
    Other(u8),
}

impl fmt::Debug for Node {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory => formatter.write_str("Directory"),
            Self::File(bytes) if bytes.len() <= 64 => {
                write!(formatter, "File(\"{}\")", bytes.escape_ascii())
            }
            Self::File(bytes) => write!(formatter, "File({} bytes)", bytes.len()),
            Self::Symlink(target) => write!(formatter, "Symlink({target:?})"),
            Self::Hardlink(target) => write!(formatter, "Hardlink({target:?})"),
            Self::Other(flag) => write!(formatter, "Other({:?})", char::from(*flag)),
        }
    }
}

/// One entry of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its path without `./` before or `/` after; what is not UTF-8 is escaped.
    pub path: String,
    /// Its path exactly as written, escaped alike.
    pub raw_path: String,
    /// What it is.
    pub node: Node,
    /// Its permission bits.
    pub mode: u32,
    /// Its owner's number.
    pub uid: u64,
    /// Its group's number.
    pub gid: u64,
    /// Its modification time in seconds.
    pub mtime: u64,
    /// Names of owner and group, empty where there are none.
    pub owner: (String, String),
    /// Its extended attributes.
    pub xattrs: BTreeMap<String, Vec<u8>>,
    /// The keys of all its PAX records, in the order they stand.
    pub pax_keys: Vec<String>,
}

/// A file system, by path.
pub type Tree = BTreeMap<String, Entry>;

const BLOCK: usize = 512;

/// Reads every entry of an uncompressed tar, in order.
///
/// It is strict: checksums, padding and the two zero blocks at the end are demanded, and nothing
/// may follow them.
pub fn read_tar(bytes: &[u8]) -> Result<Vec<Entry>, String> {
    let mut entries = Vec::new();
    let mut offset = 0;
    let mut pax: Vec<(String, Vec<u8>)> = Vec::new();
    let mut long_name: Option<Vec<u8>> = None;
    let mut long_link: Option<Vec<u8>> = None;
    loop {
        let Some(header) = bytes.get(offset..offset + BLOCK) else {
            return Err(format!("the archive breaks off at byte {offset}"));
        };
        if header.iter().all(|byte| *byte == 0) {
            let rest = &bytes[offset..];
            if rest.len() < 2 * BLOCK || rest.iter().any(|byte| *byte != 0) {
                return Err(format!(
                    "the archive does not end in zero blocks at byte {offset}"
                ));
            }
            return Ok(entries);
        }
        let here = |problem: &str| format!("{problem} in the header at byte {offset}");
        if !has_right_checksum(header) {
            return Err(here("wrong checksum"));
        }
        let flag = header[156];
        let override_of = |key: &str| {
            let found = pax.iter().rev().find(|(name, _)| name == key);
            found.map(|(_, value)| value.clone())
        };
        let own_size = number(&header[124..136]).ok_or_else(|| here("bad size"))?;
        let is_meta = matches!(flag, b'x' | b'g' | b'L' | b'K');
        let size = match override_of("size").filter(|_| !is_meta) {
            Some(text) => decimal(&text).ok_or_else(|| here("bad PAX size"))?,
            None => own_size,
        };
        let size = usize::try_from(size).map_err(|_| here("huge size"))?;
        let start = offset + BLOCK;
        let content = start
            .checked_add(size)
            .and_then(|end| bytes.get(start..end))
            .ok_or_else(|| here("content breaks off"))?;
        offset = start + size.next_multiple_of(BLOCK);
        match flag {
            b'x' => {
                pax = pax_records(content)?;
                continue;
            }
            b'g' => continue,
            b'L' => {
                long_name = Some(until_nul(content).to_vec());
                continue;
            }
            b'K' => {
                long_link = Some(until_nul(content).to_vec());
                continue;
            }
            _ => {}
        }
        let name = override_of("path")
            .or(long_name.take())
            .unwrap_or_else(|| header_name(header));
        let link = override_of("linkpath")
            .or(long_link.take())
            .unwrap_or_else(|| until_nul(&header[157..257]).to_vec());
        let field = |range: std::ops::Range<usize>| number(&header[range]);
        let raw_path = text(&name);
        let node = match flag {
            b'0' | 0 | b'7' => Node::File(content.to_vec()),
            b'1' => Node::Hardlink(normalise(&text(&link))),
            b'2' => Node::Symlink(text(&link)),
            b'5' => Node::Directory,
            other => Node::Other(other),
        };
        let id = |key: &str, range| override_of(key).and_then(|v| decimal(&v)).or(field(range));
        let xattrs = pax.iter().filter_map(|(key, value)| {
            Some((key.strip_prefix("SCHILY.xattr.")?.to_owned(), value.clone()))
        });
        entries.push(Entry {
            path: normalise(&raw_path),
            raw_path,
            node,
            mode: field(100..108)
                .and_then(|mode| u32::try_from(mode).ok())
                .ok_or_else(|| format!("bad mode in the header before byte {start}"))?
                & 0o7777,
            uid: id("uid", 108..116).unwrap_or_default(),
            gid: id("gid", 116..124).unwrap_or_default(),
            mtime: field(136..148).unwrap_or_default(),
            owner: (
                text(until_nul(&header[265..297])),
                text(until_nul(&header[297..329])),
            ),
            xattrs: xattrs.collect(),
            pax_keys: pax.iter().map(|(key, _)| key.clone()).collect(),
        });
        pax.clear();
    }
}

/// Applies layers from the lowest to the highest, whiteouts included.
pub fn extract<L: AsRef<[u8]>>(layers: impl IntoIterator<Item = L>) -> Result<Tree, String> {
    let mut tree = Tree::new();
    for (number, layer) in layers.into_iter().enumerate() {
        let entries = read_tar(layer.as_ref()).map_err(|why| format!("layer {number}: {why}"))?;
        // Whiteouts hide only what lower layers brought, wherever they stand in their own.
        for entry in &entries {
            let (parent, name) = entry.path.rsplit_once('/').unwrap_or(("", &entry.path));
            if name == ".wh..wh..opq" {
                let inside = if parent.is_empty() {
                    String::new()
                } else {
                    format!("{parent}/")
                };
                tree.retain(|path, _| !path.starts_with(&inside));
            } else if let Some(hidden) = name.strip_prefix(".wh.") {
                let hidden = if parent.is_empty() {
                    hidden.to_owned()
                } else {
                    format!("{parent}/{hidden}")
                };
                remove(&mut tree, &hidden);
            }
        }
        for mut entry in entries {
            let name = entry.path.rsplit('/').next().unwrap_or_default();
            if name.starts_with(".wh.") || entry.path.is_empty() {
                continue;
            }
            if let Node::Hardlink(target) = &entry.node {
                let found = tree.get(target);
                let found = found.ok_or_else(|| {
                    format!(
                        "layer {number}: {} links to {target}, which is not there",
                        entry.path
                    )
                })?;
                entry.node = found.node.clone();
            }
            if entry.node != Node::Directory {
                remove(&mut tree, &entry.path);
            }
            tree.insert(entry.path.clone(), entry);
        }
    }
    Ok(tree)
}

fn remove(tree: &mut Tree, path: &str) {
    tree.remove(path);
    let inside = format!("{path}/");
    tree.retain(|other, _| !other.starts_with(&inside));
}

fn has_right_checksum(header: &[u8]) -> bool {
    let counted = |(at, byte): (usize, &u8)| {
        // The checksum's own field counts as spaces.
        if (148..156).contains(&at) {
            32
        } else {
            u64::from(*byte)
        }
    };
    number(&header[148..156]) == Some(header.iter().enumerate().map(counted).sum())
}

/// A number in octal, or in GNU's base 256 when the first bit is set.
fn number(field: &[u8]) -> Option<u64> {
    if field.first().is_some_and(|byte| byte & 0x80 != 0) {
        let significant = field.get(field.len().checked_sub(8)?..)?;
        return Some(u64::from_be_bytes(significant.try_into().ok()?));
    }
    let digits = std::str::from_utf8(field).ok()?;
    let digits = digits.trim_matches(|c| c == ' ' || c == '\0');
    if digits.is_empty() {
        return Some(0);
    }
    u64::from_str_radix(digits, 8).ok()
}

fn decimal(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// `LENGTH KEY=VALUE\n` records: the length rules, whatever the value holds.
fn pax_records(mut bytes: &[u8]) -> Result<Vec<(String, Vec<u8>)>, String> {
    let broken = || "a PAX record is malformed".to_owned();
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let space = bytes
            .iter()
            .position(|byte| *byte == b' ')
            .ok_or_else(broken)?;
        let length = decimal(&bytes[..space]).and_then(|n| usize::try_from(n).ok());
        let length = length.ok_or_else(broken)?;
        let record = bytes.get(space + 1..length).ok_or_else(broken)?;
        let record = record.strip_suffix(b"\n").ok_or_else(broken)?;
        let equals = record
            .iter()
            .position(|byte| *byte == b'=')
            .ok_or_else(broken)?;
        records.push((text(&record[..equals]), record[equals + 1..].to_vec()));
        bytes = &bytes[length..];
    }
    Ok(records)
}

fn header_name(header: &[u8]) -> Vec<u8> {
    let name = until_nul(&header[..100]);
    let prefix = until_nul(&header[345..500]);
    let posix = &header[257..263] == b"ustar\0";
    if posix && !prefix.is_empty() {
        [prefix, b"/", name].concat()
    } else {
        name.to_vec()
    }
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.escape_ascii().to_string(),
    }
}

fn normalise(path: &str) -> String {
    let parts = path
        .split('/')
        .filter(|part| !part.is_empty() && *part != ".");
    parts.collect::<Vec<_>>().join("/")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::images::LayerBuilder;

    fn paths(tree: &Tree) -> Vec<&str> {
        tree.keys().map(String::as_str).collect()
    }

    #[test]
    fn a_layer_reads_back_as_it_was_written() {
        let long = format!("d/{}", "n".repeat(200));
        let tar = LayerBuilder::new()
            .directory("d", 0o755)
            .file(&long, 0o640, b"x")
            .symlink("s", "d")
            .hardlink("h", &long)
            .xattr("security.capability", b"a\nb=c")
            .tar();
        let entries = read_tar(&tar).unwrap();
        assert_eq!(entries[0].raw_path, "d/");
        assert_eq!(entries[1].path, long);
        assert_eq!(
            (entries[1].mode, &entries[1].node),
            (0o640, &Node::File(b"x".to_vec()))
        );
        assert_eq!(entries[2].node, Node::Symlink("d".to_owned()));
        assert_eq!(entries[3].node, Node::Hardlink(long));
        assert_eq!(entries[3].xattrs["security.capability"], b"a\nb=c");
        assert!(read_tar(&tar[..tar.len() - 512]).is_err());
    }

    #[test]
    fn whiteouts_hide_lower_layers_only() {
        let lower = LayerBuilder::new()
            .directory("a", 0o755)
            .file("a/1", 0o644, b"1")
            .file("a/2", 0o644, b"2")
            .directory("b", 0o755)
            .file("b/x", 0o644, b"x");
        let upper = LayerBuilder::new()
            .directory("a", 0o755)
            .file("a/2", 0o644, b"new")
            .whiteout("a/1")
            .directory("b", 0o755)
            .file("b/y", 0o644, b"y")
            .opaque("b");
        let tree = extract([lower.tar(), upper.tar()]).unwrap();
        assert_eq!(paths(&tree), ["a", "a/2", "b", "b/y"]);
        let file = extract([LayerBuilder::new().file("a", 0o644, b"f").tar()]).unwrap();
        assert_eq!(paths(&file), ["a"]);
    }

    #[test]
    fn a_file_replaces_a_directory_and_all_in_it() {
        let lower = LayerBuilder::new()
            .directory("a", 0o755)
            .file("a/1", 0o644, b"1");
        let upper = LayerBuilder::new().file("a", 0o644, b"f");
        assert_eq!(paths(&extract([lower.tar(), upper.tar()]).unwrap()), ["a"]);
    }
}
