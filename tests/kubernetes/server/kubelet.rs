//! Where pods are put, and what runs in them: processes of this machine.

use std::{
    collections::BTreeMap,
    fs::File,
    io::Read,
    os::unix::process::{CommandExt, ExitStatusExt},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, Pod,
    PodCondition, Secret, VolumeMount,
};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use super::{
    controller::{disrupt, set},
    settings::Settings,
    world::{Live, World, phase},
};

/// Nodes of the cluster.
const NODES: u64 = 3;
/// From the loss of a node to the deletion of its pods, and to the end of the node's record.
const LOST: [Duration; 2] = [Duration::from_millis(300), Duration::from_millis(600)];
/// As much of a container's last words is in its status.
const MESSAGE: usize = 2048;

/// What runs in a pod.
#[derive(Debug)]
pub struct Container {
    child: Child,
    /// Set once it is reaped.
    status: Option<ExitStatus>,
    log: tempfile::NamedTempFile,
    /// What of Secrets is mounted.
    _mounted: tempfile::TempDir,
    asked: bool,
    /// It was killed for want of memory.
    is_oom: bool,
}

impl Container {
    /// Mounts are told to the container by other paths in its arguments: it has the root of this machine.
    fn start(pod: &Pod, secrets: &BTreeMap<String, Secret>, account: Option<&Path>) -> std::io::Result<Self> {
        let container = &pod.spec.as_ref().expect("pods have one").containers[0];
        let mounted = tempfile::tempdir()?;
        let mut paths = Vec::new();
        for (volume, secret) in mounts(pod, secrets) {
            let dir = mounted.path().join(&volume.name);
            std::fs::create_dir(&dir)?;
            for (key, value) in secret.data.iter().flatten() {
                std::fs::write(dir.join(key), &value.0)?;
            }
            paths.push((volume.mount_path.clone(), dir.display().to_string()));
        }
        let literally = |text: &String| {
            let text = text.replace("$$(", "$(");
            let mount = paths.iter().find_map(|(from, to)| Some(format!("{to}{}", text.strip_prefix(from.as_str())?)));
            mount.unwrap_or(text)
        };
        let words: Vec<_> = container.command.iter().chain(&container.args).flatten().map(literally).collect();
        let log = tempfile::NamedTempFile::new()?;
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        for variable in container.env.iter().flatten() {
            let field = variable.value_from.as_ref().and_then(|from| from.field_ref.as_ref());
            let value = match field.map(|field| field.field_path.as_str()) {
                // Pods are on this machine.
                Some("status.podIP") => "127.0.0.1".to_owned(),
                _ => variable.value.clone().unwrap_or_default(),
            };
            command.env(&variable.name, value);
        }
        // In place of the service account's token.
        let asks = pod.spec.as_ref().and_then(|spec| spec.automount_service_account_token) == Some(true);
        command.envs(account.filter(|_| asks).map(|path| ("KUBECONFIG", path)));
        let output: File = log.reopen()?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output).process_group(0);
        let child = command.spawn()?;
        Ok(Self { child, status: None, log, _mounted: mounted, asked: false, is_oom: false })
    }

    fn pid(&self) -> Option<Pid> {
        Pid::from_raw(i32::try_from(self.child.id()).ok()?)
    }

    /// Of a container only the first process is asked.
    fn ask(&mut self) {
        if !std::mem::replace(&mut self.asked, true) && self.status.is_none() {
            self.pid().map(|pid| kill_process(pid, Signal::TERM));
        }
    }

    fn kill(&mut self) {
        if self.status.is_none() {
            self.pid().map(|pid| kill_process_group(pid, Signal::KILL));
        }
    }

    pub fn run_out_of_memory(&mut self) {
        self.is_oom = true;
        self.kill();
    }

    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.child.try_wait().ok().flatten();
        }
        self.status
    }

    pub fn said(&self) -> String {
        let mut text = String::new();
        let _ = self.log.reopen().and_then(|mut file| file.read_to_string(&mut text));
        text
    }

    fn last_words(&self) -> String {
        let text = self.said();
        let from = text.char_indices().map(|(at, _)| at).find(|at| text.len() - at <= MESSAGE);
        text[from.unwrap_or(0)..].trim().to_owned()
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.kill();
        let _ = self.child.wait();
    }
}

impl World {
    /// One round of the scheduler and of all nodes.
    pub fn run(&mut self) {
        self.lose_pods();
        for name in self.pods.keys().cloned().collect::<Vec<_>>() {
            self.schedule(&name);
            let live = self.pods.get_mut(&name).expect("it is there");
            let node = live.pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
            // A node that was lost does, and says, nothing.
            if node.is_some_and(|node| !self.lost.contains_key(&node)) {
                tend(live, &self.settings, &self.secrets);
            }
        }
    }

    fn schedule(&mut self, name: &str) {
        let why = self.settings.unschedulable.clone();
        let free = (0..NODES).map(|node| format!("node-{node}")).filter(|node| !self.lost.contains_key(node));
        let free: Vec<_> = free.collect();
        let live = self.pods.get_mut(name).expect("it is there");
        let spec = live.pod.spec.get_or_insert_default();
        if spec.node_name.is_some() || live.deleted.is_some() || live.ended.is_some() {
            return;
        }
        let why =
            why.or(free.is_empty().then(|| "0/3 nodes are available: 3 node(s) had untolerated taint".to_owned()));
        let is_placed = why.is_none();
        if is_placed {
            spec.node_name = Some(free[usize::try_from(fastrand::u64(..)).unwrap() % free.len()].clone());
        }
        let condition = PodCondition {
            type_: "PodScheduled".to_owned(),
            status: if is_placed { "True" } else { "False" }.to_owned(),
            reason: (!is_placed).then(|| "Unschedulable".to_owned()),
            message: why,
            ..Default::default()
        };
        live.pod.status.get_or_insert_default().phase = Some("Pending".to_owned());
        set(&mut live.pod, condition);
    }

    /// What becomes of the pods of nodes that were lost: they are deleted, and then, with their nodes, ended.
    fn lose_pods(&mut self) {
        let [deleted, gone] = LOST;
        for (node, since) in self.lost.clone() {
            let of_node = |live: &Live| live.pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()) == Some(&node);
            let names: Vec<_> =
                self.pods.iter().filter(|(_, live)| of_node(live)).map(|(name, _)| name.clone()).collect();
            for name in names {
                if since.elapsed() >= deleted {
                    let live = self.pods.get_mut(&name).expect("it is there");
                    if live.ended.is_none() && live.deleted.is_none() {
                        disrupt(&mut live.pod, "DeletionByTaintManager");
                    }
                    self.begin_to_delete(&name);
                }
                let live = self.pods.get_mut(&name).expect("it is there");
                if since.elapsed() >= gone && live.ended.is_none() {
                    disrupt(&mut live.pod, "DeletionByPodGC");
                    live.pod.status.get_or_insert_default().phase = Some("Failed".to_owned());
                    live.ended = Some(Instant::now());
                    // What ran there may run on.
                    self.adrift.extend(live.container.take());
                }
            }
        }
    }
}

fn tend(live: &mut Live, settings: &Settings, secrets: &BTreeMap<String, Secret>) {
    if live.ended.is_some() {
        return;
    }
    if live.container.is_none() {
        if live.deleted.is_some() {
            return end(live, "Failed", None);
        }
        return begin(live, settings, secrets);
    }
    let Some(container) = &mut live.container else { return };
    if live.deleted.is_some() {
        container.ask();
    }
    if live.kill_at.is_some_and(|at| at <= Instant::now()) {
        container.kill();
    }
    let Some(status) = container.has_ended() else { return };
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    let reason = match code {
        _ if container.is_oom => "OOMKilled",
        0 => "Completed",
        _ => "Error",
    };
    let terminated = ContainerStateTerminated {
        exit_code: code,
        reason: Some(reason.to_owned()),
        message: (code != 0).then(|| container.last_words()),
        ..Default::default()
    };
    end(live, if code == 0 { "Succeeded" } else { "Failed" }, Some(terminated));
}

fn begin(live: &mut Live, settings: &Settings, secrets: &BTreeMap<String, Secret>) {
    let waiting = |reason: String, message: String| ContainerState {
        waiting: Some(ContainerStateWaiting { reason: Some(reason), message: Some(message) }),
        ..Default::default()
    };
    if let Some((reason, message)) = settings.image.clone() {
        return container_is(&mut live.pod, waiting(reason, message));
    }
    let wanted = live.pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()).filter(|it| it.secret.is_some());
    if mounts(&live.pod, secrets).len() < wanted.count() {
        // The kubelet tries again to mount it.
        return container_is(&mut live.pod, waiting("ContainerCreating".to_owned(), String::new()));
    }
    match Container::start(&live.pod, secrets, settings.account.as_deref()) {
        Ok(container) => {
            live.container = Some(container);
            let running = Some(ContainerStateRunning::default());
            container_is(&mut live.pod, ContainerState { running, ..Default::default() });
            live.pod.status.get_or_insert_default().phase = Some("Running".to_owned());
        }
        Err(error) => {
            let terminated = ContainerStateTerminated {
                exit_code: 128,
                reason: Some("StartError".to_owned()),
                message: Some(format!("failed to create containerd task: exec: {error}")),
                ..Default::default()
            };
            end(live, "Failed", Some(terminated));
        }
    }
}

/// A pod has ended.
pub fn end(live: &mut Live, how: &str, terminated: Option<ContainerStateTerminated>) {
    if let Some(terminated) = terminated {
        container_is(&mut live.pod, ContainerState { terminated: Some(terminated), ..Default::default() });
    }
    live.pod.status.get_or_insert_default().phase = Some(how.to_owned());
    live.ended = Some(Instant::now());
    live.log = live.container.take().map(|container| container.said()).unwrap_or_default();
}

/// The Secrets that a pod mounts, those that are there.
fn mounts<'a>(pod: &'a Pod, secrets: &'a BTreeMap<String, Secret>) -> Vec<(&'a VolumeMount, &'a Secret)> {
    let spec = pod.spec.as_ref().expect("pods have one");
    let of_volume = |mount: &&VolumeMount| {
        let volume = spec.volumes.iter().flatten().find(|volume| volume.name == mount.name)?;
        secrets.get(volume.secret.as_ref()?.secret_name.as_ref()?)
    };
    let all = spec.containers[0].volume_mounts.iter().flatten();
    all.filter_map(|mount| Some((mount, of_volume(&mount)?))).collect()
}

fn container_is(pod: &mut Pod, state: ContainerState) {
    let status = ContainerStatus { name: "worker".to_owned(), state: Some(state), ..Default::default() };
    let of_pod = pod.status.get_or_insert_default();
    if of_pod.phase.is_none() {
        of_pod.phase = Some("Pending".to_owned());
    }
    of_pod.container_statuses = Some(vec![status]);
}

/// Whether a pod's worker is there.
pub fn is_at_work(live: &Live) -> bool {
    live.container.is_some() && phase(&live.pod) == "Running" && live.deleted.is_none()
}
