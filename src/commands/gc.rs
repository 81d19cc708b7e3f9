//! `forebay dataset pin|unpin|gc`: what is kept, and what goes.

use std::time::Duration;

use forebay_datasets::{
    gc::{self, Collection, Rules},
    hold, snapshot,
    volume::Volume,
};
use serde_json::{Value, json};

use crate::{
    cli::{GcArgs, Global},
    error::{CliError, Exit},
    render::{self, Table},
};

/// How long a command that is about something else empties the trash.
pub const AT_ONCE: Duration = Duration::from_secs(1);

pub fn pin(global: &Global, named: &str, label: Option<&str>) -> Result<Exit, CliError> {
    let volume = Volume::open(&global.volume)?;
    let (name, id) = split(named);
    let label = match label {
        Some(label) => label.to_owned(),
        None => snapshot::find(&volume, name, id)?.id.0,
    };
    let id = hold::pin(&volume, name, id, &label)?;
    match global.json {
        true => println!("{}", json!({ "version": 1, "name": name, "snapshot": id, "label": label })),
        false => println!("{id}"),
    }
    Ok(Exit::Done)
}

pub fn unpin(global: &Global, named: &str, label: Option<&str>) -> Result<Exit, CliError> {
    let volume = Volume::open(&global.volume)?;
    let (name, id) = split(named);
    let id = match (id, label) {
        // The label says which.
        (None, Some(_)) => None,
        (id, _) => Some(snapshot::find(&volume, name, id)?.id),
    };
    let mut pins = hold::pins(&volume, name)?;
    pins.retain(|pin| label.is_none_or(|label| pin.label == label) && id.as_ref().is_none_or(|id| pin.snapshot == *id));
    if pins.is_empty() {
        let what = label.map_or_else(|| "no pin".to_owned(), |label| format!("no pin `{label}`"));
        let error = CliError::new(Exit::NotFound, format!("there is {what} on `{named}`"));
        return Err(error.help(format!("`forebay dataset show {name}` shows them")));
    }
    for pin in &pins {
        hold::unpin(&volume, name, &pin.label)?;
    }
    let labels: Vec<_> = pins.iter().map(|pin| pin.label.as_str()).collect();
    match global.json {
        true => println!("{}", json!({ "version": 1, "name": name, "unpinned": labels })),
        false => labels.iter().for_each(|label| println!("{label}")),
    }
    Ok(Exit::Done)
}

/// `NAME` or `NAME@ID`
fn split(named: &str) -> (&str, Option<&str>) {
    named.split_once('@').map_or((named, None), |(name, id)| (name, Some(id)))
}

pub fn collect(global: &Global, args: &GcArgs) -> Result<Exit, CliError> {
    let volume = Volume::open(&global.volume)?;
    let rules = Rules {
        names: args.names.iter().cloned().collect(),
        keep_last: args.keep_last,
        older_than: args.older_than,
        max_size: args.max_size,
    };
    let collection = match args.dry_run {
        true => gc::plan(&volume, &rules)?,
        false => gc::collect(&volume, &rules)?,
    };
    match global.json {
        true => println!("{}", object(&collection, args.dry_run)),
        false => print(global, &collection, &rules, args.dry_run),
    }
    Ok(Exit::Done)
}

fn object(collection: &Collection, dry_run: bool) -> Value {
    let removed = collection.removed().map(|candidate| {
        let record = &candidate.record;
        json!({ "name": record.name, "snapshot": record.id, "staged": record.created, "bytes": record.bytes,
                "frees_bytes": candidate.frees })
    });
    let kept = collection.kept().map(|(candidate, kept)| {
        let record = &candidate.record;
        json!({ "name": record.name, "snapshot": record.id, "staged": record.created, "bytes": record.bytes,
                "because": kept.to_string() })
    });
    json!({
        "version": 1, "dry_run": dry_run, "removed": removed.collect::<Vec<_>>(), "kept": kept.collect::<Vec<_>>(),
        "frees_bytes": collection.frees() + collection.cleared.bytes, "leftovers": collection.leftovers,
        "results": collection.results.iter().map(|results| &results.record.run).collect::<Vec<_>>(),
        "left_in_trash": collection.cleared.left,
    })
}

fn print(global: &Global, collection: &Collection, rules: &Rules, dry_run: bool) {
    let mut table = Table::new(["", "dataset", "snapshot", "size", "frees", "staged", "because"]);
    let goes = if dry_run { "would go" } else { "removed" };
    for candidate in &collection.snapshots {
        let record = &candidate.record;
        let (what, frees, because) = match &candidate.kept {
            None => (goes, render::bytes(candidate.frees), "the rules let it go".to_owned()),
            Some(kept) => ("kept", String::new(), kept.to_string()),
        };
        let (size, time) = (render::bytes(record.bytes), render::time(&record.created));
        table.row([what.to_owned(), record.name.clone(), record.id.to_string(), size, frees, time, because]);
    }
    table.print();
    for results in &collection.results {
        println!("{goes} the results of run {}, which later runs could reuse", results.record.run);
    }
    for path in &collection.leftovers {
        println!("{goes} {}, left by a process that was killed", path.display());
    }
    if dry_run {
        let frees = render::bytes(collection.frees());
        render::note(global.quiet, &format!("would free {frees}; nothing was changed"));
    } else {
        let bytes = collection.frees() + collection.cleared.bytes;
        render::note(global.quiet, &format!("freed {}", render::bytes(bytes)));
    }
    if rules.is_empty() && !collection.snapshots.is_empty() {
        render::note(global.quiet, "snapshots go by --keep-last, --older-than and --max-size");
    }
    if collection.cleared.left {
        render::note(global.quiet, "something is in use and stays in trash/ until a later command");
    }
}
