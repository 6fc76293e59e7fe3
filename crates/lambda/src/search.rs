//! Looks for a name in a content that comes in pieces.

use std::collections::BTreeMap;

use memchr::memmem;

/// The variable that names the Runtime API, as every client of it has to.
const NAME: &[u8] = b"AWS_LAMBDA_RUNTIME_API";
/// The same as .NET writes it into programs.
const WIDE_NAME: [u8; 2 * NAME.len()] = {
    let mut wide = [0; 2 * NAME.len()];
    let mut at = 0;
    while at < NAME.len() {
        wide[2 * at] = NAME[at];
        at += 1;
    }
    wide
};
/// As much of one piece as may belong to a name that ends in the next.
const EDGE: usize = WIDE_NAME.len() - 1;

/// Whether `bytes` name the Runtime API.
pub(crate) fn names_runtime_api(bytes: &[u8]) -> bool {
    memmem::find(bytes, NAME).is_some() || memmem::find(bytes, &WIDE_NAME).is_some()
}

/// Looks through pieces that come in their order.
#[derive(Debug, Default)]
pub(crate) struct InOrder {
    found: bool,
    edge: Vec<u8>,
}

impl InOrder {
    pub(crate) fn take(&mut self, piece: &[u8]) {
        if self.found {
            return;
        }
        let start = &piece[..piece.len().min(EDGE)];
        self.edge.extend_from_slice(start);
        self.found = names_runtime_api(&self.edge) || names_runtime_api(piece);
        if piece.len() > EDGE {
            self.edge.clear();
            self.edge.extend_from_slice(&piece[piece.len() - EDGE..]);
        } else {
            self.edge.drain(..self.edge.len().saturating_sub(EDGE));
        }
    }

    pub(crate) fn found(&self) -> bool {
        self.found
    }
}

/// Looks through pieces that come in any order.
#[derive(Debug, Default)]
pub(crate) struct InPieces {
    found: bool,
    /// The edges of each piece by where it begins.
    pieces: BTreeMap<u64, Edges>,
}

#[derive(Debug)]
struct Edges {
    end: u64,
    first: Vec<u8>,
    last: Vec<u8>,
}

impl InPieces {
    /// Takes the piece that begins at `offset`; one that comes twice counts once.
    pub(crate) fn take(&mut self, offset: u64, piece: &[u8]) {
        self.found |= names_runtime_api(piece);
        let short = piece.len().min(EDGE);
        let edges = Edges {
            end: offset + piece.len() as u64,
            first: piece[..short].to_vec(),
            last: piece[piece.len() - short..].to_vec(),
        };
        self.pieces.insert(offset, edges);
    }

    /// Takes the pieces of another search in the same content.
    pub(crate) fn join(&mut self, other: Self) {
        self.found |= other.found;
        self.pieces.extend(other.pieces);
    }

    /// Whether it was in a content of `size` bytes; `None` when some of it has not come.
    pub(crate) fn found(&self, size: u64) -> Option<bool> {
        let (mut end, mut found) = (0, self.found);
        let mut across = InOrder::default();
        for (offset, edges) in &self.pieces {
            if *offset != end {
                return None;
            }
            across.take(&edges.first);
            if edges.end - offset > EDGE as u64 {
                across.edge.clone_from(&edges.last);
            }
            found |= across.found();
            end = edges.end;
        }
        (end == size).then_some(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_name_is_found_wherever_it_is_cut(
            before in 0_usize..60,
            after in 0_usize..60,
            there: bool,
            cuts in proptest::collection::btree_set(0_usize..140, 0..12),
            backwards: bool,
        ) {
            let name = if there { NAME } else { b"AWS_LAMBDA_RUNTIME_AP1" };
            let whole = [&vec![b'A'; before][..], name, &vec![b'I'; after][..]].concat();
            let mut ends: Vec<usize> = cuts.into_iter().filter(|cut| *cut < whole.len()).collect();
            ends.push(whole.len());
            let mut start = 0;
            let mut pieces = Vec::new();
            for end in ends {
                if end > start {
                    pieces.push((start as u64, &whole[start..end]));
                    start = end;
                }
            }
            let mut in_order = InOrder::default();
            for (_, piece) in &pieces {
                in_order.take(piece);
            }
            prop_assert_eq!(in_order.found(), there);
            let mut in_pieces = InPieces::default();
            if backwards {
                pieces.reverse();
            }
            for (number, (offset, piece)) in pieces.iter().enumerate() {
                in_pieces.take(*offset, piece);
                let is_last = number + 1 == pieces.len();
                let found = in_pieces.found(whole.len() as u64);
                prop_assert_eq!(found, is_last.then_some(there));
            }
        }
    }
}
