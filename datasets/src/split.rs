//! Cuts a snapshot's objects into splits, each the input of one task.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::format::Format;

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

impl Piece {
    /// The byte range of a piece that can be cut between its lines.
    fn range(&self) -> Option<Range<u64>> {
        match self.part {
            Part::Whole => Format::of(&self.key).is_lines().then_some(0..self.size),
            Part::Bytes { offset, length } => Some(offset..offset.saturating_add(length).min(self.size)),
            Part::RowGroups { .. } => None,
        }
    }

    fn of_bytes(&self, range: Range<u64>) -> Self {
        Self { part: Part::Bytes { offset: range.start, length: range.end - range.start }, ..self.clone() }
    }

    /// What is left of the piece from an offset in its object on; none if it cannot be cut there.
    pub fn from(&self, offset: u64) -> Option<Self> {
        match self.range() {
            Some(range) if offset > range.start => Some(self.of_bytes(offset..range.end.max(offset))),
            Some(_) => Some(self.clone()),
            // Cut nowhere, it is left whole or not at all.
            None => (offset == 0).then(|| self.clone()),
        }
    }

    /// Whether a piece is this one, or what is left of it behind some of its bytes.
    fn has_tail(&self, tail: &Self) -> bool {
        let ranges = self.range().zip(tail.range());
        let ends = ranges.is_some_and(|(all, tail)| all.contains(&tail.start) && tail.end == all.end);
        Self { part: self.part, ..tail.clone() } == *self && (self.part == tail.part || ends)
    }
}

impl Split {
    /// Whether a split is the rest of this one, from one of its records on.
    pub fn has_tail(&self, tail: &Self) -> bool {
        let Some((first, others)) = tail.pieces.split_first() else { return false };
        let Some(from) = self.pieces.len().checked_sub(tail.pieces.len()) else { return false };
        self.pieces[from].has_tail(first) && self.pieces[from + 1..] == *others
    }

    /// The same records in the same order, in at most so many splits of about the same size and at least so many bytes.
    pub fn cut(self, count: u32, least: u64) -> Vec<Self> {
        let bytes = |piece: &Piece| piece.range().map_or(piece.size, |range| range.end - range.start);
        let total: u64 = self.pieces.iter().map(bytes).sum();
        let target = total.div_ceil(u64::from(count.max(1))).max(least).max(1);
        let mut splits: Vec<Self> = Vec::new();
        let mut room = 0;
        for piece in self.pieces {
            let mut left = piece;
            loop {
                // What has no bytes needs no room: it never begins a split behind a full one.
                if splits.is_empty() || room == 0 && bytes(&left) > 0 {
                    splits.push(Self::default());
                    room = target;
                }
                let split = splits.last_mut().expect("one was pushed");
                match left.range().filter(|range| range.end - range.start > room) {
                    Some(range) => {
                        split.pieces.push(left.of_bytes(range.start..range.start + room));
                        left = left.of_bytes(range.start + room..range.end);
                        room = 0;
                    }
                    None => {
                        room = room.saturating_sub(bytes(&left));
                        split.pieces.push(left);
                        break;
                    }
                }
            }
        }
        splits
    }
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

    #[test]
    fn empty_objects_behind_a_full_split_need_none_of_their_own() {
        let whole = split(&[text("a", 15), text("b", 0), text("c", 0)], Cut::Whole, Size::Each).remove(0);
        assert_eq!(whole.clone().cut(1, 0), [whole]);
    }

    proptest! {
        #[test]
        fn what_is_cut_again_is_read_as_before(
            sizes in prop::collection::vec(0u64..200, 1..6),
            range in (0u64..200, 0u64..200),
            (count, least, most) in (1u32..6, 0u64..50, 1u64..60),
            stop in 0usize..40,
        ) {
            let objects: Vec<_> = sizes.iter().enumerate().map(|(i, size)| text(&format!("{i:02}"), *size)).collect();
            let mut whole = split(&objects, Cut::Whole, Size::Each).remove(0);
            let (offset, length) = (range.0.min(sizes[0]), range.1);
            whole.pieces[0].part = Part::Bytes { offset, length: length.min(sizes[0] - offset) };
            // The bytes of each object, in order.
            let bytes = |splits: &[Split]| -> Vec<(String, u64)> {
                let of = |piece: &Piece| piece.range().unwrap().map(|at| (piece.key.clone(), at)).collect::<Vec<_>>();
                splits.iter().flat_map(|split| &split.pieces).flat_map(of).collect()
            };
            let cut = whole.clone().cut(count, least);
            prop_assert!(cut.len() <= count as usize, "{}", cut.len());
            prop_assert_eq!(bytes(&cut), bytes(std::slice::from_ref(&whole)));
            // Up to some byte of some piece, the rest is what has not been read.
            let n = stop % whole.pieces.len();
            let range = whole.pieces[n].range().unwrap();
            let at = range.start + most.min((range.end - range.start).saturating_sub(1));
            let next = whole.pieces[n].from(at).unwrap();
            let rest = std::iter::once(next).chain(whole.pieces[n + 1..].iter().cloned()).collect();
            let rest = Split { pieces: rest };
            let begun = whole.pieces[n].of_bytes(range.start..at);
            let read = Split { pieces: whole.pieces[..n].iter().cloned().chain([begun]).collect() };
            prop_assert!(whole.has_tail(&rest));
            let joined = bytes(&[read, rest.clone()]);
            prop_assert_eq!(joined, bytes(std::slice::from_ref(&whole)));
            // What reads something else than what it was given has no tail of it.
            let other = Split { pieces: rest.pieces.iter().map(|piece| Piece { size: piece.size + 1, ..piece.clone() }).collect() };
            prop_assert!(!whole.has_tail(&other) && !whole.has_tail(&Split::default()));
        }

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
