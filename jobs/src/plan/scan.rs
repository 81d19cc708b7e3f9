//! A query by splits: the plan of one task over all objects is cut where the table's format lets it.

use forebay_datasets::{
    split::{Cut, Cuttable, Piece},
    volume::Volume,
};
use rayon::iter::{IntoParallelIterator, ParallelIterator};

use super::{Plan, PlanError, row_groups, tasks};
use crate::{
    kinds::sql::Scan,
    spec::{JobSpec, SplitBy},
};

impl Plan {
    /// The same work in a task a split of what the scan reads, and one that puts together what these have made.
    pub fn over_scan(self, job: &JobSpec, volume: &Volume, scan: Scan) -> Result<Self, PlanError> {
        let cut = match job.split.by {
            SplitBy::Whole => Cut::Whole,
            SplitBy::File => Cut::File,
            // What can be cut anywhere can be cut there: a format has one kind of places.
            SplitBy::Bytes | SplitBy::RowGroups if scan.is_parquet() => Cut::RowGroups,
            SplitBy::Bytes => Cut::Bytes,
            SplitBy::RowGroups => Cut::File,
        };
        let all = self.splits.into_iter().flat_map(|split| split.pieces);
        let mut keys = scan.keys.iter().peekable();
        let mut pieces: Vec<Piece> = Vec::new();
        let mut first = None;
        for piece in all {
            // Both are in the order of the dataset.
            match keys.next_if(|key| **key == piece.key) {
                Some(_) => pieces.push(piece),
                None => first = first.or(Some(piece)),
            }
        }
        if pieces.is_empty() {
            // Nothing of it will be read, and the aggregate of nothing is still a result.
            pieces.extend(first);
        }
        let cuttable = |piece: Piece| -> Result<Cuttable, PlanError> {
            let is_cut = cut == Cut::RowGroups && !scan.keys.is_empty();
            let row_groups = is_cut.then(|| row_groups(&piece.key, &volume.resolve(&piece.path)?)).transpose()?;
            let Piece { key, path, size, partial, .. } = piece;
            Ok(Cuttable { key, path, size, partial, lines: scan.is_lines, row_groups })
        };
        let objects = pieces.into_par_iter().map(cuttable).collect::<Result<Vec<_>, _>>()?;
        let Self { splits, .. } = tasks(job, cut, &objects)?;
        Ok(Self { splits, partitions: Some(1), table: Some(scan.table), ..self })
    }
}
