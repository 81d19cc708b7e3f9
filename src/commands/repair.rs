//! `forebay dataset verify --repair`: what is damaged becomes again what was staged.

use std::sync::Arc;

use forebay_datasets::{
    repair::{self, Origin, OtherRepair, Repair, RepairError},
    snapshot::Snapshot,
    verify::VerifyReport,
    volume::Volume,
};
use serde_json::{Value, json};

use crate::{
    cli::{Global, VerifyArgs},
    error::{CliError, Exit},
    render,
};

pub async fn repair(
    global: &Global,
    volume: &Volume,
    snapshot: &Snapshot,
    report: &VerifyReport,
    args: &VerifyArgs,
) -> Result<Exit, CliError> {
    let size = |key: &str| {
        let objects = &snapshot.manifest.objects;
        objects.binary_search_by(|object| (*object.key).cmp(key)).map_or(0, |at| objects[at].size)
    };
    let bar = render::bytes_bar(global.quiet, report.bad.iter().map(|bad| size(&bad.key)).sum());
    let told = bar.clone();
    let progress = Arc::new(move |bytes| told.inc(bytes));
    let repairs = repair::repair(volume, snapshot, &report.bad, &args.s3.options(), progress).await;
    bar.finish_and_clear();
    let repairs = repairs?;
    let name = &args.name;
    let left = repairs.iter().filter(|repair| !repair.is_complete()).count();
    if global.json {
        let object = json!({ "version": 1, "name": name, "snapshot": snapshot.record.id, "full": args.full,
                             "checked": report.checked, "bytes": report.bytes, "repaired": repairs.len() - left,
                             "bad": repairs.iter().map(object).collect::<Vec<_>>() });
        println!("{object}");
    } else {
        let what = if args.full { "every byte of" } else { "the sizes of" };
        let (bad, repaired) = (repairs.len(), repairs.len() - left);
        println!("{name}: compared {what} {} objects, {bad} bad, {repaired} of them repaired", report.checked);
        repairs.iter().for_each(print);
    }
    match left {
        0 => Ok(Exit::Done),
        _ if global.json => Ok(Exit::OutOfReach),
        left => {
            Err(CliError::new(Exit::OutOfReach, are_damaged(left as u64, name)).help(remedies(&repairs).join("; ")))
        }
    }
}

fn are_damaged(left: u64, name: &str) -> String {
    let are = if left == 1 { "is" } else { "are" };
    format!("{} of `{name}` {are} still damaged", render::count(left, "object"))
}

fn print(repair: &Repair) {
    let became = match &repair.outcome {
        Ok(Origin::Source) => "repaired, fetched again from the source".to_owned(),
        Ok(Origin::Snapshot(id)) => format!("repaired, taken from snapshot {id}"),
        Err(why) => format!("not repaired: {why}"),
    };
    println!("  {}: {}; {became}", repair.bad.key, repair.bad.what);
    for OtherRepair { snapshot, outcome } in &repair.others {
        match outcome {
            Ok(()) => println!("    repaired in snapshot {snapshot} too"),
            Err(_) if repair.outcome.is_err() => println!("    damaged in snapshot {snapshot} too"),
            Err(why) => println!("    not repaired in snapshot {snapshot}: {why}"),
        }
    }
}

fn object(repair: &Repair) -> Value {
    let why = |outcome: Option<&Arc<RepairError>>| match outcome {
        Some(why) => (json!(why.to_string()), json!(why.remedy())),
        None => (Value::Null, Value::Null),
    };
    let others = repair.others.iter().map(|OtherRepair { snapshot, outcome }| {
        let (why, help) = why(outcome.as_ref().err());
        json!({ "snapshot": snapshot, "repaired": outcome.is_ok(), "why": why, "help": help })
    });
    let others: Vec<_> = others.collect();
    let from = match &repair.outcome {
        Ok(Origin::Source) => json!("source"),
        Ok(Origin::Snapshot(id)) => json!(id),
        Err(_) => Value::Null,
    };
    let (why, help) = why(repair.outcome.as_ref().err());
    json!({ "key": repair.bad.key, "what": repair.bad.what, "repaired": repair.outcome.is_ok(), "from": from,
            "why": why, "help": help, "others": others })
}

/// Each once.
fn remedies(repairs: &[Repair]) -> Vec<&'static str> {
    let of = |repair: &Repair| {
        let others = repair.others.iter().filter_map(|other| other.outcome.as_ref().err());
        repair.outcome.as_ref().err().into_iter().chain(others).map(|why| why.remedy()).collect::<Vec<_>>()
    };
    let mut remedies: Vec<_> = repairs.iter().flat_map(of).collect();
    remedies.sort_unstable();
    remedies.dedup();
    remedies
}
