//! Very many workers in one process, which do nothing and take their time over it: to see what a coordinator bears.
//! `swarm VOLUME RUN WORKERS MILLISECONDS`: each attempt takes so long. Each worker has a connection and a slot of its own,
//! and beats as a real one. See `benches/swarm/run.py`.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    env,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use forebay_datasets::volume::{Holder, Volume};
use forebay_jobs::{
    id::AttemptId,
    link::LinkClient,
    task::{AttemptReport, Outcome},
    wire::{FromWorker, LinkFile, ToWorker},
};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::UnboundedReceiverStream;

type Failed = Box<dyn std::error::Error + Send + Sync>;

const HEARTBEAT: Duration = Duration::from_secs(2);

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Failed> {
    let arguments: Vec<_> = env::args().skip(1).collect();
    let [volume, run, workers, millis] = &arguments[..] else {
        return Err("usage: swarm VOLUME RUN WORKERS MILLISECONDS".into());
    };
    let volume = Volume::open(Path::new(volume))?;
    let link = volume.run_dir(run).join("epochs/1/link.json");
    let link: Arc<LinkFile> = Arc::new(serde_json::from_slice(&std::fs::read(link)?)?);
    let (takes, done) = (Duration::from_millis(millis.parse()?), Arc::new(AtomicU64::new(0)));
    let mut swarm = tokio::task::JoinSet::new();
    for number in 0..workers.parse::<u32>()? {
        let hello = FromWorker::Hello {
            run: run.parse()?,
            worker: format!("swarm-{number}").parse()?,
            slots: 1,
            process: Holder::this_process(),
            holds: BTreeSet::new(),
            left: None,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            volume: volume.id().to_owned(),
            root: volume.root().display().to_string(),
            natives: BTreeSet::new(),
        };
        let (volume, link, done) = (volume.clone(), Arc::clone(&link), Arc::clone(&done));
        swarm.spawn(async move { work(&volume, &link, hello, takes, &done).await });
    }
    let mut lost = 0;
    while let Some(ended) = swarm.join_next().await {
        lost += usize::from(!matches!(ended, Ok(Ok(true))));
    }
    println!("{} attempts, {lost} workers without a farewell", done.load(Ordering::Relaxed));
    Ok(())
}

/// Works until the coordinator says that nothing more will come; false if the stream ended before.
async fn work(
    volume: &Volume,
    link: &LinkFile,
    hello: FromWorker,
    takes: Duration,
    done: &AtomicU64,
) -> Result<bool, Failed> {
    let client = LinkClient::connect(link).await?;
    let (say, said) = mpsc::unbounded_channel();
    say.send(hello)?;
    let mut orders = client.work(UnboundedReceiverStream::new(said)).await?;
    let mut queue: VecDeque<AttemptId> = VecDeque::new();
    let mut running: Option<(AttemptId, Instant)> = None;
    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    loop {
        if running.is_none() {
            running = queue.pop_front().map(|attempt| (attempt, Instant::now() + takes));
            if let Some((attempt, _)) = running {
                say.send(FromWorker::Started(vec![attempt]))?;
            }
        }
        let ends = async {
            match running {
                // What it does is to take its time.
                Some((_, at)) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            order = orders.message() => match order? {
                Some(ToWorker::Assign(assigned)) => queue.extend(assigned.into_iter().map(|given| given.attempt)),
                Some(ToWorker::Kill(attempts)) => queue.retain(|attempt| !attempts.contains(attempt)),
                Some(ToWorker::Shutdown) => return Ok(true),
                Some(ToWorker::Look { canary }) => {
                    say.send(FromWorker::Seen(std::fs::read_to_string(volume.resolve(&canary)?).ok()))?;
                }
                Some(ToWorker::Welcome { .. } | ToWorker::Noted(_) | ToWorker::Yield(_)) => {}
                None => return Ok(false),
            },
            () = ends => {
                let outcome = Outcome::Done { outputs: Vec::new(), metrics: BTreeMap::new(), rest: None };
                let reports = running.take().map(|(attempt, _)| AttemptReport { attempt, outcome, seconds: takes.as_secs_f64() });
                say.send(FromWorker::Reports(reports.into_iter().collect()))?;
                done.fetch_add(1, Ordering::Relaxed);
            }
            _ = heartbeat.tick() => say.send(FromWorker::Heartbeat)?,
        }
    }
}
