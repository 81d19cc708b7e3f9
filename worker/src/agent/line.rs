//! The agent's stream to whoever coordinates the run, and the search for the next one while there is none.

use std::time::Duration;

use forebay_datasets::volume::Volume;
use forebay_jobs::{
    id::RunId,
    kept::RESULT,
    wire::{FromWorker, ToWorker},
};
use futures::{StreamExt, future::BoxFuture};
use tokio::time::Instant;
use tonic::Status;

use crate::link::{self, Link};

/// Between two tries to reach a coordinator.
pub(super) const RETRY: Duration = Duration::from_secs(1);

/// The stream, or what is done to have one again.
pub(super) enum Line {
    /// There is one.
    Up(Box<Link>),
    /// A coordinator is being called.
    Calling(BoxFuture<'static, Answer>),
    /// None answered. From this moment on, another call may be made.
    Down(Instant),
}

/// What came over the line, or of it.
pub(super) enum News {
    /// The coordinator said this.
    Said(ToWorker),
    /// The stream ended; how, unless it was just closed.
    Broke(Option<Box<Status>>),
    /// A coordinator has welcomed this worker back.
    IsBack,
    /// Nobody answered.
    Nobody,
    /// It is time to call again.
    MayCall,
    /// Nobody will ever answer: the run has ended.
    RunEnded,
}

pub(super) enum Answer {
    Welcome(Box<Link>),
    None,
    RunEnded,
}

impl Line {
    /// Calls the coordinator of the run's newest epoch.
    pub(super) fn call(run: RunId, volume: Volume, hello: FromWorker) -> Self {
        Self::Calling(Box::pin(async move {
            let run_dir = volume.run_dir(run.as_str());
            match link::connect(&run, &volume, hello).await {
                Ok(link) => Answer::Welcome(Box::new(link)),
                // Its directory goes with it.
                Err(_) if run_dir.join(RESULT).exists() || !run_dir.exists() => Answer::RunEnded,
                Err(error) => {
                    tracing::debug!(%error, "no coordinator");
                    Answer::None
                }
            }
        }))
    }

    pub(super) fn is_up(&self) -> bool {
        matches!(self, Self::Up(_))
    }

    /// Waits for what comes next. May be dropped and called again at any time.
    pub(super) async fn next(&mut self) -> News {
        match self {
            Self::Up(link) => match link.incoming.next().await {
                Some(Ok(message)) => News::Said(message),
                Some(Err(status)) => News::Broke(Some(Box::new(status))),
                None => News::Broke(None),
            },
            Self::Calling(call) => match call.await {
                Answer::Welcome(link) => {
                    *self = Self::Up(link);
                    News::IsBack
                }
                answer => {
                    *self = Self::Down(Instant::now() + RETRY);
                    if matches!(answer, Answer::RunEnded) { News::RunEnded } else { News::Nobody }
                }
            },
            Self::Down(until) => {
                // Nobody tells a worker that there is a coordinator: it asks again after a while.
                tokio::time::sleep_until(*until).await;
                News::MayCall
            }
        }
    }
}
