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
