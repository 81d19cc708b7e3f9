//! What this host offers.

use std::num::NonZero;

/// Attempts that a worker executes at once if nobody says otherwise: the cores that it may use, which a container's
/// limits and `taskset` lower.
pub fn cores() -> u32 {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    u32::try_from(cores).unwrap_or(u32::MAX)
}

/// The host's name, for people.
pub fn host() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_has_a_core_and_a_name() {
        assert!(cores() >= 1);
        assert!(!host().is_empty());
    }
}
