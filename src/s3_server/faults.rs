//! What goes wrong on purpose.
//!
//! Single faults name their keys. [`Chance`] lets things go wrong at a rate: whether, and what, is decided by a hash of
//! the seed, of what is asked for, and of how often it was asked for, so that a seed means the same whatever the order
//! in which the requests arrive.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    time::Duration,
};

/// What goes wrong on purpose. All off by default.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// Each so many-th GET, and part of an upload, is answered with 503 SlowDown.
    pub busy_every: Option<u64>,
    /// The bodies of these keys end after half of their bytes.
    pub cut_short: HashSet<String>,
    /// One byte of these keys' bodies is another one.
    pub flipped: HashSet<String>,
    /// GETs of these keys are always answered with 500 InternalError.
    pub failing: HashSet<String>,
    /// These keys get the other content after their first GET.
    pub replaced: BTreeMap<String, Vec<u8>>,
    /// These keys get the other content after so many GETs of theirs.
    pub replaced_after: BTreeMap<String, (u64, Vec<u8>)>,
    /// `If-Match` is ignored.
    pub ignore_if_match: bool,
    /// A range is answered with the whole object.
    pub ignore_range: bool,
    /// A range comes with the checksum of the whole.
    pub checksum_with_ranges: bool,
    /// Listings have no ETags.
    pub list_without_etags: bool,
    /// Listings are in the order of the lower-case keys.
    pub list_by_lower_case: bool,
    /// Listings by directory are refused.
    pub refuse_delimiters: bool,
    /// Each page of a listing names itself as the next one.
    pub list_in_circles: bool,
    /// The next multipart upload is put together, and answered with an error.
    pub lose_completion: bool,
    /// The server's clock is so many seconds ahead; 15 minutes are forgiven, as S3 does.
    pub clock_ahead: i64,
    /// Each GET waits so long for its answer.
    pub latency: Duration,
    /// Each page of a listing waits so long for its answer.
    pub list_latency: Duration,
    /// Bytes a second of each answer's body.
    pub pace: Option<u64>,
    /// What goes wrong now and then.
    pub chance: Chance,
}

/// What can go wrong now and then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Fault {
    /// 503 SlowDown.
    Busy,
    /// 503 SlowDown with `Retry-After: 1`.
    BusyRetryAfter,
    /// 500 InternalError.
    Error,
    /// 403 RequestTimeTooSkewed, with a `Date` of tomorrow.
    Skewed,
    /// No answer for [`Chance::silence`], then the right one.
    Hang,
    /// The connection is reset in the middle of the body.
    Reset,
    /// The connection is closed in the middle of the body.
    Cut,
    /// Half of the body, then nothing for [`Chance::silence`], then the connection is closed.
    Stop,
    /// The body arrives in ten pieces, with pauses.
    Trickle,
    /// One bit of the body is another one.
    Flip,
    /// After this answer the object is another one: each of its bytes is inverted.
    Replace,
    /// A page of a listing has its last object twice.
    PageRepeats,
    /// A page of a listing begins with the last ten objects of the page before.
    PageOverlaps,
    /// A page of a listing lacks an object; its `KeyCount` counts it.
    PageOmits,
}

impl Fault {
    /// Whether it is a fault of listings only.
    pub fn is_of_a_page(self) -> bool {
        matches!(self, Self::PageRepeats | Self::PageOverlaps | Self::PageOmits)
    }
}

/// What goes wrong at which rate.
#[derive(Clone, Debug)]
pub struct Chance {
    /// Another seed, another course of things.
    pub seed: u64,
    /// So many of a thousand requests; each has at most one fault.
    pub per_mille: Vec<(Fault, u64)>,
    /// What has gone wrong so often goes well from then on.
    pub at_most: u32,
    /// How long the server is silent in [`Fault::Hang`] and [`Fault::Stop`].
    pub silence: Duration,
}

impl Default for Chance {
    fn default() -> Self {
        Self { seed: 0, per_mille: Vec::new(), at_most: 4, silence: Duration::from_secs(1) }
    }
}

impl Chance {
    fn draw(&self, what: &str, nth: u32) -> Option<Fault> {
        let mut drawn = hash(self.seed, what, nth) % 1000;
        for (fault, rate) in &self.per_mille {
            match drawn.checked_sub(*rate) {
                None => return Some(*fault),
                Some(rest) => drawn = rest,
            }
        }
        None
    }
}

/// FNV-1a over everything, and a last stirring, since the low digits are what is looked at.
fn hash(seed: u64, what: &str, nth: u32) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in seed.to_le_bytes().into_iter().chain(what.bytes()).chain(nth.to_le_bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    hash ^= hash >> 32;
    hash.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20
}

/// What was asked for how often, and has gone wrong how often.
#[derive(Debug, Default)]
pub(super) struct Tally {
    asked: HashMap<String, (u32, u32)>,
    happened: BTreeMap<String, u64>,
}

impl Tally {
    /// What goes wrong this time.
    pub(super) fn draw(&mut self, chance: &Chance, what: String) -> Option<Fault> {
        if chance.per_mille.is_empty() {
            return None;
        }
        let (asked, faulted) = self.asked.get(&what).copied().unwrap_or_default();
        let fault = chance.draw(&what, asked).filter(|_| faulted < chance.at_most);
        if let Some(fault) = fault {
            *self.happened.entry(format!("{fault:?}")).or_default() += 1;
        }
        self.asked.insert(what, (asked + 1, faulted + u32::from(fault.is_some())));
        fault
    }

    /// How often each fault has happened.
    pub(super) fn happened(&self) -> BTreeMap<String, u64> {
        self.happened.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chance(seed: u64) -> Chance {
        Chance { seed, per_mille: vec![(Fault::Busy, 100), (Fault::Reset, 50)], ..Chance::default() }
    }

    fn drawn(seed: u64, keys: impl Iterator<Item = u32>) -> BTreeMap<u32, Option<Fault>> {
        let mut tally = Tally::default();
        keys.map(|key| (key, tally.draw(&chance(seed), key.to_string()))).collect()
    }

    #[test]
    fn a_seed_means_the_same_in_any_order_and_the_rates_are_kept() {
        let faults = drawn(1, 0..10_000);
        assert_eq!(faults, drawn(1, (0..10_000).rev()));
        assert_ne!(faults, drawn(2, 0..10_000));
        let count = |wanted| faults.values().filter(|fault| **fault == Some(wanted)).count();
        assert!((900..1100).contains(&count(Fault::Busy)), "{}", count(Fault::Busy));
        assert!((425..575).contains(&count(Fault::Reset)), "{}", count(Fault::Reset));
    }

    #[test]
    fn what_went_wrong_often_enough_goes_well() {
        let always = Chance { per_mille: vec![(Fault::Cut, 1000)], at_most: 2, ..Chance::default() };
        let mut tally = Tally::default();
        let drawn: Vec<_> = (0..4).map(|_| tally.draw(&always, "x".to_owned())).collect();
        assert_eq!(drawn, [Some(Fault::Cut), Some(Fault::Cut), None, None]);
        assert_eq!(tally.happened(), [("Cut".to_owned(), 2)].into());
    }
}
