//! Cuts a snapshot's objects into splits, each the input of one task.

use serde::{Deserialize, Serialize};

/// The input of one task: pieces of staged objects, in the order in which they are to be read.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Split {
    /// Never empty, except for a run over an empty snapshot.
    pub pieces: Vec<Piece>,
}

/// A part of one staged object.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Piece {
    /// The object's key in its source.
    pub key: String,
    /// Path relative to the volume's root, so that hosts may mount it at different places.
    pub path: String,
    /// Bytes of the whole object.
    pub size: u64,
    /// Whether its file holds a part of it only, which its snapshot's manifest tells: all else would be read as zeros.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
    /// What of the object belongs to the split.
    pub part: Part,
}

/// What of an object belongs to a split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "kebab-case")]
pub enum Part {
    /// All of it.
    Whole,
    /// The records that *start* in this byte range.
    Bytes {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        length: u64,
    },
    /// Parquet row groups.
    RowGroups {
        /// Index of the first.
        first: u32,
        /// How many.
        count: u32,
    },
}

/// Where cuts may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Between objects.
    File,
    /// Anywhere in lines, between objects elsewhere.
    Bytes,
    /// Between the row groups of Parquet objects, between objects elsewhere.
    RowGroups,
    /// Nowhere.
    Whole,
}

/// How much goes into a split.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// About this many bytes; a piece that cannot be cut may be larger.
    Bytes(u64),
    /// At most this many splits, of about the same size.
    Count(u32),
    /// The smallest piece that can be cut.
    Each,
}

/// An object that is to be cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cuttable {
    /// Its key.
    pub key: String,
    /// Its path relative to the volume's root.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Whether its file holds a part of it only.
    pub partial: bool,
    /// Whether every newline ends a record.
    pub lines: bool,
    /// Bytes of each row group, for a Parquet object that is to be cut between them.
    pub row_groups: Option<Vec<u64>>,
}

/// Cuts objects into splits. Every file, byte or row group is in exactly one, in the order of the objects.
///
/// Objects that only stand for a folder (no bytes, the key ends in `/`) are in none.
pub fn split(objects: &[Cuttable], cut: Cut, size: Size) -> Vec<Split> {
    let objects = || objects.iter().filter(|object| object.size > 0 || !object.key.ends_with('/'));
    let total: u64 = objects().map(|object| object.size).sum();
    let target = match (cut, size) {
        (Cut::Whole, _) => u64::MAX,
        (_, Size::Bytes(bytes)) => bytes.max(1),
        (_, Size::Count(count)) => total.div_ceil(u64::from(count.max(1))).max(1),
        (_, Size::Each) => 0,
    };
    let pieces = objects().flat_map(|object| pieces(object, cut, target));
    let mut splits: Vec<(u64, Split)> = Vec::new();
    let most = match size {
        Size::Count(count) if cut != Cut::Whole => count.max(1) as usize,
        _ => usize::MAX,
    };
    for (bytes, piece) in pieces {
        let full = splits.len() >= most;
        match splits.last_mut() {
            Some((held, split)) if full || held.saturating_add(bytes) <= target => {
                *held += bytes;
                join(split, piece);
            }
            _ => splits.push((bytes, Split { pieces: vec![piece] })),
        }
    }
    splits.into_iter().map(|(_, split)| split).collect()
}

/// The smallest pieces of an object that are not larger than need be, with their bytes.
fn pieces(object: &Cuttable, cut: Cut, target: u64) -> Vec<(u64, Piece)> {
    let piece = |part| {
        let Cuttable { size, partial, .. } = *object;
        Piece { key: object.key.clone(), path: object.path.clone(), size, partial, part }
    };
    match (cut, &object.row_groups) {
        (Cut::RowGroups, Some(groups)) if !groups.is_empty() => {
            let one = |(first, bytes): (u32, &u64)| (*bytes, piece(Part::RowGroups { first, count: 1 }));
            (0..).zip(groups).map(one).collect()
        }
        (Cut::Bytes, _) if object.lines && target > 0 && object.size > target => {
            let offsets = (0..object.size).step_by(usize::try_from(target).unwrap_or(usize::MAX));
            let range = |offset| {
                let length = target.min(object.size - offset);
                (length, piece(Part::Bytes { offset, length }))
            };
            offsets.map(range).collect()
        }
        _ => vec![(object.size, piece(Part::Whole))],
    }
}

/// Adds a piece to a split; row groups that follow each other become one piece.
fn join(split: &mut Split, piece: Piece) {
    if let (Some(last), Part::RowGroups { first, count }) = (split.pieces.last_mut(), piece.part)
        && last.path == piece.path
        && let Part::RowGroups { first: held_first, count: held } = &mut last.part
        && *held_first + *held == first
    {
        *held += count;
        return;
    }
    split.pieces.push(piece);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(key: &str, size: u64) -> Cuttable {
        Cuttable { key: key.into(), path: key.into(), size, partial: false, lines: true, row_groups: None }
    }

    #[test]
    fn small_files_share_a_split_and_large_ones_are_cut() {
        let splits = split(&[text("a", 4), text("b", 5), text("c", 25)], Cut::Bytes, Size::Bytes(10));
        let keys: Vec<Vec<_>> = splits.iter().map(|s| s.pieces.iter().map(|p| (&*p.key, p.part)).collect()).collect();
        assert_eq!(
            keys,
            [
                vec![("a", Part::Whole), ("b", Part::Whole)],
                vec![("c", Part::Bytes { offset: 0, length: 10 })],
                vec![("c", Part::Bytes { offset: 10, length: 10 })],
                vec![("c", Part::Bytes { offset: 20, length: 5 })],
            ]
        );
    }

    #[test]
    fn by_file_each_object_is_a_split_and_folders_are_none() {
        let splits = split(&[text("a", 0), text("d/", 0), text("e", 9)], Cut::File, Size::Each);
        assert_eq!(splits.len(), 2);
    }

    #[test]
    fn following_row_groups_become_one_piece() {
        let object = Cuttable { row_groups: Some(vec![4, 4, 4]), lines: false, ..text("p.parquet", 13) };
        let splits = split(&[object], Cut::RowGroups, Size::Bytes(8));
        assert_eq!(splits[0].pieces[0].part, Part::RowGroups { first: 0, count: 2 });
        assert_eq!(splits[1].pieces[0].part, Part::RowGroups { first: 2, count: 1 });
    }

    proptest! {
        #[test]
        fn every_byte_row_group_and_file_is_in_exactly_one_split(
            sizes in prop::collection::vec((0u64..200, prop::option::of(prop::collection::vec(0u64..50, 0..6))), 1..12),
            cut in prop::sample::select(vec![Cut::File, Cut::Bytes, Cut::RowGroups, Cut::Whole]),
            size in prop_oneof![(1u64..80).prop_map(Size::Bytes), (1u32..9).prop_map(Size::Count), Just(Size::Each)],
        ) {
            let objects: Vec<_> = sizes.iter().enumerate().map(|(i, (size, groups))| Cuttable {
                row_groups: groups.clone(), lines: groups.is_none(), ..text(&format!("{i:02}"), *size)
            }).collect();
            let splits = split(&objects, cut, size);
            if let (Size::Count(count), true) = (size, cut != Cut::Whole) {
                prop_assert!(splits.len() <= count as usize);
            }
            for object in &objects {
                let parts: Vec<_> =
                    splits.iter().flat_map(|s| &s.pieces).filter(|p| p.key == object.key).map(|p| p.part).collect();
                let mut next = 0;
                for part in &parts {
                    match *part {
                        Part::Whole => prop_assert_eq!(parts.len(), 1),
                        Part::Bytes { offset, length } => { prop_assert_eq!(offset, next); next = offset + length; }
                        Part::RowGroups { first, count } => {
                            prop_assert_eq!(u64::from(first), next);
                            next = u64::from(first + count);
                        }
                    }
                }
                match parts[0] {
                    Part::Whole => {}
                    Part::Bytes { .. } => prop_assert_eq!(next, object.size),
                    Part::RowGroups { .. } => prop_assert_eq!(next, object.row_groups.as_ref().unwrap().len() as u64),
                }
            }
        }
    }
}
