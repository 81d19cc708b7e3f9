//! The command line of what is built in.

use std::process::ExitCode;

use mimalloc::MiMalloc;

// A query's batches are made by one thread and dropped by another: `benches/README.md` has what the system's one takes.
#[global_allocator]
static ALLOCATOR: MiMalloc = MiMalloc;

fn main() -> ExitCode {
    forebay::main([])
}
