//! Where the archive is cut into segments.
//!
//! Cuts fall between entries, and where they fall depends on the entries near by alone, so that a
//! changed or added file changes the segment it is in and leaves the others as they were.
//!
//! All of it follows from names and sizes: the cuts are known before a file is opened, so segments
//! can be read in any order and on any thread. What a segment *would* read is summed up in its
//! [`Signature`].

use std::ops::Range;

use crate::content::ContentError;
use crate::header::{END, padding, write_header};
use crate::path::EntryPath;
use crate::plan::{Plan, Record, RecordKind};
use crate::seal::{Observed, Observer};
use crate::signature::{Signature, Signer};

/// The most a segment of gathered records holds, the size of which on a file has its own segments,
/// and the length of those.
pub(crate) const MOST: usize = 1 << 20;

/// The least a segment holds before it may close early.
const LEAST: usize = 256 << 10;

/// Which bytes of the archive a segment is.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Span {
    /// Whole records of the plan.
    Records(Range<usize>),
    /// Bytes of one record.
    Part { record: usize, bytes: Range<u64> },
    /// The blocks that end the archive.
    End,
}

/// A segment, nothing of which has been read.
#[derive(Debug, Clone)]
pub(crate) struct Segment {
    span: Span,
    /// How many bytes of the archive it is.
    pub(crate) length: usize,
    /// What it would read; `None` when that cannot be told without reading.
    pub(crate) signature: Option<Signature>,
}

/// Why the bytes of a segment could not be had.
#[derive(Debug)]
pub(crate) struct EntryFailure {
    /// The entry.
    pub(crate) path: EntryPath,
    /// What was wrong with its source.
    pub(crate) source: ContentError,
}

/// Cuts the archive of `plan`.
pub(crate) fn cut(plan: &Plan) -> Vec<Segment> {
    let mut cutter = Cutter {
        segments: Vec::new(),
        first: 0,
        length: 0,
        signer: Signer::new(),
    };
    let mut headers = Vec::new();
    for (index, record) in plan.records().iter().enumerate() {
        headers.clear();
        let size = head_of(record, plan.modified(), &mut headers);
        let content = content_of(record);
        let length = headers.len() as u64 + size + padding(size) as u64;
        if size >= MOST as u64 {
            cutter.close(index);
            cutter.cut_record(index, length, &headers, content);
            cutter.first = index + 1;
            continue;
        }
        let length = usize::try_from(length).expect("a small file with its headers fits");
        if cutter.length + length > MOST {
            cutter.close(index);
        }
        cutter.length += length;
        cutter.signer.take(&headers);
        if let Some(content) = content.filter(|_| size > 0) {
            cutter.signer.observe(content);
        }
        if cutter.length >= LEAST && closes_after(&record.path) {
            cutter.close(index + 1);
        }
    }
    cutter.close(plan.records().len());
    cutter.signer.take(&END);
    let signature = cutter.signer.finish();
    cutter.segments.push(Segment {
        span: Span::End,
        length: END.len(),
        signature,
    });
    cutter.segments
}

struct Cutter {
    segments: Vec<Segment>,
    /// The first record of the segment being gathered, and its length so far.
    first: usize,
    length: usize,
    signer: Signer,
}

impl Cutter {
    /// Ends the segment being gathered before the record `end`.
    fn close(&mut self, end: usize) {
        let first = std::mem::replace(&mut self.first, end);
        let length = std::mem::take(&mut self.length);
        let signature = std::mem::take(&mut self.signer).finish();
        if length > 0 {
            self.segments.push(Segment {
                span: Span::Records(first..end),
                length,
                signature,
            });
        }
    }

    fn cut_record(
        &mut self,
        record: usize,
        length: u64,
        headers: &[u8],
        content: Option<&crate::content::Content>,
    ) {
        let mut start = 0;
        while start < length {
            let end = length.min(start + MOST as u64);
            let mut signer = Signer::new();
            signer.take(headers);
            signer.take(&start.to_le_bytes());
            if let Some(content) = content {
                signer.observe(content);
            }
            self.segments.push(Segment {
                span: Span::Part {
                    record,
                    bytes: start..end,
                },
                length: usize::try_from(end - start).expect("at most a MiB"),
                signature: signer.finish(),
            });
            start = end;
        }
    }
}

impl Segment {
    /// Reads the files of the segment and appends its bytes of the archive to `bytes`.
    ///
    /// What is read is what the plan promises, or this fails. After a failure `bytes` is worth
    /// nothing. `observer` is told of what was read.
    pub(crate) fn assemble(
        &self,
        plan: &Plan,
        observer: Option<&dyn Observer>,
        bytes: &mut Vec<u8>,
    ) -> Result<(), EntryFailure> {
        let observe = |position: usize, offset: u64, bytes: &[u8]| {
            if let Some(observer) = observer {
                observer.observe(Observed {
                    position,
                    record: &plan.records()[position],
                    modified: plan.modified(),
                    offset,
                    bytes,
                });
            }
        };
        match &self.span {
            Span::Records(records) => {
                for position in records.clone() {
                    let record = &plan.records()[position];
                    let size = head_of(record, plan.modified(), bytes);
                    let start = bytes.len();
                    if size > 0 {
                        append_content(record, 0..size, bytes)?;
                    }
                    observe(position, 0, &bytes[start..]);
                    bytes.resize(bytes.len() + padding(size), 0);
                }
            }
            Span::Part {
                record,
                bytes: part,
            } => {
                let position = *record;
                let record = &plan.records()[position];
                let mut headers = Vec::new();
                let size = head_of(record, plan.modified(), &mut headers);
                let head = headers.len() as u64;
                let overlap = |from: u64, to: u64| {
                    let start = part.start.clamp(from, to) - from;
                    start..(part.end.clamp(from, to) - from).max(start)
                };
                bytes.extend_from_slice(&headers[in_memory(overlap(0, head))]);
                let content = overlap(head, head + size);
                if !content.is_empty() {
                    let (start, offset) = (bytes.len(), content.start);
                    append_content(record, content, bytes)?;
                    observe(position, offset, &bytes[start..]);
                }
                let tail = overlap(head + size, head + size + padding(size) as u64);
                bytes.resize(bytes.len() + in_memory(tail).len(), 0);
            }
            Span::End => bytes.extend_from_slice(&END),
        }
        Ok(())
    }
}

fn in_memory(range: Range<u64>) -> Range<usize> {
    let narrow = |at: u64| usize::try_from(at).expect("at most a MiB of headers and padding");
    narrow(range.start)..narrow(range.end)
}

fn append_content(
    record: &Record,
    range: Range<u64>,
    bytes: &mut Vec<u8>,
) -> Result<(), EntryFailure> {
    let Some(content) = content_of(record) else {
        return Ok(());
    };
    content
        .append_range(range, bytes)
        .map_err(|source| EntryFailure {
            path: record.path.clone(),
            source,
        })
}

fn content_of(record: &Record) -> Option<&crate::content::Content> {
    match &record.kind {
        RecordKind::File(content) => Some(content),
        _ => None,
    }
}

/// Appends the headers of a record; gives the size of its content.
fn head_of(record: &Record, modified: u64, headers: &mut Vec<u8>) -> u64 {
    let size = content_of(record).map_or(0, crate::content::Content::size);
    let kind = record.kind.header();
    write_header(headers, &record.path, kind, &record.attributes, modified);
    size
}

/// Whether a segment that is long enough closes after this entry: true of every 64th path, whatever
/// stands before it, so that two archives that differ find back to the same cuts.
fn closes_after(path: &EntryPath) -> bool {
    crc32fast::hash(path.as_bytes()).is_multiple_of(64)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use tierce_oci::Digest;

    use super::*;
    use crate::content::Content;
    use crate::entry::Entry;
    use crate::links::BaseLinks;
    use crate::tree::Tree;

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
        let read = |segment: &Segment| {
            let mut bytes = Vec::new();
            segment.assemble(&plan, None, &mut bytes).unwrap();
            assert_eq!(bytes.len(), segment.length);
            assert!(segment.signature.is_some());
            bytes
        };
        cut(&plan).iter().map(read).collect()
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
