//! Where the archive is cut into segments.
//!
//! Cuts fall between entries, and where they fall depends on the entries near by alone, so that a
//! changed or added file changes the segment it is in and leaves the others as they were.

use crate::content::ContentError;
use crate::header::{BLOCK, END, HeaderKind, padding, write_header};
use crate::path::EntryPath;
use crate::plan::{Plan, RecordKind};

/// The most a segment of gathered records holds, the size of which on a file has its own segments,
/// and the length of those.
pub(crate) const MOST: usize = 1 << 20;

/// The least a segment holds before it may close early.
const LEAST: usize = 256 << 10;

/// Takes the finished segments, in order.
pub(crate) trait SegmentSink {
    /// Why no more segments are taken.
    type Stop;

    /// Takes what is in `segment` and leaves an empty buffer there.
    fn take(&mut self, segment: &mut Vec<u8>) -> Result<(), Self::Stop>;
}

/// Why an archive could not be written to its end.
#[derive(Debug)]
pub(crate) enum CutError<S> {
    /// The content of an entry could not be had.
    Content(EntryPath, ContentError),
    /// The sink wants no more.
    Stop(S),
}

/// Writes the archive of `plan`, segment by segment. At most one segment is in memory here, beside
/// the headers of one entry.
pub(crate) fn write_segments<S: SegmentSink>(
    plan: &Plan,
    sink: &mut S,
) -> Result<(), CutError<S::Stop>> {
    let mut segment = Vec::with_capacity(MOST);
    let mut headers = Vec::new();
    for record in plan.records() {
        let (kind, content) = match &record.kind {
            RecordKind::Directory => (HeaderKind::Directory, None),
            RecordKind::OpaqueMarker | RecordKind::Whiteout => (HeaderKind::File { size: 0 }, None),
            RecordKind::File(content) => (
                HeaderKind::File {
                    size: content.size(),
                },
                Some(content),
            ),
            RecordKind::Symlink(target) => (HeaderKind::Symlink { target }, None),
            RecordKind::Hardlink(target) => (HeaderKind::Hardlink { target }, None),
        };
        headers.clear();
        write_header(
            &mut headers,
            &record.path,
            kind,
            &record.attributes,
            plan.modified(),
        );
        let failed = |error| CutError::Content(record.path.clone(), error);
        let size = content.map_or(0, crate::content::Content::size);
        let whole = usize::try_from(size).ok().filter(|&size| size < MOST);
        match (whole, content) {
            (None, Some(content)) => {
                flush(&mut segment, sink)?;
                let mut reader = content.open().map_err(failed)?;
                push_cut(&mut segment, &headers, sink)?;
                while reader.remaining() > 0 {
                    let room = MOST - segment.len();
                    reader.append(&mut segment, room).map_err(failed)?;
                    if segment.len() == MOST {
                        flush(&mut segment, sink)?;
                    }
                }
                reader.finish().map_err(failed)?;
                push_cut(&mut segment, &[0; BLOCK][..padding(size)], sink)?;
                flush(&mut segment, sink)?;
            }
            (whole, content) => {
                let whole = whole.unwrap_or(0);
                if segment.len() + headers.len() + whole + padding(size) > MOST {
                    flush(&mut segment, sink)?;
                }
                segment.extend_from_slice(&headers);
                if let Some(content) = content.filter(|_| whole > 0) {
                    let mut reader = content.open().map_err(failed)?;
                    reader.append(&mut segment, whole).map_err(failed)?;
                    reader.finish().map_err(failed)?;
                    segment.resize(segment.len() + padding(size), 0);
                }
                if segment.len() >= LEAST && closes_after(&record.path) {
                    flush(&mut segment, sink)?;
                }
            }
        }
    }
    flush(&mut segment, sink)?;
    segment.extend_from_slice(&END);
    flush(&mut segment, sink)
}

/// Whether a segment that is long enough closes after this entry: true of every 64th path, whatever
/// stands before it, so that two archives that differ find back to the same cuts.
fn closes_after(path: &EntryPath) -> bool {
    crc32fast::hash(path.as_bytes()).is_multiple_of(64)
}

fn push_cut<S: SegmentSink>(
    segment: &mut Vec<u8>,
    mut bytes: &[u8],
    sink: &mut S,
) -> Result<(), CutError<S::Stop>> {
    while !bytes.is_empty() {
        let (now, later) = bytes.split_at(bytes.len().min(MOST - segment.len()));
        segment.extend_from_slice(now);
        bytes = later;
        if segment.len() == MOST {
            flush(segment, sink)?;
        }
    }
    Ok(())
}

fn flush<S: SegmentSink>(segment: &mut Vec<u8>, sink: &mut S) -> Result<(), CutError<S::Stop>> {
    if segment.is_empty() {
        return Ok(());
    }
    sink.take(segment).map_err(CutError::Stop)?;
    debug_assert!(segment.is_empty(), "the sink leaves an empty buffer");
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::convert::Infallible;

    use tierce_oci::Digest;

    use super::*;
    use crate::content::Content;
    use crate::entry::Entry;
    use crate::links::BaseLinks;
    use crate::tree::Tree;

    #[derive(Default)]
    struct Collected(Vec<Vec<u8>>);

    impl SegmentSink for Collected {
        type Stop = Infallible;

        fn take(&mut self, segment: &mut Vec<u8>) -> Result<(), Infallible> {
            self.0.push(std::mem::take(segment));
            Ok(())
        }
    }

    fn segments(files: impl IntoIterator<Item = (String, usize)>) -> Vec<Vec<u8>> {
        let mut tree = Tree::new();
        for (name, size) in files {
            let content = Content::bytes(name.bytes().cycle().take(size).collect::<Vec<_>>());
            let path = EntryPath::new(name).unwrap();
            tree.insert(path, Entry::file(content, 0o644), &mut Vec::new())
                .unwrap();
        }
        let plan = tree
            .settle(Some(&BaseLinks::none()), &mut Vec::new())
            .unwrap();
        let mut collected = Collected::default();
        write_segments(&plan, &mut collected).unwrap();
        collected.0
    }

    fn lengths(files: &[(&str, usize)]) -> Vec<usize> {
        let files = files.iter().map(|&(name, size)| (name.to_owned(), size));
        segments(files).iter().map(Vec::len).collect()
    }

    /// The first names, counted up, after which a long enough segment closes or goes on.
    fn name_that(closes: bool, nth: usize) -> String {
        (0..)
            .map(|number| format!("f{number:05}"))
            .filter(|name| closes_after(&EntryPath::new(name).unwrap()) == closes)
            .nth(nth)
            .unwrap()
    }

    #[test]
    fn large_files_have_their_own_segments_cut_from_the_start_of_the_record() {
        assert_eq!(lengths(&[]), [1024]);
        assert_eq!(lengths(&[("a", MOST)]), [MOST, 512, 1024]);
        assert_eq!(lengths(&[("a", MOST + 1)]), [MOST, 1024, 1024]);
        assert_eq!(lengths(&[("a", 2 * MOST - 512)]), [MOST, MOST, 1024]);
        assert_eq!(lengths(&[("a", 2 * MOST - 511)]), [MOST, MOST, 512, 1024]);
        // The records around it are gathered apart.
        assert_eq!(
            lengths(&[("d/a", MOST), ("d/b", 10), ("d/c", 3 * MOST)]),
            [512, MOST, MOST, MOST, 512, MOST, 512, 1024, 1024]
        );
    }

    #[test]
    fn a_segment_closes_before_a_record_that_would_take_it_over_the_most() {
        let (one, other) = (name_that(false, 0), name_that(false, 1));
        let pair = |first, second| lengths(&[(&one, first), (&other, second)]);
        // Both are of one size class, so they come by name.
        assert_eq!(pair(MOST / 2 - 512, MOST / 2 - 512), [MOST, 1024]);
        assert_eq!(
            pair(MOST / 2 - 512, MOST / 2 - 511),
            [MOST / 2, MOST / 2 + 512, 1024]
        );
        // A record that is larger alone than a segment, with a file that is not.
        assert_eq!(lengths(&[(&one, MOST - 1)]), [MOST + 512, 1024]);
        assert_eq!(pair(MOST - 1, MOST - 512), [MOST + 512, MOST, 1024]);
    }

    #[test]
    fn a_long_enough_segment_closes_after_every_64th_path() {
        let (closing, going_on) = (name_that(true, 0), name_that(false, 0));
        let end = "zzz";
        let after = |name: &str, size| lengths(&[(name, size), (end, 100)]);
        assert_eq!(after(&closing, LEAST - 512), [LEAST, 1024, 1024]);
        assert_eq!(after(&closing, LEAST - 1024), [LEAST - 512 + 1024, 1024]);
        assert_eq!(after(&going_on, LEAST), [LEAST + 512 + 1024, 1024]);
    }

    #[test]
    fn a_new_file_changes_the_segments_around_it_and_no_other() {
        let files = |extra: Option<&str>| {
            let names = (0..3000).map(|number| format!("package/module{number:04}.py"));
            let files: Vec<_> = names.chain(extra.map(str::to_owned)).collect();
            segments(files.into_iter().map(|name| (name, 8000)))
                .iter()
                .map(|segment| Digest::of(segment))
                .collect::<BTreeSet<_>>()
        };
        let before = files(None);
        assert!(before.len() > 25);
        for extra in ["package/a.py", "package/module1500a.py", "package/z.py"] {
            let changed = files(Some(extra)).difference(&before).count();
            assert!(
                changed <= 3,
                "{changed} of {} segments changed",
                before.len()
            );
        }
    }
}
