//! `forebay dataset stage|list|show|verify`; `diff` is in `diff`, and `pin`, `unpin` and `gc` are in `gc`

use forebay_datasets::{
    hold,
    snapshot::{self, Snapshot, SnapshotId, SnapshotRecord},
    source::{self, Keys, S3Options, SourceOptions, SourceUrl},
    stage::{self, StageRequest},
    verify,
    volume::Volume,
};
use serde_json::json;

use super::{diff, gc, preview, repair};
use crate::{
    cli::{DatasetCommand, Global, StageArgs, VerifyArgs},
    error::{CliError, Exit},
    render::{self, StageBar, Table},
};

pub async fn execute(global: &Global, command: &DatasetCommand) -> Result<Exit, CliError> {
    match command {
        DatasetCommand::Stage(args) => stage(global, args).await,
        DatasetCommand::List => list(global),
        DatasetCommand::Show { name, snapshot, objects } => show(global, name, snapshot.as_deref(), *objects),
        DatasetCommand::Pin { snapshot, name } => gc::pin(global, snapshot, name.as_deref()),
        DatasetCommand::Unpin { snapshot, name } => gc::unpin(global, snapshot, name.as_deref()),
        DatasetCommand::Gc(args) => gc::collect(global, args),
        DatasetCommand::Diff { name, from, to, summary } => {
            diff::diff(global, name, from.as_deref(), to.as_deref(), *summary)
        }
        DatasetCommand::Verify(args) => verify(global, args).await,
    }
}

async fn stage(global: &Global, args: &StageArgs) -> Result<Exit, CliError> {
    let urls: Vec<SourceUrl> = args.sources.iter().map(|source| source.parse()).collect::<Result<_, _>>()?;
    let (url, prefixes) = source::several(&urls)?;
    if args.keys.is_some() && !prefixes.is_empty() {
        let error = CliError::new(Exit::Usage, "keys are those below one source, and there are several");
        return Err(error.help(format!("name {url}, and the keys below it")));
    }
    let request = StageRequest {
        name: args.name.clone().unwrap_or_else(|| url.default_name()),
        options: SourceOptions {
            prefixes,
            keys: args.keys.as_deref().map(Keys::read).transpose()?,
            include: args.include.clone(),
            exclude: args.exclude.clone(),
            s3: args.s3.options(),
        },
        url,
        columns: args.columns.as_ref().map(|names| names.iter().cloned().collect()),
        durable: !args.no_sync,
    };
    if args.dry_run {
        return preview::preview(global, &request).await;
    }
    let volume = Volume::open_or_create(&global.volume)?;
    let bar = StageBar::new(global.quiet);
    let staged = stage::stage(&volume, &request, &|progress| bar.advance(progress)).await?;
    // Here, or whatever command comes next.
    volume.empty_trash(Some(gc::AT_ONCE));
    bar.finish();
    let record = &staged.record;
    if global.json {
        let object = json!({
            "version": 1, "name": record.name, "source": record.source, "snapshot": record.id,
            "path": record.dir(&volume)?, "objects": record.objects, "bytes": record.bytes,
            "fetched_objects": staged.fetched_objects, "fetched_bytes": staged.fetched_bytes,
            "seconds": staged.seconds, "columns": record.columns, "held_bytes": record.held_bytes.unwrap_or(record.bytes),
        });
        println!("{object}");
    } else {
        println!("{}", record.id);
        if record.columns.is_some() {
            partial(global, &snapshot::load(&volume, record.clone())?);
        }
        render::note(
            global.quiet,
            &match staged.fetched_objects {
                0 => {
                    format!("{} is unchanged: {} objects, {}", record.name, record.objects, render::bytes(record.bytes))
                }
                fetched => format!(
                    "{}: fetched {fetched} of {} objects, {} of {}, in {:.1} s",
                    record.name,
                    record.objects,
                    render::bytes(staged.fetched_bytes),
                    render::bytes(record.bytes),
                    staged.seconds,
                ),
            },
        );
    }
    Ok(Exit::Done)
}

/// Says what is held of a snapshot that is not held whole.
fn partial(global: &Global, snapshot: &Snapshot) {
    let Some(columns) = &snapshot.record.columns else { return };
    let (held, whole) = (snapshot.manifest.held_bytes(), snapshot.manifest.bytes());
    let parts = snapshot.manifest.objects.iter().filter(|object| object.held.is_some()).count() as u64;
    let parts = render::count(parts, "Parquet object");
    let (held, whole) = (render::bytes(held), render::bytes(whole));
    render::note(global.quiet, &format!("partial: columns {columns} of {parts}; {held} of {whole} are held"));
}

/// A snapshot's size, and what of it is held if that is not all.
fn size(record: &SnapshotRecord) -> String {
    let whole = render::bytes(record.bytes);
    record.held_bytes.map_or(whole.clone(), |held| format!("{} of {whole}", render::bytes(held)))
}

fn list(global: &Global) -> Result<Exit, CliError> {
    let records = snapshot::list(&Volume::open(&global.volume)?)?;
    if global.json {
        println!("{}", json!({ "version": 1, "datasets": records }));
        return Ok(Exit::Done);
    }
    let mut table = Table::new(["name", "objects", "size", "staged", "snapshot", "source"]);
    for record in &records {
        table.row([
            record.name.clone(),
            record.objects.to_string(),
            size(record),
            render::time(&record.created),
            record.id.0.chars().take(12).collect(),
            record.source.clone(),
        ]);
    }
    table.print();
    Ok(Exit::Done)
}

fn show(global: &Global, name: &str, id: Option<&str>, objects: bool) -> Result<Exit, CliError> {
    let volume = Volume::open(&global.volume)?;
    let snapshot = snapshot::open(&volume, name, id)?;
    let records = snapshot::records(&volume, name)?;
    let holds = hold::holds(&volume, name)?;
    let held = |id: &SnapshotId| -> String {
        let of_it = holds.iter().filter(|(held, _)| held == id).map(|(_, hold)| hold.to_string());
        of_it.collect::<Vec<_>>().join(", ")
    };
    if global.json {
        let pins = hold::pins(&volume, name)?.into_iter().map(|pin| (pin.label, json!(pin.snapshot)));
        let pins: serde_json::Map<_, _> = pins.collect();
        let holds: Vec<_> = holds.iter().map(|(id, hold)| json!({ "snapshot": id, "by": hold.to_string() })).collect();
        let listed = snapshot.manifest.objects.iter().map(|object| {
            json!({ "key": object.key, "path": object.path, "size": object.size, "etag": object.etag,
                    "version_id": object.version_id, "checksum": object.checksum, "held": object.held })
        });
        let listed: Option<Vec<_>> = objects.then(|| listed.collect());
        let snapshots = json!({ "version": 1, "name": name, "snapshot": snapshot.record, "path": snapshot.dir,
                                "snapshots": records, "pins": pins, "holds": holds, "objects": listed });
        println!("{snapshots}");
        return Ok(Exit::Done);
    }
    if objects {
        let mut table = Table::new(["key", "size", "held", "crc64nvme"]);
        for object in &snapshot.manifest.objects {
            let held = object.held.as_ref().map_or("all".to_owned(), |_| object.held_bytes().to_string());
            table.row([object.key.clone(), object.size.to_string(), held, object.checksum.to_string()]);
        }
        table.print();
        return Ok(Exit::Done);
    }
    let mut table = Table::new(["snapshot", "objects", "size", "staged", "kept because", "source"]);
    for record in &records {
        let shown = if record.id == snapshot.record.id { "*" } else { "" };
        table.row([
            format!("{}{shown}", record.id),
            record.objects.to_string(),
            size(record),
            render::time(&record.created),
            held(&record.id),
            record.source.clone(),
        ]);
    }
    table.print();
    partial(global, &snapshot);
    render::note(global.quiet, &format!("* stands at {}", snapshot.dir.display()));
    Ok(Exit::Done)
}

async fn verify(global: &Global, args: &VerifyArgs) -> Result<Exit, CliError> {
    let VerifyArgs { name, full, .. } = args;
    let full = *full;
    if !args.repair && args.s3.options() != S3Options::default() {
        return Err(CliError::new(Exit::Usage, "S3 is asked only to repair").help("add --repair"));
    }
    let volume = Volume::open(&global.volume)?;
    let snapshot = snapshot::open(&volume, name, args.snapshot.as_deref())?;
    let bar = render::bytes_bar(global.quiet, snapshot.manifest.held_bytes());
    let report = verify::verify(&volume, &snapshot, full, &|bytes| bar.inc(bytes));
    bar.finish_and_clear();
    if args.repair {
        return repair::repair(global, &volume, &snapshot, &report, args).await;
    }
    if global.json {
        let bad: Vec<_> = report.bad.iter().map(|bad| json!({ "key": bad.key, "what": bad.what })).collect();
        let object = json!({ "version": 1, "name": name, "snapshot": snapshot.record.id, "full": full,
                             "checked": report.checked, "bytes": report.bytes, "bad": bad });
        println!("{object}");
    } else {
        let what = if full { "every byte of" } else { "the sizes of" };
        println!("{name}: compared {what} {} objects, {} bad", report.checked, report.bad.len());
        for bad in &report.bad {
            println!("  {}: {}", bad.key, bad.what);
        }
    }
    match report.bad.is_empty() {
        true => Ok(Exit::Done),
        false if global.json => Ok(Exit::OutOfReach),
        false => Err(CliError::new(Exit::OutOfReach, format!("{} objects of `{name}` are damaged", report.bad.len()))
            .help(format!("`forebay dataset verify {name} --repair` replaces them by what was staged"))),
    }
}
