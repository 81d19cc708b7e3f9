//! An engine in memory that does what engines do at their worst, in real time: it throttles, starts a part, loses answers
//! after it has done what was asked, and lists what was so a while ago.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard},
    time::Duration,
};

use forebay_jobs::id::MemberId;
use tokio::time::Instant;

use super::super::engine::{Call, Class, Engine, EngineError, Limits, Sighting, Started, State, Token};

/// Lists are so old.
const LAG: Duration = Duration::from_millis(200);

#[derive(Debug)]
struct Life {
    token: Token,
    born: Instant,
    ended: Option<Instant>,
}

#[derive(Debug, Default)]
struct World {
    lives: BTreeMap<MemberId, Life>,
    calls: u32,
    stops: u32,
}

/// Its clones are of one world.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rough(Arc<Mutex<World>>);

impl Rough {
    fn world(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap()
    }

    /// How many there are, whatever lists say.
    pub(crate) fn exist(&self) -> usize {
        self.world().lives.values().filter(|life| life.ended.is_none()).count()
    }

    /// Ends one.
    pub(crate) fn kill(&self) {
        let mut world = self.world();
        let life = world.lives.values_mut().find(|life| life.ended.is_none()).expect("there is one");
        life.ended = Some(Instant::now());
    }
}

impl Engine for Rough {
    fn limits(&self) -> Limits {
        Limits {
            batch: 2,
            pause: Duration::from_millis(5),
            settle: Duration::from_millis(500),
            poll: (Duration::from_millis(50), Duration::from_millis(200)),
            call: Duration::from_secs(5),
        }
    }

    async fn start(&self, call: &Call) -> Result<Started, EngineError> {
        let mut world = self.world();
        world.calls += 1;
        let turn = world.calls % 4;
        let is_its = |(_, life): &(&MemberId, &Life)| life.token == call.token;
        if !world.lives.iter().any(|life| is_its(&life)) {
            let count = match turn {
                0 => return Err(EngineError::new(Class::Throttled, "not now")),
                1 => call.count.div_ceil(2),
                _ => call.count,
            };
            for index in 0..count {
                let member = format!("{}-{index}", call.token).parse().expect("letters, digits and hyphens are an id");
                let life = Life { token: call.token.clone(), born: Instant::now(), ended: None };
                world.lives.insert(member, life);
            }
        }
        if turn == 2 {
            return Err(EngineError::new(Class::Unknown, "the answer is lost"));
        }
        let its = world.lives.iter().filter(is_its);
        let members: Vec<_> = its.filter(|(_, life)| life.ended.is_none()).map(|(member, _)| member.clone()).collect();
        let refused = (members.len() < call.count as usize).then(|| EngineError::new(Class::Capacity, "no room"));
        Ok(Started { members, refused })
    }

    async fn list(&self, _: &[MemberId]) -> Result<Vec<Sighting>, EngineError> {
        let world = self.world();
        let Some(then) = Instant::now().checked_sub(LAG) else { return Ok(Vec::new()) };
        let seen = world.lives.iter().filter(|(_, life)| life.born <= then).map(|(member, life)| Sighting {
            member: member.clone(),
            token: life.token.clone(),
            state: match life.ended {
                Some(at) if at <= then => State::Ended { why: "killed".to_owned() },
                _ => State::Running,
            },
            life: 0,
        });
        Ok(seen.collect())
    }

    async fn stop(&self, members: &[MemberId]) -> Result<(), EngineError> {
        let mut world = self.world();
        world.stops += 1;
        let is_lost = world.stops == 1;
        for member in members {
            if let Some(life) = world.lives.get_mut(member).filter(|life| !is_lost && life.ended.is_none()) {
                life.ended = Some(Instant::now());
            }
        }
        // Nothing of it was done, and nobody is told so.
        Ok(())
    }
}
