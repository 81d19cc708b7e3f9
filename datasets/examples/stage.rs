//! Stages a source onto a volume, without the command line around it:
//! `cargo run --release -p forebay-datasets --example stage -- VOLUME SOURCE NAME [--no-sync]`

use std::{env, path::Path};

use forebay_datasets::{
    source::SourceOptions,
    stage::{StageRequest, stage},
    volume::Volume,
};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let [volume, source, name, rest @ ..] = &arguments[..] else {
        return Err("usage: stage VOLUME SOURCE NAME [--no-sync]".into());
    };
    let request = StageRequest {
        name: name.clone(),
        url: source.parse()?,
        options: SourceOptions::default(),
        columns: None,
        durable: !rest.iter().any(|argument| argument == "--no-sync"),
    };
    let volume = Volume::open_or_create(Path::new(volume))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let staged = runtime.block_on(stage(&volume, &request, &|_| ()))?;
    println!("{} {} objects in {:.3} s", staged.record.id, staged.fetched_objects, staged.seconds);
    Ok(())
}
