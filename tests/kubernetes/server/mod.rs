//! A Kubernetes that keeps the rules of Indexed Jobs, and runs pods as processes of this machine.
//!
//! It stands for the API server, the controllers of Jobs, of what is deleted and of lost nodes, the scheduler and the
//! kubelets: as much of each as concerns the pods of Jobs. All requests are logged, and any can be made to fail.

mod controller;
mod http;
mod kubelet;
mod settings;
mod world;

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, MutexGuard},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use hyper::{server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::{batch::v1::Job, core::v1::Pod};
use serde_json::Value;
use tokio::{net::TcpListener, sync::oneshot};

use self::{
    http::Fault,
    kubelet::Container,
    world::{World, index, owner, phase},
};
pub use self::{
    http::{Failing, Logged},
    settings::Settings,
    world::Refusal,
};

/// From one round of its controllers and nodes to the next.
const ROUND: Duration = Duration::from_millis(10);

/// What requests and controllers share.
#[derive(Debug)]
pub struct Shared {
    pub namespace: String,
    world: Mutex<World>,
    log: Mutex<Vec<Logged>>,
    faults: Mutex<Vec<Fault>>,
    /// What is left of lists, by what is to be asked for it.
    rests: Mutex<BTreeMap<String, Vec<Value>>>,
}

impl Shared {
    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().unwrap()
    }

    fn log(&self, logged: Logged) {
        self.log.lock().unwrap().push(logged);
    }

    fn fault(&self, method: &str, path: &str) -> Option<Failing> {
        let mut faults = self.faults.lock().unwrap();
        let fault = faults.iter_mut().find(|it| it.times > 0 && it.method == method && path.contains(it.path))?;
        fault.times -= 1;
        Some(fault.what.clone())
    }

    fn keep(&self, rest: Vec<Value>) -> String {
        let token = format!("{:016x}", fastrand::u64(..));
        self.rests.lock().unwrap().insert(token.clone(), rest);
        token
    }

    fn rest(&self, token: &str) -> Option<Vec<Value>> {
        self.rests.lock().unwrap().remove(token)
    }
}

/// The server, until it is dropped. Then all of its pods have ended.
#[derive(Debug)]
pub struct KubernetesServer {
    shared: Arc<Shared>,
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl KubernetesServer {
    /// One namespace, and nothing in it.
    pub fn start(namespace: &str) -> Self {
        let shared = Arc::new(Shared {
            namespace: namespace.to_owned(),
            world: Mutex::default(),
            log: Mutex::default(),
            faults: Mutex::default(),
            rests: Mutex::default(),
        });
        let (stop, stopped) = oneshot::channel();
        let (listening, address) = std::sync::mpsc::channel();
        let of_thread = Arc::clone(&shared);
        // A thread of its own, so that tests may block theirs.
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async move {
                let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
                listening.send(listener.local_addr().unwrap()).unwrap();
                tokio::select! {
                    () = serve(listener, Arc::clone(&of_thread)) => {}
                    () = rounds(&of_thread) => {}
                    _ = stopped => {}
                }
            });
        });
        Self { shared, address: address.recv().unwrap(), stop: Some(stop), thread: Some(thread) }
    }

    /// A kubeconfig by which it is reached.
    pub fn kubeconfig(&self, path: &Path) {
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: tests\n\
             clusters:\n- name: tests\n  cluster:\n    server: http://{}\n\
             users:\n- name: tests\n  user:\n    token: secret\n\
             contexts:\n- name: tests\n  context:\n    cluster: tests\n    user: tests\n    namespace: {}\n",
            self.address, self.shared.namespace
        );
        std::fs::write(path, text).unwrap();
    }

    /// Changes what the cluster does from now on.
    pub fn set(&self, change: impl FnOnce(&mut Settings)) {
        change(&mut self.shared.world().settings);
    }

    /// The next requests that are like this fail.
    pub fn fail(&self, method: &'static str, path: &'static str, times: u32, what: Failing) {
        self.shared.faults.lock().unwrap().push(Fault { method, path, times, what });
    }

    pub fn requests(&self) -> Vec<Logged> {
        self.shared.log.lock().unwrap().clone()
    }

    /// What was sent to be made.
    pub fn manifests(&self) -> Vec<Value> {
        let made = self.requests().into_iter().filter(|it| it.method == "POST" && it.path.ends_with("/jobs"));
        made.map(|it| it.body).collect()
    }

    pub fn jobs(&self) -> Vec<Job> {
        self.shared.world().jobs.values().cloned().collect()
    }

    pub fn pods(&self) -> Vec<Pod> {
        self.shared.world().pods.values().map(|live| live.pod.clone()).collect()
    }

    /// Pods whose workers are there and stay.
    pub fn at_work(&self) -> Vec<Pod> {
        let world = self.shared.world();
        world.pods.values().filter(|live| kubelet::is_at_work(live)).map(|live| live.pod.clone()).collect()
    }

    /// As `kubectl drain` does it.
    pub fn evict(&self, pod: &str) {
        let mut world = self.shared.world();
        if let Some(live) = world.pods.get_mut(pod) {
            controller::disrupt(&mut live.pod, "EvictionByEvictionAPI");
        }
        world.begin_to_delete(pod);
    }

    /// Kills a pod's container, as the kernel does for want of memory.
    pub fn out_of_memory(&self, pod: &str) {
        let mut world = self.shared.world();
        if let Some(container) = world.pods.get_mut(pod).and_then(|live| live.container.as_mut()) {
            container.run_out_of_memory();
        }
    }

    /// A pod's node is not heard of any more. What runs on it runs on.
    pub fn lose_node_of(&self, pod: &str) {
        let mut world = self.shared.world();
        let node = world.pods.get(pod).and_then(|live| live.pod.spec.as_ref()?.node_name.clone());
        world.lost.insert(node.expect("the pod has a node"), Instant::now());
    }

    /// Makes a second pod of a pod's index, as it can come to be.
    pub fn duplicate(&self, pod: &str) {
        let mut world = self.shared.world();
        let of = world.pods[pod].pod.clone();
        let uid = owner(&of);
        let job = world.jobs.values().find(|job| job.metadata.uid == uid).cloned().expect("the pod has a Job");
        let name = job.metadata.name.clone().unwrap();
        assert!(world.make_pod(&name, &job, index(&of), (0, 0)));
    }

    /// Workers that run where no pod is any more.
    pub fn adrift(&self) -> usize {
        self.shared.world().adrift.iter_mut().map(Container::has_ended).filter(Option::is_none).count()
    }

    /// Pods that have not ended.
    pub fn left(&self) -> usize {
        let world = self.shared.world();
        let left = world.pods.values().filter(|live| !matches!(phase(&live.pod), "Succeeded" | "Failed"));
        left.count()
    }
}

impl Drop for KubernetesServer {
    fn drop(&mut self) {
        let _ = self.stop.take().map(|stop| stop.send(()));
        let _ = self.thread.take().map(JoinHandle::join);
        // What `.ci/run` looks through.
        if let Some(dir) = std::env::var_os("FOREBAY_TEST_MANIFESTS").filter(|_| !std::thread::panicking()) {
            for manifest in self.manifests() {
                let name = format!("{:016x}.json", fastrand::u64(..));
                std::fs::write(Path::new(&dir).join(name), manifest.to_string()).unwrap();
            }
        }
        // Containers are killed as they are dropped.
        if let Ok(mut world) = self.shared.world.lock() {
            world.pods.clear();
            world.adrift.clear();
        }
    }
}

async fn serve(listener: TcpListener, shared: Arc<Shared>) {
    while let Ok((stream, _)) = listener.accept().await {
        let shared = Arc::clone(&shared);
        tokio::spawn(async move {
            let answer = service_fn(move |request| {
                let shared = Arc::clone(&shared);
                async move { Ok::<_, std::convert::Infallible>(http::answer(&shared, request).await) }
            });
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
        });
    }
}

/// The clock of the cluster.
async fn rounds(shared: &Shared) {
    let mut round = tokio::time::interval(ROUND);
    loop {
        round.tick().await;
        let mut world = shared.world();
        world.control();
        world.run();
    }
}
