//! `forebay volume show|check|set`

use forebay_datasets::{
    room::{self, Space},
    volume::{Mount, Volume},
};
use serde_json::{Value, json};

use crate::{
    cli::{Global, Quota, VolumeCommand},
    error::{CliError, Exit},
    render,
};

/// Findings that differ from one moment to the next, and mean nothing by it.
const OF_THE_MOMENT: [&str; 6] = ["clock_skew_ms", "host", "kernel", "latency_us", "probe", "probed"];

pub fn execute(global: &Global, command: &VolumeCommand) -> Result<Exit, CliError> {
    match command {
        VolumeCommand::Show => show(global),
        VolumeCommand::Check => check(global),
        VolumeCommand::Set { quota } => set(global, *quota),
    }
}

fn show(global: &Global) -> Result<Exit, CliError> {
    let volume = Volume::open(&global.volume)?;
    let (space, used, mount) = (Space::of(&volume)?, room::used(&volume)?, volume.mount());
    let runs = entries(&volume.runs_dir());
    let trash = entries(&volume.root().join("trash"));
    if global.json {
        let object = json!({
            "version": 1, "volume": volume.root(), "id": volume.id(), "quota": volume.quota(),
            "free_bytes": space.free_bytes, "bytes": space.bytes, "free_inodes": space.free_inodes,
            "inodes": space.inodes,
            "holds": { "datasets": used.datasets, "snapshots": used.snapshots, "objects": used.objects,
                       "bytes": used.bytes, "runs": runs, "trash": trash },
            "mount": mount, "network": mount.is_network(), "lacks": mount.lacks(), "mounts": volume.known_mounts()?,
        });
        println!("{object}");
        return Ok(Exit::Done);
    }
    let of = |free: u64, all: u64| format!("{} of {}", render::bytes(free), render::bytes(all));
    let inodes = match (space.free_inodes, space.inodes) {
        (Some(free), Some(all)) => format!("{free} of {all}"),
        _ => "not limited".to_owned(),
    };
    let quota = match volume.quota() {
        Some(quota) => format!("{}, {} used", render::bytes(quota), render::bytes(used.bytes)),
        None => "none".to_owned(),
    };
    let counts = [(used.datasets, "dataset"), (used.snapshots, "snapshot"), (used.objects, "object"), (runs, "run")];
    let counts = counts.map(|(number, thing)| render::count(number, thing)).join(", ");
    let mut lines = vec![
        ("volume", volume.root().display().to_string()),
        ("id", volume.id().to_owned()),
        ("free", of(space.free_bytes, space.bytes)),
        ("inodes free", inodes),
        ("quota", quota),
        ("holds", format!("{counts}; snapshots take {}", render::bytes(used.bytes))),
    ];
    if trash > 0 {
        lines.push(("trash", format!("{trash} left to remove")));
    }
    lines.extend(findings(mount));
    print(&lines);
    Ok(Exit::Done)
}

fn check(global: &Global) -> Result<Exit, CliError> {
    let mut volume = Volume::open_or_create(&global.volume)?;
    let (before, found) = volume.check()?;
    let changed = changes(&before, found);
    if global.json {
        let lacks = found.lacks();
        let code = if lacks.is_empty() { Exit::Done } else { Exit::OutOfReach };
        let object = json!({ "version": 1, "volume": volume.root(), "mount": volume.mount(), "changed": changed,
                             "lacks": lacks });
        println!("{object}");
        return Ok(code);
    }
    print(&findings(found));
    for (name, change) in &changed {
        println!("{name} was {} and is {}", change["was"], change["is"]);
    }
    let lacks = found.lacks();
    match lacks.is_empty() {
        true => {
            render::note(global.quiet, "this mount does everything that forebay's guarantees need");
            Ok(Exit::Done)
        }
        false => Err(CliError::new(Exit::OutOfReach, lacks.join("; "))
            .help("mount the file system in another way, or put the volume on another one with --volume")),
    }
}

fn set(global: &Global, quota: Option<Quota>) -> Result<Exit, CliError> {
    let mut volume = Volume::open_or_create(&global.volume)?;
    if let Some(quota) = quota {
        volume.set_quota(quota.0)?;
    }
    if global.json {
        println!("{}", json!({ "version": 1, "volume": volume.root(), "quota": volume.quota() }));
        return Ok(Exit::Done);
    }
    match volume.quota() {
        Some(quota) => println!("quota {}", render::bytes(quota)),
        None => println!("quota none"),
    }
    Ok(Exit::Done)
}

/// What is in a directory, apart from what is temporary.
fn entries(dir: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|entry| !entry.file_name().to_string_lossy().starts_with('.')).count() as u64
}

fn findings(mount: &Mount) -> Vec<(&'static str, String)> {
    let kind = &mount.kind;
    let place = match (mount.is_efs(), mount.is_network()) {
        (true, _) => " (EFS, a network file system)",
        (_, true) => " (a network file system)",
        _ => "",
    };
    let mut lines = vec![
        ("file system", format!("{}{place}", kind.file_system)),
        ("source", kind.source.clone()),
        ("options", kind.options.clone()),
    ];
    if !mount.is_probed() {
        lines.push(("probed", "never from such a mount: `forebay volume check` does it".to_owned()));
        return lines;
    }
    let yes = |found: bool| if found { "yes" } else { "no" }.to_owned();
    let names = match (mount.folds_case, mount.folds_unicode) {
        (false, false) => "kept apart",
        (true, false) => "case folded",
        (false, true) => "Unicode forms folded",
        (true, true) => "case and Unicode forms folded",
    };
    let odd = if mount.odd_names { "" } else { ", some characters refused" };
    let direct = mount.direct_io.map_or("no".to_owned(), |unit| format!("in units of {unit} bytes"));
    let replaced = mount.rename_replaces && mount.rename_atomic;
    let locks = match (mount.flock, mount.record_locks) {
        (true, true) => "flock and fcntl, between processes",
        (true, false) => "flock, between processes",
        (false, true) => "fcntl, between processes",
        (false, false) => "none that keeps another process out",
    };
    let clock = match mount.clock_skew_ms {
        0 => "as that host's".to_owned(),
        ahead @ 1.. => format!("{ahead} ms ahead of that host's"),
        behind => format!("{} ms behind that host's", behind.unsigned_abs()),
    };
    lines.extend([
        ("probed", format!("{} on {}", render::time(&mount.probed), mount.host)),
        ("fsync", format!("files {}, directories {}", yes(mount.sync_file), yes(mount.sync_dir))),
        ("syncfs", yes(mount.syncfs)),
        ("rename over", if replaced { "at once".to_owned() } else { yes(false) }),
        ("hard links", yes(mount.link)),
        ("O_EXCL", yes(mount.create_exclusive)),
        ("locks", locks.to_owned()),
        ("reflinks", yes(mount.reflink)),
        ("O_DIRECT", direct),
        ("fallocate", yes(mount.fallocate)),
        ("names", format!("{names}, up to {} bytes{odd}", mount.longest_name)),
        ("clock", clock),
        ("publishing", format!("{} µs a small file", mount.latency_us)),
    ]);
    lines
}

fn print(lines: &[(&str, String)]) {
    for (name, value) in lines {
        println!("{name:12} {value}");
    }
}

/// The findings that are others than before, with both values.
fn changes(before: &Mount, found: &Mount) -> serde_json::Map<String, Value> {
    let (Value::Object(before), Value::Object(found)) = (json!(before), json!(found)) else {
        return Default::default();
    };
    let changed = found.into_iter().filter(|(name, value)| {
        !OF_THE_MOMENT.contains(&name.as_str()) && before.get(name).is_some_and(|before| before != value)
    });
    changed.map(|(name, value)| (name.clone(), json!({ "was": before[&name], "is": value }))).collect()
}
