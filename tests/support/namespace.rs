//! Mounts of a test's own.

use std::process::Command;

use super::{Outcome, Terminal};

/// Runs a shell text with the binary as `$forebay`, in a mount namespace of its own: what it mounts ends with it.
pub fn in_namespace(terminal: &Terminal, text: &str) -> Outcome {
    let command = terminal.command();
    let mut shell = Command::new("unshare");
    let map = if rustix::process::geteuid().is_root() { "-m" } else { "-rm" };
    shell.args([map, "sh", "-euc", text]).env_clear().env("forebay", env!("CARGO_BIN_EXE_forebay"));
    shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    Outcome::of(shell.output().unwrap())
}
