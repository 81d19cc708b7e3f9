//! `forebay dataset stage --dry-run`: what staging would do.

use forebay_datasets::stage::{
    StageRequest,
    preview::{self, Estimate, Preview},
};
use serde_json::{Value, json};

use crate::{
    cli::Global,
    error::{CliError, Exit},
    render::{self, StageBar},
};

/// Keys shown of those that give way.
const SHOWN: usize = 20;

pub async fn preview(global: &Global, request: &StageRequest) -> Result<Exit, CliError> {
    let bar = StageBar::new(global.quiet);
    let preview = preview::preview(&global.volume, request, SHOWN, &|progress| bar.advance(progress)).await;
    bar.finish();
    let preview = preview?;
    match global.json {
        true => println!("{}", object(request, &preview)),
        false => print(global, request, &preview),
    }
    match preview.room.fits {
        Ok(()) => Ok(Exit::Done),
        Err(_) if global.json => Ok(Exit::OutOfReach),
        Err(error) => Err(error.into()),
    }
}

fn print(global: &Global, request: &StageRequest, preview: &Preview) {
    let StageRequest { name, .. } = request;
    let all = format!("{} of {}", render::count(preview.objects, "object"), render::bytes(preview.bytes));
    match &preview.unchanged {
        Some(id) => println!("{name}: {all}, all of it in snapshot {id}"),
        None => println!(
            "{name}: {all}: {} of {} to be fetched, {} to be shared",
            preview.fetch_objects,
            render::bytes(preview.fetch_bytes),
            preview.objects - preview.fetch_objects
        ),
    }
    if let Some(requests) = &preview.requests {
        println!(
            "requests  {} GET, {} HEAD, {} LIST, if none is made twice",
            requests.gets, requests.heads, requests.lists
        );
        println!(
            "cost      ${:.6} at the list prices of S3 Standard in us-east-1; transfer within the region is free",
            requests.cost()
        );
    }
    println!("time      {}", time(&preview.time));
    println!("room      {} of {} free", render::bytes(preview.room.needed), render::bytes(preview.room.free));
    match preview.renamed {
        0 => println!("names     every key keeps its own"),
        renamed => println!("names     {} of {} keys do not keep their own:", renamed, preview.objects),
    }
    for rename in &preview.renames {
        // A key may hold what a terminal acts on.
        println!("  {:?} -> {}: {}", rename.key, rename.path, rename.why);
    }
    if preview.renamed > preview.renames.len() as u64 {
        println!("  and {} more", preview.renamed - preview.renames.len() as u64);
    }
    render::note(global.quiet, "nothing was fetched, and nothing was changed");
}

fn time(Estimate { seconds, speed, measured }: &Estimate) -> String {
    let (objects, bytes) = (speed.objects as f64 / speed.seconds, speed.bytes as f64 / speed.seconds);
    let speed = format!("{objects:.0} objects/s or {}/s, whichever is slower", render::bytes(bytes as u64));
    match measured {
        Some(when) => format!("about {seconds:.1} s, as fast as the staging of {} was: {speed}", render::time(when)),
        None => format!("about {seconds:.1} s, if it is {speed}: that is assumed, and nothing measured"),
    }
}

fn object(request: &StageRequest, preview: &Preview) -> Value {
    let requests = preview
        .requests
        .as_ref()
        .map(|requests| json!({ "get": requests.gets, "head": requests.heads, "list": requests.lists }));
    let Estimate { seconds, speed, measured } = &preview.time;
    let renames = preview
        .renames
        .iter()
        .map(|rename| json!({ "key": rename.key, "path": rename.path, "why": rename.why.to_string() }));
    json!({
        "version": 1, "dry_run": true, "name": request.name, "source": request.url.to_string(),
        "unchanged": preview.unchanged, "objects": preview.objects, "bytes": preview.bytes,
        "fetch_objects": preview.fetch_objects, "fetch_bytes": preview.fetch_bytes,
        "shared_objects": preview.objects - preview.fetch_objects, "shared_bytes": preview.bytes - preview.fetch_bytes,
        "requests": requests, "cost_usd": preview.requests.as_ref().map(|requests| requests.cost()),
        "seconds": seconds,
        "speed": { "objects": speed.objects, "bytes": speed.bytes, "seconds": speed.seconds, "measured": measured },
        "room": { "needed_bytes": preview.room.needed, "free_bytes": preview.room.free,
                  "fits": preview.room.fits.is_ok(),
                  "why": preview.room.fits.as_ref().err().map(ToString::to_string) },
        "renamed": preview.renamed, "renames": renames.collect::<Vec<_>>(),
    })
}
