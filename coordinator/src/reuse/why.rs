//! Why a task was reused, or why not: the difference between what it is and what earlier runs did.

use std::collections::BTreeMap;

use forebay_datasets::{results, volume::Volume};
use forebay_jobs::{
    id::{RunId, TaskId},
    identity::WorkIdentity,
    plan::Plan,
};

use super::{Earlier, Entry, Inputs, ReuseError, snapshot_of, work_of};
use crate::{
    run::{Event, Run},
    rundir::RunDir,
};

/// Why a task was reused or not, in a sentence, where `events` are the run's.
pub fn why(
    volume: &Volume,
    run: &RunDir,
    (machine, plan): (&Run, &Plan),
    task: TaskId,
    events: &[Event],
) -> Result<String, ReuseError> {
    if let Some(why) = run.job().never_reused() {
        return Ok(why);
    }
    let (mut sought, mut from) = (None, None);
    for event in events {
        match event {
            Event::Reused { tasks, .. } => {
                from =
                    from.or_else(|| tasks.iter().find(|reused| reused.attempt.task == task).map(|reused| &reused.from));
            }
            Event::Sought { phase, work, among, .. } if *phase == task.phase => sought = Some((work, among)),
            _ => {}
        }
    }
    match (from, sought) {
        (Some(from), _) => Ok(format!("reused: run {from} had done the same work on the same input")),
        (None, None) if machine.tasks().any(|(id, _)| id.phase == task.phase && machine.awaits_search(id)) => {
            Ok("earlier runs are searched once the phase begins".to_owned())
        }
        (None, None) => Ok("not reused: the first tasks began before all of the dataset was staged".to_owned()),
        (None, Some((work, among))) if among.is_empty() => {
            let work = work.clone().map_or_else(|| work_of(run), Ok)?;
            Ok(format!("not reused: {}", what_changed(volume, run, &work)?))
        }
        (None, Some((work, among))) => {
            let work = work.clone().map_or_else(|| work_of(run), Ok)?;
            let earlier = Earlier::of_runs(volume, &work, among)?;
            let entries: Vec<_> = earlier.entries().collect();
            let latest = among.last().map_or("", RunId::as_str);
            if entries.is_empty() {
                return Ok(format!("not reused: the results of run {latest} are gone by now"));
            }
            let why = match (task.phase, machine.snapshot()) {
                (0, Some(id)) => {
                    let snapshot = snapshot_of(volume, run, id)?;
                    of_input(&Inputs::new(&work, plan, &snapshot), task.index, &entries, latest)
                }
                _ => format!("what it reads of the phase before is not what it was in run {latest}"),
            };
            Ok(format!("not reused: {why}"))
        }
    }
}

/// How an input differs from what earlier runs read.
fn of_input(inputs: &Inputs<'_>, index: u32, entries: &[(&str, &Entry)], latest: &str) -> String {
    let identity = inputs.of_split(index);
    if let Some((run, _)) = entries.iter().find(|(_, entry)| Some(&entry.identity) == identity.as_ref()) {
        return format!("what run {run} had made of it was changed or removed");
    }
    let mut known: BTreeMap<&str, Vec<(&str, &str)>> = BTreeMap::new();
    for (run, entry) in entries {
        for (key, content) in &entry.input {
            known.entry(key).or_default().push((content, run));
        }
    }
    for (key, content) in inputs.read_by(index) {
        match known.get(key.as_str()).map(Vec::as_slice) {
            None => return format!("`{key}` is new: run {latest} did not read it"),
            Some(seen) if seen.iter().all(|(seen, _)| *seen != content) => {
                return format!("`{key}` has changed since run {}", seen.last().map_or(latest, |(_, run)| *run));
            }
            Some(_) => {}
        }
    }
    format!("run {latest} had cut the dataset otherwise")
}

/// What of a job's work is not what it was in its last run.
fn what_changed(volume: &Volume, run: &RunDir, work: &WorkIdentity) -> Result<String, ReuseError> {
    let results = results::list(volume)?;
    let (job, own) = (&run.job().name, run.id().as_str());
    let others =
        |record: &&results::Record| record.job == *job && record.run != own && record.work != work.whole.as_str();
    let Some(last) = results.iter().rev().map(|results| &results.record).find(others) else {
        return Ok(format!("no earlier run of the job `{job}` has left results"));
    };
    let same = |part: &str, identity: &str| last.parts.get(part).is_some_and(|before| before == identity);
    let changed = work.parts.iter().filter(|(part, identity)| !same(part, identity.as_str()));
    let changed: Vec<_> = changed.map(|(part, _)| part.as_str()).collect();
    Ok(match changed.is_empty() {
        true => format!("no earlier run of the job `{job}` had left results by then"),
        false => format!("{} changed since run {}", changed.join(", "), last.run),
    })
}
