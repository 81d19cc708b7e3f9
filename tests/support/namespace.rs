//! Mounts of a test's own.

use std::process::{Command, Stdio};

use super::{Outcome, Terminal, processes::Running};

/// Runs a shell text with the binary as `$forebay`, in a mount namespace of its own: what it mounts ends with it.
pub fn in_namespace(terminal: &Terminal, text: &str) -> Outcome {
    Outcome::of(shell(terminal, text).output().unwrap())
}

/// The same, and goes on. What is to be signalled the text has to `exec`.
pub fn start_in_namespace(terminal: &Terminal, text: &str) -> Running {
    let mut shell = shell(terminal, text);
    Running::new(shell.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))
}

fn shell(terminal: &Terminal, text: &str) -> Command {
    let command = terminal.command();
    let mut shell = Command::new("unshare");
    let map = if rustix::process::geteuid().is_root() { "-m" } else { "-rm" };
    shell.args([map, "sh", "-euc", text]).env_clear().env("forebay", env!("CARGO_BIN_EXE_forebay"));
    shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell
}
