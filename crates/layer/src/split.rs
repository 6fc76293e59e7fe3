//! One tree as several layers.
//!
//! A layer is compressed, hashed, sent and unpacked in one go, and any change to it sends all of it
//! again. A large tree is therefore cut into several layers, between libraries, by a rule that looks
//! at nothing but the tree: whoever has the same files makes the same layers, and another library
//! more or less moves one of them. The rule is part of layer-format 1, under *Splitting*.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroUsize;

use crate::plan::{Plan, Record, RecordKind};
use crate::unit::{Unit, Units, has_packages};

/// When to split, and how far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SplitSettings {
    /// The length of an archive, in bytes, up to which it stays one layer. A target for the layers
    /// that come out, not their limit: what belongs together is never cut.
    pub budget: u64,
    /// The most layers that come out.
    pub most: NonZeroUsize,
}

impl SplitSettings {
    /// The budget where none is set: 32 MiB.
    ///
    /// Measured with [`SplitSettings::MOST`] on wheels (370 MiB in the archive: numpy, pandas,
    /// scipy, scikit-learn, boto3) and on a `node_modules` (568 MiB, 77,000 entries: next, MUI,
    /// two AWS SDKs). The last column is what a new release of one package moves in the
    /// mean over all packages.
    ///
    /// | budget | layers | largest | a package moves |
    /// |---|---|---|---|
    /// | none | 1, 1 | 370, 568 MiB | 370, 568 MiB |
    /// | 128 MiB | 3, 5 | 156, 222 MiB | 115, 95 MiB |
    /// | 64 MiB | 5, 7 | 138, 190 MiB | 55, 50 MiB |
    /// | 32 MiB | 6, 8 | 138, 190 MiB | 32, 37 MiB |
    /// | 16 MiB | 6, 8 | 138, 190 MiB | 28, 46 MiB |
    ///
    /// The largest is scipy and next, which nothing cuts. With less than this budget so many
    /// packages stand alone that the others have to share too few layers.
    pub const BUDGET: u64 = 32 << 20;
    /// The most layers where no number is set: 8, which is what the trees above come to use. With
    /// 12 a package of the second would move 20 MiB; but clients pull three layers at a time or so,
    /// and each is one more request at every push.
    pub const MOST: NonZeroUsize = NonZeroUsize::MIN.saturating_add(7);
}

impl Default for SplitSettings {
    fn default() -> Self {
        Self {
            budget: Self::BUDGET,
            most: Self::MOST,
        }
    }
}

/// One of the layers that a tree becomes.
#[derive(Debug, Clone)]
pub struct Part {
    /// What is in it, in a word or two: the library that it is, or its number among the layers of
    /// the smaller ones. `None` when it is the whole tree.
    pub label: Option<String>,
    /// Its entries, with all directories above them.
    pub plan: Plan,
}

impl Plan {
    /// Whether this is what package managers install: it has a distribution of Python (a
    /// `*.dist-info` directory), or a package in `node_modules`.
    pub fn looks_like_dependencies(&self) -> bool {
        has_packages(self.records())
    }

    /// The layers that this becomes, in the order in which they stand in the image, the lowest
    /// first. Put on each other they are the same as the plan in one layer.
    ///
    /// There is at least one, and what is within the budget is one layer as it is.
    pub fn split(self, settings: &SplitSettings) -> Vec<Part> {
        let cuts = if self.archive_size() > settings.budget {
            Cuts::of(&self, settings)
        } else {
            None
        };
        match cuts {
            Some(cuts) => cuts.apply(self),
            None => vec![Part {
                label: None,
                plan: self,
            }],
        }
    }
}

/// Which record goes into which part.
struct Cuts {
    /// For each record the record of the directory that it is in.
    above: Vec<Option<usize>>,
    /// For each record its part; `None` for a directory that goes wherever something below it goes.
    parts: Vec<Option<usize>>,
    labels: Vec<String>,
}

/// What a part is for, in the order of the parts.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Place<'a> {
    /// Whiteouts and opaque markers. In any other layer they would also hide what the layers below
    /// it have just brought.
    Markers,
    /// A unit that is a layer of its own.
    Alone(&'a Unit<'a>),
    /// One of the layers that hold the other units.
    Bucket(u64),
}

impl Cuts {
    /// Where to cut; `None` when that would leave one piece, markers aside.
    fn of(plan: &Plan, settings: &SplitSettings) -> Option<Self> {
        let records = plan.records();
        let above = directories_above(records);
        let mut leaf: Vec<bool> = records.iter().map(|record| !is_marker(record)).collect();
        let with_markers = leaf.contains(&false);
        for &directory in above.iter().flatten() {
            leaf[directory] = false;
        }
        let sorted = Sorted::of(records, &leaf);
        let room = settings.most.get() - usize::from(with_markers);
        let arrangement = Arrangement::of(&sorted.sizes(), settings.budget, room)?;

        let place_of: Vec<Place<'_>> = sorted
            .units
            .iter()
            .map(|(unit, _)| arrangement.place(unit))
            .collect();
        let mut places: BTreeSet<&Place<'_>> = place_of.iter().collect();
        if places.len() < 2 {
            return None;
        }
        if with_markers {
            places.insert(&Place::Markers);
        }
        let numbers: BTreeMap<&Place<'_>, usize> = places.iter().copied().zip(0..).collect();
        let part_of: Vec<usize> = place_of.iter().map(|place| numbers[place]).collect();
        let markers = with_markers.then_some(0);
        let parts = records
            .iter()
            .zip(&sorted.unit_of)
            .map(|(record, unit)| match unit {
                Some(unit) => Some(part_of[*unit]),
                None => markers.filter(|_| is_marker(record)),
            })
            .collect();
        let labels = places
            .into_iter()
            .map(|place| arrangement.label(place))
            .collect();
        Some(Self {
            above,
            parts,
            labels,
        })
    }

    /// Cuts the plan. Records keep their order, which is therefore that of the format in every part.
    fn apply(self, plan: Plan) -> Vec<Part> {
        let mut copies = self.copies_of_directories().into_iter().peekable();
        let modified = plan.modified();
        let mut parts = vec![Vec::new(); self.labels.len()];
        for (index, record) in plan.into_records().into_iter().enumerate() {
            match self.parts[index] {
                Some(part) => parts[part].push(record),
                None => {
                    while let Some((_, part)) = copies.next_if(|(copied, _)| *copied == index) {
                        parts[part].push(record.clone());
                    }
                }
            }
        }
        let plans = parts
            .into_iter()
            .map(|records| Plan::new(records, modified));
        self.labels
            .into_iter()
            .zip(plans)
            .map(|(label, plan)| Part {
                label: Some(label),
                plan,
            })
            .collect()
    }

    /// The directories above the entries of each part, as pairs of directory and part, in order.
    fn copies_of_directories(&self) -> Vec<(usize, usize)> {
        let mut members = vec![Vec::new(); self.labels.len()];
        for (index, part) in self.parts.iter().enumerate() {
            if let Some(part) = part {
                members[*part].push(index);
            }
        }
        let mut copies = Vec::new();
        let mut last = vec![usize::MAX; self.above.len()];
        for (part, members) in members.into_iter().enumerate() {
            for member in members {
                let mut at = self.above[member];
                while let Some(directory) = at.filter(|&directory| last[directory] != part) {
                    last[directory] = part;
                    copies.push((directory, part));
                    at = self.above[directory];
                }
            }
        }
        copies.sort_unstable();
        copies
    }
}

/// The leaves of a plan, sorted into units.
struct Sorted<'a> {
    /// For each record the place of its unit below; `None` for markers and for directories that
    /// hold something.
    unit_of: Vec<Option<usize>>,
    /// The units with what their leaves take in the archive, as they were met.
    units: Vec<(Unit<'a>, u64)>,
}

impl<'a> Sorted<'a> {
    /// Sorts those of `records` that are leaves.
    fn of(records: &'a [Record], leaf: &[bool]) -> Self {
        let leaves = records.iter().zip(leaf).filter(|(_, leaf)| **leaf);
        let names = Units::of(records, leaves.map(|(record, _)| record));

        let mut units: Vec<(Unit<'a>, u64)> = Vec::new();
        let mut known: BTreeMap<Unit<'a>, usize> = BTreeMap::new();
        let mut last = None;
        let unit_of = records
            .iter()
            .zip(leaf)
            .map(|(record, &leaf)| {
                if !leaf {
                    return None;
                }
                let unit = names.unit(record);
                // Neighbours are most often of one unit.
                let number = last
                    .filter(|&number: &usize| units[number].0 == unit)
                    .unwrap_or_else(|| {
                        *known.entry(unit).or_insert_with_key(|unit| {
                            units.push((unit.clone(), 0));
                            units.len() - 1
                        })
                    });
                last = Some(number);
                let size = &mut units[number].1;
                *size = size.saturating_add(record.archive_size());
                Some(number)
            })
            .collect();
        Self { unit_of, units }
    }

    fn sizes(&self) -> BTreeMap<&Unit<'a>, u64> {
        self.units
            .iter()
            .map(|(unit, size)| (unit, *size))
            .collect()
    }
}

/// Which units stand alone, and into how many buckets the others go.
struct Arrangement<'a> {
    alone: BTreeSet<&'a Unit<'a>>,
    /// A power of two.
    buckets: u64,
}

impl<'a> Arrangement<'a> {
    /// Arranges units of these sizes in at most `room` layers; `None` when there is no room.
    fn of(sizes: &BTreeMap<&'a Unit<'a>, u64>, budget: u64, room: usize) -> Option<Self> {
        let mut large: Vec<(&'a Unit<'a>, u64)> = sizes
            .iter()
            .map(|(unit, size)| (*unit, *size))
            .filter(|(_, size)| *size > budget)
            .collect();
        // The sort is stable, so units of one size stay in the order of their names.
        large.sort_by_key(|(_, size)| Reverse(*size));
        let others = large.len() < sizes.len() || large.len() > room;
        large.truncate(room.checked_sub(usize::from(others))?);
        let alone: BTreeSet<&Unit<'_>> = large.into_iter().map(|(unit, _)| unit).collect();

        let rest = sizes
            .iter()
            .filter(|(unit, _)| !alone.contains(*unit))
            .map(|(_, &size)| size)
            .fold(0, u64::saturating_add);
        let room = u64::try_from(room - alone.len()).unwrap_or(u64::MAX);
        let mut buckets: u64 = 1;
        while budget.saturating_mul(buckets) < rest && buckets <= room / 2 {
            buckets *= 2;
        }
        Some(Self { alone, buckets })
    }

    fn place(&self, unit: &'a Unit<'a>) -> Place<'a> {
        if self.alone.contains(unit) {
            Place::Alone(unit)
        } else {
            Place::Bucket(unit.number() % self.buckets)
        }
    }

    fn label(&self, place: &Place<'_>) -> String {
        match place {
            Place::Markers => "deletions".to_owned(),
            Place::Alone(unit) => unit.label(),
            Place::Bucket(_) if self.buckets == 1 => "others".to_owned(),
            Place::Bucket(number) => format!("{} of {}", number + 1, self.buckets),
        }
    }
}

fn is_marker(record: &Record) -> bool {
    matches!(record.kind, RecordKind::Whiteout | RecordKind::OpaqueMarker)
}

/// For each record the index of the directory that it is in; `None` at the root.
fn directories_above(records: &[Record]) -> Vec<Option<usize>> {
    let count = records.partition_point(|record| matches!(record.kind, RecordKind::Directory));
    let directories = &records[..count];
    // Neighbours are most often of one directory.
    let mut last: (Option<&[u8]>, Option<usize>) = (None, None);
    records
        .iter()
        .map(|record| {
            let directory = record.path.parent_bytes();
            if directory != last.0 {
                let index = directory.and_then(|directory| {
                    directories
                        .binary_search_by(|record| record.path.as_bytes().cmp(directory))
                        .ok()
                });
                last = (directory, index);
            }
            last.1
        })
        .collect()
}
