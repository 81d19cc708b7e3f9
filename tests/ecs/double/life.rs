//! The life of a task, from PROVISIONING to STOPPED.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use super::{Shared, Task, container};

/// What a task's states are shown for at least, so that lists have a chance to show them.
const SHOWN: Duration = Duration::from_millis(20);

pub async fn of_task(shared: Arc<Shared>, id: String) {
    let (stop, kill, faults) = {
        let state = shared.lock();
        let task = &state.tasks[&id];
        (task.stop.clone(), task.kill.clone(), state.faults.clone())
    };
    let to = |last: &'static str| shared.lock().tasks.get_mut(&id).unwrap().last = last;
    for (last, wait) in [("PROVISIONING", faults.provisioning), ("PENDING", faults.pending)] {
        to(last);
        tokio::select! {
            () = tokio::time::sleep(wait.max(SHOWN)) => {}
            () = stop.cancelled() => return to("STOPPED"),
            () = shared.closing.cancelled() => return,
        }
    }
    let bad_image = {
        let mut state = shared.lock();
        let bad = state.faults.bad_images > 0;
        state.faults.bad_images -= u32::from(bad);
        bad
    };
    if bad_image {
        let image =
            "pull image manifest has been retried 1 time(s): failed to resolve ref registry/forebay:1: not found";
        let mut state = shared.lock();
        let task = state.tasks.get_mut(&id).unwrap();
        task.ended("TaskFailedToStart", format!("CannotPullContainerError: {image}"));
        return;
    }
    let mut running = {
        let state = shared.lock();
        container::of_task(&shared, &state, &id)
    };
    running.start(&shared, faults.late_logs).await;
    shared.lock().tasks.get_mut(&id).unwrap().started = Some(SystemTime::now());
    to("RUNNING");
    let exit = tokio::select! {
        exit = running.wait() => exit,
        () = kill.cancelled() => running.kill().await,
        () = stop.cancelled() => {
            to("DEACTIVATING");
            running.terminate().await
        }
        () = shared.closing.cancelled() => running.kill().await,
    };
    to("DEPROVISIONING");
    tokio::time::sleep(SHOWN).await;
    let mut state = shared.lock();
    let task = state.tasks.get_mut(&id).unwrap();
    task.exit = Some(exit);
    task.ended("EssentialContainerExited", "Essential container in task exited".to_owned());
}

impl Task {
    /// It has ended, for this reason if there was no other before.
    fn ended(&mut self, code: &'static str, reason: String) {
        (self.last, self.desired) = ("STOPPED", "STOPPED");
        self.stop_code.get_or_insert(code);
        self.stopped_reason.get_or_insert(reason);
    }
}
