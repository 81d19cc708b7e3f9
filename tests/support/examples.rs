//! The examples: their files, and the programs that are made of them.

use std::{
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

/// A file or a directory of the examples.
pub fn example(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples").join(name)
}

/// A job of the examples, with something in it replaced.
#[track_caller]
pub fn job(name: &str, what: &str, by: &str) -> String {
    let text = std::fs::read_to_string(example(name)).unwrap();
    assert!(text.contains(what), "{name} has no {what}");
    text.replace(what, by)
}

/// The program of `examples/sessions`.
pub fn sessions() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| built("sessions"))
}

/// The program of `examples/stations`.
pub fn stations() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| built("stations"))
}

/// A program of the examples, built as the tests were: by `cargo test` already, unless that was told to build this test
/// alone.
fn built(name: &str) -> PathBuf {
    let dir = Path::new(env!("CARGO_BIN_EXE_forebay")).parent().unwrap();
    let profile = dir.file_name().and_then(|name| name.to_str()).unwrap();
    let profile = if profile == "debug" { "dev" } else { profile };
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--quiet", "--locked", "--example", name, "--profile", profile, "--target-dir"]);
    cargo.arg(dir.parent().unwrap()).current_dir(env!("CARGO_MANIFEST_DIR"));
    // What cargo says to a test is not for another cargo: build scripts would be run again because of it.
    let told = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_", "CARGO_CRATE_", "LD_LIBRARY_"];
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(|name| told.iter().any(|prefix| name.starts_with(prefix))) {
            cargo.env_remove(name);
        }
    }
    assert!(cargo.status().unwrap().success(), "{cargo:?}");
    dir.join("examples").join(name)
}
