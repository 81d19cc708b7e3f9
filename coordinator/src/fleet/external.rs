//! Workers that somebody else starts, on hosts that mount the volume: `forebay worker --run RUN`.

use forebay_jobs::id::WorkerId;
use futures::future::BoxFuture;

use super::{Fleet, FleetEvent};

/// Starts nothing, and so stops nothing: its workers end when the link tells them to.
#[derive(Clone, Copy, Debug)]
pub struct External;

impl Fleet for External {
    fn want(&mut self, _: u32) {}

    fn joined(&mut self, _: &WorkerId) {}

    fn started(&self, _: &WorkerId) -> bool {
        false
    }

    fn lost(&mut self, _: &WorkerId) {}

    fn observe(&mut self) -> BoxFuture<'_, FleetEvent> {
        Box::pin(std::future::pending())
    }

    fn stop_all(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::ready(()))
    }
}
