//! How a worker ends: it drains, or kills what runs, and says good-bye.

use std::time::Duration;

use forebay_jobs::wire::FromWorker;
use futures::StreamExt;
use tokio::time::Instant;

use super::{Agent, Closed, line::Line};
use crate::{link::Link, stop::Why};

/// How long the end waits for what was killed. A fleet grows impatient after five seconds.
const DYING: Duration = Duration::from_secs(3);
/// How long the end waits for the coordinator to take the last reports.
const FAREWELL: Duration = Duration::from_secs(5);

impl Agent {
    /// Begins to end; told again, ends at once.
    pub(super) async fn drain(&mut self) -> Result<(), Closed> {
        let why = if self.draining { Why::Abort } else { Why::Drain };
        self.draining = true;
        self.board.stop(why);
        self.board.give_back();
        if self.line.is_up() { self.send(FromWorker::Draining).await } else { Ok(()) }
    }

    /// Kills what runs, and waits for it as long as it takes a program to die.
    pub(super) async fn abort(&mut self) {
        self.board.give_back();
        self.board.stop(Why::Abort);
        let ended = async {
            while !self.board.is_quiet() {
                self.board.changed().await;
            }
        };
        if tokio::time::timeout(DYING, ended).await.is_err() {
            tracing::warn!("built-in work does not end, and is left to end with the process");
        }
    }

    /// Closes the stream and waits until the coordinator has seen it: then it has seen the last reports too.
    pub(super) async fn say_goodbye(mut self) {
        let Line::Up(link) = std::mem::replace(&mut self.line, Line::Down(Instant::now())) else { return };
        let Link { outgoing, mut incoming, .. } = *link;
        drop(outgoing);
        let seen = async { while let Some(Ok(_)) = incoming.next().await {} };
        if tokio::time::timeout(FAREWELL, seen).await.is_err() {
            tracing::warn!("the coordinator does not close the stream");
        }
    }
}
