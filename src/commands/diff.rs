//! `forebay dataset diff`: what differs between two snapshots.

use std::io::{self, BufWriter, StdoutLock, Write};

use forebay_datasets::{
    diff::{self, Change, Tally, Totals},
    snapshot::{Object, SnapshotError, SnapshotRecord},
    volume::Volume,
};
use serde_json::{Value, json};

use crate::{
    cli::Global,
    error::{CliError, Exit},
    render,
};

pub fn diff(
    global: &Global,
    name: &str,
    from: Option<&str>,
    to: Option<&str>,
    summary: bool,
) -> Result<Exit, CliError> {
    let volume = Volume::open(&global.volume)?;
    let (from, to) = diff::pair(&volume, name, from, to)?;
    let mut out = BufWriter::new(io::stdout().lock());
    let write = if global.json { write_json } else { write_text };
    match write(&mut out, &volume, [&from, &to], summary).and_then(|()| Ok(out.flush()?)) {
        // Who reads has seen enough.
        Err(Unfinished::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Exit::Done),
        Err(Unfinished::Output(error)) => {
            Err(CliError::new(Exit::OutOfReach, format!("cannot write the result: {error}")))
        }
        Err(Unfinished::Snapshot(error)) => Err(error.into()),
        Ok(()) => Ok(Exit::Done),
    }
}

/// Why not all was told.
enum Unfinished {
    Output(io::Error),
    Snapshot(SnapshotError),
}

impl From<io::Error> for Unfinished {
    fn from(error: io::Error) -> Self {
        Self::Output(error)
    }
}

impl From<SnapshotError> for Unfinished {
    fn from(error: SnapshotError) -> Self {
        Self::Snapshot(error)
    }
}

type Out<'a> = BufWriter<StdoutLock<'a>>;
type Sides<'a> = [&'a SnapshotRecord; 2];

fn write_text(out: &mut Out<'_>, volume: &Volume, [from, to]: Sides<'_>, summary: bool) -> Result<(), Unfinished> {
    let mut changes = diff::changes(volume, from, to)?;
    for change in changes.by_ref() {
        let change = change?;
        let size = |object: &Object| render::bytes(object.size);
        let line = match &change {
            _ if summary => continue,
            Change::Added(object) => format!("+ {}  {}", object.key, size(object)),
            Change::Removed(object) => format!("- {}  {}", object.key, size(object)),
            Change::Changed { before, after } => format!("~ {}  {} -> {}", after.key, size(before), size(after)),
        };
        writeln!(out, "{line}")?;
    }
    let totals = changes.totals();
    let told = |tally: Tally| format!("{} ({})", tally.objects, render::bytes(tally.bytes));
    let (added, removed, unchanged) = (told(totals.added), told(totals.removed), told(totals.unchanged));
    let changed = format!(
        "{} ({} -> {})",
        totals.changed.objects,
        render::bytes(totals.changed_bytes_before),
        render::bytes(totals.changed.bytes)
    );
    let short = |record: &SnapshotRecord| record.id.0.chars().take(12).collect::<String>();
    writeln!(
        out,
        "{} -> {}: added {added}, removed {removed}, changed {changed}, unchanged {unchanged}",
        short(from),
        short(to)
    )?;
    Ok(())
}

/// One object, which may be longer than memory: its totals come first, from a pass of their own.
fn write_json(out: &mut Out<'_>, volume: &Volume, [from, to]: Sides<'_>, summary: bool) -> Result<(), Unfinished> {
    let mut changes = diff::changes(volume, from, to)?;
    changes.by_ref().try_for_each(|change| change.map(drop))?;
    let mut head = json!({ "version": 1, "name": to.name, "from": from.id, "to": to.id });
    let Totals { added, removed, changed, changed_bytes_before, unchanged } = changes.totals();
    let tally = |tally: Tally| json!({ "objects": tally.objects, "bytes": tally.bytes });
    head["added"] = tally(added);
    head["removed"] = tally(removed);
    head["changed"] = tally(changed);
    head["changed"]["bytes_before"] = json!(changed_bytes_before);
    head["unchanged"] = tally(unchanged);
    if summary {
        return Ok(writeln!(out, "{head}")?);
    }
    let head = head.to_string();
    let open = head.strip_suffix('}').expect("an object ends with a brace");
    write!(out, "{open},\"objects\":[")?;
    let mut comma = "";
    for change in diff::changes(volume, from, to)? {
        write!(out, "{comma}{}", object(&change?))?;
        comma = ",";
    }
    Ok(writeln!(out, "]}}")?)
}

fn object(change: &Change) -> Value {
    match change {
        Change::Added(object) => json!({ "key": object.key, "change": "added", "size": object.size }),
        Change::Removed(object) => json!({ "key": object.key, "change": "removed", "size": object.size }),
        Change::Changed { before, after } => {
            json!({ "key": after.key, "change": "changed", "size": after.size, "size_before": before.size })
        }
    }
}
