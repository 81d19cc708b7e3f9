//! An ECS for tests: the protocol and the rules of the real one, tasks that are processes of this machine, and on request
//! what goes wrong with the real one.
//!
//! `rules` says what ECS refuses, `actions` is what it answers, `container` runs a task's command in namespaces of its
//! own, with the volumes of its task definition and nothing else to write on, and `life` takes it through its states.
//! What a container prints is in the stream of CloudWatch Logs that its definition says, and the same server has that.
//! Requests are kept with their times. Where `FOREBAY_TEST_ECS_REQUESTS` names a directory, they are written there, for
//! `validate.py`.

mod actions;
mod client;
mod container;
mod life;
mod rules;
mod wire;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU32, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use serde_json::Value;
use tokio::{net::TcpListener, sync::watch, task::AbortHandle};
use tokio_util::sync::CancellationToken;

pub use self::client::client;
use self::rules::Bucket;

/// What is to go wrong.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// So many calls of RunTask are throttled.
    pub throttle: u32,
    /// So many tasks are refused for want of capacity.
    pub no_capacity: u32,
    /// So many calls of RunTask are done, and their answers lost.
    pub lose_answers: u32,
    /// So long are new tasks missing in lists and descriptions.
    pub hidden_for: Duration,
    /// So long does a task wait for its network, and then for its container.
    pub provisioning: Duration,
    pub pending: Duration,
    /// The images of so many tasks cannot be pulled.
    pub bad_images: u32,
    /// So long after it was printed can a line be read.
    pub late_logs: Duration,
}

/// A request, as it was answered.
#[derive(Clone, Debug)]
pub struct Logged {
    pub at: Instant,
    pub action: String,
    pub body: Value,
    /// The error's type; none if it was done.
    pub error: Option<String>,
}

/// A task, as a test sees it.
#[derive(Clone, Debug)]
pub struct Seen {
    pub id: String,
    pub status: &'static str,
    pub started_by: String,
    pub exit: Option<i32>,
}

/// A server; dropped, it ends and kills its containers.
pub struct Ecs {
    address: std::net::SocketAddr,
    shared: Arc<Shared>,
    accepting: AbortHandle,
}

struct Shared {
    state: Mutex<State>,
    /// Whether RunTask is answered once it is done.
    answers: watch::Sender<bool>,
    /// File systems by their ids, and what the images hold.
    file_systems: BTreeMap<String, PathBuf>,
    program: PathBuf,
    address: std::net::SocketAddr,
    closing: CancellationToken,
}

#[derive(Default)]
struct State {
    faults: Faults,
    log: Vec<Logged>,
    definitions: BTreeMap<String, Vec<Value>>,
    tasks: BTreeMap<String, Task>,
    tokens: BTreeMap<String, (Value, Value)>,
    calls: Bucket<20, 20>,
    launches: Bucket<100, 20>,
    /// What containers with a role have in their environment: it stands for where the SDK would get credentials.
    roles: BTreeMap<String, Vec<(&'static str, String)>>,
    /// By group and stream: lines, and when they can be read.
    logs: BTreeMap<(String, String), Vec<(Instant, String)>>,
}

struct Task {
    definition: Value,
    request: Value,
    last: &'static str,
    desired: &'static str,
    stop_code: Option<&'static str>,
    stopped_reason: Option<String>,
    exit: Option<i32>,
    reason: Option<&'static str>,
    seen_from: Instant,
    created: SystemTime,
    started: Option<SystemTime>,
    /// To be asked to end.
    stop: CancellationToken,
    /// To be killed at once.
    kill: CancellationToken,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

impl Ecs {
    /// Starts on a free port of the loopback interface. All images hold `program`.
    pub async fn start(program: &Path, file_systems: &[(&str, &Path)]) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            answers: watch::Sender::new(true),
            file_systems: file_systems.iter().map(|(id, dir)| ((*id).to_owned(), (*dir).to_owned())).collect(),
            program: program.to_owned(),
            address,
            closing: CancellationToken::new(),
        });
        let accepting = tokio::spawn(wire::accept(listener, Arc::clone(&shared))).abort_handle();
        Self { address, shared, accepting }
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn set_faults(&self, faults: Faults) {
        self.shared.lock().faults = faults;
    }

    /// From now on RunTask is done, and not answered until this is called with `true`.
    pub fn answer(&self, answers: bool) {
        self.shared.answers.send_replace(answers);
    }

    /// From now on containers with this role have that in their environment.
    pub fn set_role<const N: usize>(&self, arn: &str, environment: [(&'static str, String); N]) {
        self.shared.lock().roles.insert(arn.to_owned(), environment.into());
    }

    pub fn log(&self) -> Vec<Logged> {
        self.shared.lock().log.clone()
    }

    /// The requests of a kind that were done.
    pub fn done(&self, action: &str) -> Vec<Logged> {
        self.log().into_iter().filter(|logged| logged.action == action && logged.error.is_none()).collect()
    }

    pub fn tasks(&self) -> Vec<Seen> {
        let seen = |(id, task): (&String, &Task)| Seen {
            id: id.clone(),
            status: task.last,
            started_by: task.request["startedBy"].as_str().unwrap_or_default().to_owned(),
            exit: task.exit,
        };
        self.shared.lock().tasks.iter().map(seen).collect()
    }

    /// How many are in a state.
    pub fn count(&self, status: &str) -> usize {
        self.tasks().iter().filter(|task| task.status == status).count()
    }

    /// Spot takes a task's capacity back.
    pub fn interrupt(&self, id: &str) {
        let mut state = self.shared.lock();
        let task = state.tasks.get_mut(id).unwrap();
        task.ask_to_stop("SpotInterruption", "Your Spot Task was interrupted.");
    }

    /// The kernel kills a task's container for want of memory.
    pub fn run_out_of_memory(&self, id: &str) {
        let mut state = self.shared.lock();
        let task = state.tasks.get_mut(id).unwrap();
        task.reason = Some("OutOfMemoryError: Container killed due to memory usage");
        task.kill.cancel();
    }
}

impl Task {
    fn ask_to_stop(&mut self, code: &'static str, reason: &str) {
        if self.desired != "STOPPED" {
            (self.desired, self.stop_code, self.stopped_reason) = ("STOPPED", Some(code), Some(reason.to_owned()));
            self.stop.cancel();
        }
    }
}

impl Drop for Ecs {
    fn drop(&mut self) {
        self.accepting.abort();
        self.shared.closing.cancel();
        let Some(dir) = std::env::var_os("FOREBAY_TEST_ECS_REQUESTS") else { return };
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("{}-{}.ndjson", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let line =
            |logged: &Logged| format!("{}\n", serde_json::json!({ "action": logged.action, "body": logged.body }));
        let lines: String = self.log().iter().map(line).collect();
        std::fs::create_dir_all(&dir).and_then(|()| std::fs::write(Path::new(&dir).join(name), lines)).unwrap();
    }
}
