//! Where the members of a gang meet.

use std::net::IpAddr;

use forebay_datasets::checksum::Crc64;
use forebay_jobs::{
    id::{AttemptId, RunId},
    wire::Rendezvous,
};

/// Below those that systems give out by themselves (from 32768 on Linux, from 49152 by RFC 6335), so that nobody comes to
/// have one by chance.
const PORTS: std::ops::Range<u64> = 20_000..32_000;

/// Where a gang's try meets, on the host of its first member. The same for all of its members, and for another try most
/// likely another port: in the one before somebody may listen still. The first member's worker sees whether it is free.
pub(super) fn rendezvous(run: &RunId, member: AttemptId, host: IpAddr) -> Rendezvous {
    let gang = format!("{run} {} {}", member.number, member.epoch);
    let port = PORTS.start + Crc64::of(gang.as_bytes()).0 % (PORTS.end - PORTS.start);
    Rendezvous { address: host.to_canonical().to_string(), port: u16::try_from(port).expect("ports have 16 bits") }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use forebay_jobs::id::{Epoch, TaskId};

    use super::*;

    #[test]
    fn all_members_of_a_try_meet_at_one_place_and_the_next_try_at_another() {
        let place = |run: &str, index, number, epoch| {
            let member = AttemptId { task: TaskId { phase: 0, index }, number, epoch: Epoch(epoch) };
            rendezvous(&run.parse().unwrap(), member, "::ffff:10.0.0.1".parse().unwrap())
        };
        let first = place("r", 0, 1, 1);
        assert_eq!((&first.address[..], &first), ("10.0.0.1", &place("r", 7, 1, 1)));
        let tries = [place("r", 0, 2, 1), place("r", 0, 1, 2), place("s", 0, 1, 1), place("r", 0, 12, 1), first];
        let ports: BTreeSet<_> = tries.iter().map(|place| place.port).collect();
        assert_eq!(ports.len(), tries.len());
        assert!(ports.iter().all(|port| PORTS.contains(&u64::from(*port))));
    }
}
