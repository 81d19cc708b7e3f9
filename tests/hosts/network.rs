//! Hosts on a switch: namespaces, which end with the processes that hold them.

use std::{
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
};

use crate::support::processes::Running;

pub struct Network {
    switch: Namespace,
    pub hosts: Vec<Host>,
}

/// A network of its own.
struct Namespace(Child);

/// With processes of its own, too: the first of them holds it, and all end with that.
pub struct Host {
    namespace: Namespace,
    /// The process that holds it, as it is seen from outside.
    first: u32,
    address: String,
}

impl Network {
    /// None where the user may not make networks, or the kernel has no bridges.
    pub fn new(hosts: usize) -> Option<Self> {
        let switch = Namespace::new(&["-n"], "ip link add switch type bridge; ip link set switch up")?;
        let hosts = (0..hosts).map(|number| Host::new(&switch, number)).collect::<Option<_>>()?;
        Some(Self { switch, hosts })
    }

    /// From now on nothing reaches this host, and nothing comes from it.
    pub fn cut(&self, host: usize) {
        assert!(self.switch.sh(&format!("ip link set host{host} down")));
    }

    pub fn heal(&self, host: usize) {
        assert!(self.switch.sh(&format!("ip link set host{host} up")));
    }

    /// As when its power goes: nobody there says goodbye, and nothing arrives any more.
    pub fn kill(&mut self, host: usize) {
        self.cut(host);
        self.hosts[host].die();
    }
}

impl Namespace {
    fn new(kind: &[&str], set_up: &str) -> Option<Self> {
        let mut unshare = Command::new("unshare");
        unshare.args(kind).args(["sh", "-euc", &format!("{set_up}; echo ready; exec sleep infinity")]);
        let mut holder = unshare.stdout(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut said).unwrap();
        let namespace = Self(holder);
        (said == "ready\n").then_some(namespace)
    }

    fn sh(&self, text: &str) -> bool {
        let target = self.0.id().to_string();
        let status = Command::new("nsenter").args(["-t", &target, "-n", "sh", "-euc", text]).status().unwrap();
        status.success()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Host {
    fn new(switch: &Namespace, number: usize) -> Option<Self> {
        let namespace = Namespace::new(&["-npf", "--kill-child", "--mount-proc"], "ip link set lo up")?;
        let holder = namespace.0.id();
        let children = std::fs::read_to_string(format!("/proc/{holder}/task/{holder}/children")).unwrap();
        let first = children.trim().parse().unwrap();
        let (address, v6) = (format!("10.77.0.{}", number + 1), format!("fd77::{}", number + 1));
        let is_linked = switch.sh(&format!(
            "ip link add host{number} type veth peer name eth0 netns {first}\n\
             ip link set host{number} master switch up\n\
             nsenter -t {first} -n sh -euc 'ip addr add {address}/24 dev eth0; ip link set eth0 up'\n\
             nsenter -t {first} -n ip addr add {v6}/64 dev eth0 nodad 2>/dev/null || true"
        ));
        is_linked.then_some(Self { namespace, first, address })
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whether it has the address of IPv6 that ends as the other one.
    pub fn has_v6(&self) -> bool {
        self.namespace_sh("ip -6 addr show dev eth0 | grep -q fd77")
    }

    /// From now on it has no address but that.
    pub fn only_v6(&self) {
        assert!(self.namespace_sh(&format!("ip addr del {}/24 dev eth0", self.address)));
    }

    fn namespace_sh(&self, text: &str) -> bool {
        let first = self.first.to_string();
        Command::new("nsenter").args(["-t", &first, "-n", "sh", "-euc", text]).status().unwrap().success()
    }

    pub fn name(&self) -> String {
        format!("at-{}", self.address)
    }

    /// Starts the program there.
    pub fn start(&self, args: &[&str]) -> Running {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.first.to_string(), "-n", "-p", "-m", env!("CARGO_BIN_EXE_forebay")]).args(args);
        command.env_remove("AWS_ENDPOINT_URL_S3");
        Running::new(command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))
    }

    /// From now on a directory is found there at another path, which is made, and no longer at its own.
    pub fn moves(&self, directory: &Path, to: &Path) {
        std::fs::create_dir_all(to).unwrap();
        let (from, to) = (directory.display(), to.display());
        let text = format!("mount --bind {from} {to}; mount -t tmpfs -o size=4k none {from}");
        let first = self.first.to_string();
        let status = Command::new("nsenter").args(["-t", &first, "-m", "sh", "-euc", &text]).status().unwrap();
        assert!(status.success());
    }

    fn die(&mut self) {
        let _ = self.namespace.0.kill();
        let _ = self.namespace.0.wait();
    }
}
