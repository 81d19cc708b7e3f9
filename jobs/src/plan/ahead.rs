//! A plan that is made of a listing, ahead of the bytes, so that a task starts once its own inputs are staged.

use forebay_datasets::{
    format::Format,
    split::{Cut, Cuttable},
    stage::{Expected, Staging},
};

use super::{Plan, PlanError, cut, tasks};
use crate::spec::{JobSpec, Mapper, Work};

/// Whether a job's tasks may start before all of its dataset is staged.
///
/// What is built in reads its own split and nothing else. A program may read anything below `FOREBAY_DATASET_DIR`, so
/// that it has to say that it does not: `[dataset] early_start = true`.
pub fn starts_early(job: &JobSpec) -> bool {
    let is_built_in = match &job.work {
        Work::Mapreduce(mapreduce) => !matches!(mapreduce.map, Mapper::Program(_)),
        Work::Command(_) | Work::Sql(_) => false,
    };
    // A gang begins all at once. A snapshot is whole, and where a Parquet object can be cut only its footer tells.
    let can = !job.is_gang() && job.dataset.version.is_none() && matches!(cut(job), Cut::File | Cut::Bytes);
    can && job.dataset.early_start.unwrap_or(is_built_in)
}

/// Plans a job over objects that will lie below `data`, relative to the volume's root.
pub fn plan_ahead(job: &JobSpec, staging: &Staging, data: &str) -> Result<Plan, PlanError> {
    let cuttable = |object: &Expected| Cuttable {
        key: object.key.clone(),
        path: format!("{data}/{}", object.path),
        size: object.size,
        partial: false,
        lines: Format::of(&object.key).is_lines(),
        row_groups: None,
    };
    let objects: Vec<_> = staging.objects.iter().map(cuttable).collect();
    let listing = Some(staging.listing.clone());
    Ok(Plan { listing, data: data.to_owned(), ..tasks(job, cut(job), &objects)? })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::spec::parse::job_file;

    fn job(dataset: &str, work: &str) -> JobSpec {
        let text = format!("name = 'j'\n[dataset]\nsource = 's3://b'\nname = 'd'\n{dataset}\n{work}");
        job_file(&text, Path::new("/"), &[]).unwrap()
    }

    #[test]
    fn what_may_read_anything_waits_unless_it_says_that_it_need_not() {
        let words = "[mapreduce]\nmap = 'word-count'";
        let program = "[command]\nargv = ['x']";
        let early = |dataset, work| starts_early(&job(dataset, work));
        assert!(early("", words) && !early("early_start = false", words));
        assert!(!early("", program) && early("early_start = true", program));
        assert!(!early("", "[mapreduce]\nmap = ['x']\nreduce = ['y']"));
        assert!(!early("version = 'abc'", words));
        assert!(!early("", "[sql]\nquery = 'select 1'"));
        assert!(!early("", "[mapreduce]\nmap = 'column-stats'\n[split]\nby = 'row-groups'"));
    }

    #[test]
    fn a_plan_ahead_of_its_objects_cuts_them_as_one_after_them() {
        let expected = |key: &str, size| Expected { key: key.to_owned(), path: key.to_owned(), size };
        let objects = vec![expected("a.txt", 25), expected("b/", 0), expected("c.txt", 3)];
        let staging = Staging { listing: "l".to_owned(), objects, chunks: vec![0..2, 2..3] };
        let job = job("", "[mapreduce]\nmap = 'word-count'\npartitions = 2\n[split]\nsize = '10B'");
        let plan = plan_ahead(&job, &staging, "runs/r/inputs").unwrap();
        assert_eq!((plan.snapshot.clone(), plan.listing.as_deref(), plan.phases()), (None, Some("l"), vec![3, 2]));
        assert_eq!(plan.splits[2].pieces[1].path, "runs/r/inputs/c.txt");
    }
}
