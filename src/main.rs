//! The command line of what is built in.

use std::process::ExitCode;

fn main() -> ExitCode {
    forebay::main([])
}
