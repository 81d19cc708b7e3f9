//! A fleet over an engine that does everything wrong that an engine may: it throttles, refuses, starts a part, loses the
//! answer after it has started, lists what was so a while ago, and forgets who has ended. Members die, are begun anew,
//! and coordinators are killed. All of it in virtual time, from a seed.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use forebay_jobs::id::{Epoch, MemberId, WorkerId};
use proptest::prelude::*;
use tokio::time::Instant;

use super::{
    FleetEvent,
    agenda::{Agenda, Done, Errand},
    calls::Earlier,
    engine::{Call, Class, EngineError, Limits, Sighting, Started, State, Tag, Token},
    members::Members,
};

const LIMITS: Limits = Limits {
    batch: 4,
    pause: Duration::from_millis(200),
    settle: Duration::from_secs(4),
    poll: (Duration::from_secs(1), Duration::from_secs(15)),
    call: Duration::from_secs(60),
};
/// What is listed was so at most so long ago. With what a call takes it is less than what settles.
const LAG: u64 = 2_500;
const CALL: u64 = 700;
/// Nothing goes wrong any more from then on.
const CALM: Duration = Duration::from_secs(600);
const END: Duration = Duration::from_secs(1_500);

#[derive(Debug)]
struct Life {
    token: Token,
    number: u32,
    born: Instant,
    works: Instant,
    ends: Option<Instant>,
    told_to_stop: bool,
}

enum Event {
    Do(Errand, u32),
    Reply(Done, u32),
    Hello(MemberId, u32),
    Lost(WorkerId),
    Chaos,
}

struct World {
    rng: fastrand::Rng,
    now: Instant,
    began: Instant,
    tag: Tag,
    epoch: u32,
    events: BTreeMap<(Instant, u64), Event>,
    number: u64,
    members: BTreeMap<MemberId, Life>,
    started: BTreeMap<Token, Vec<MemberId>>,
    /// What is durable: calls, and their answers.
    called: BTreeMap<Token, u32>,
    answered: BTreeMap<Token, Vec<MemberId>>,
    /// Workers that said hello to this coordinator and were not lost.
    here: BTreeSet<WorkerId>,
    wanted: u32,
    most: u32,
    agenda: Agenda,
    failed: Option<String>,
    is_stormy: bool,
    last_start: Instant,
}

fn millis(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

impl World {
    fn new(seed: u64) -> Self {
        let (now, tag) = (Instant::now(), Tag::of("v", &"r".parse().unwrap()));
        let members = Members::new(tag.clone(), Epoch(1), LIMITS, Earlier::default(), now);
        let mut world = Self {
            rng: fastrand::Rng::with_seed(seed),
            now,
            began: now,
            tag,
            epoch: 1,
            events: BTreeMap::new(),
            number: 0,
            members: BTreeMap::new(),
            started: BTreeMap::new(),
            called: BTreeMap::new(),
            answered: BTreeMap::new(),
            here: BTreeSet::new(),
            wanted: 6,
            most: 6,
            agenda: Agenda::new(members, LIMITS, now),
            failed: None,
            is_stormy: true,
            last_start: now,
        };
        world.later(5_000, Event::Chaos);
        world
    }

    /// Within so many milliseconds.
    fn later(&mut self, within: u64, event: Event) {
        let at = self.now + millis(self.rng.u64(0..=within));
        self.at(at, event);
    }

    fn at(&mut self, at: Instant, event: Event) {
        self.number += 1;
        self.events.insert((at, self.number), event);
    }

    fn chance(&mut self, percent: u32) -> bool {
        self.is_stormy && self.rng.u32(0..100) < percent
    }

    fn run_until(&mut self, end: Instant, mut done: impl FnMut(&Self) -> bool) {
        while !done(self) {
            self.drive();
            let due = self.agenda.due_at(self.now).map(|at| (at.max(self.now), u64::MAX));
            let next = self.events.keys().next().copied();
            let Some((at, number)) = next.into_iter().chain(due).min() else { return };
            if at > end {
                self.now = end;
                return;
            }
            self.now = at;
            if let Some(event) = self.events.remove(&(at, number)) {
                self.happens(event);
            }
            self.check();
        }
    }

    /// What the driver does each time round.
    fn drive(&mut self) {
        let adopted = self.here.iter().filter(|worker| !self.agenda.members.has(worker)).count();
        self.agenda.members.want(self.wanted.saturating_sub(u32::try_from(adopted).unwrap()));
        let nonce = self.rng.u32(..);
        for errand in self.agenda.begin(nonce, self.now) {
            match &errand {
                Errand::Start(call) => drop(self.called.insert(call.token.clone(), call.count)),
                Errand::Stop(members) => members.iter().for_each(|member| {
                    self.members.get_mut(member).unwrap().told_to_stop = true;
                }),
                Errand::List(_) => {}
            }
            if matches!(errand, Errand::List(_)) {
                let (begun, epoch) = (self.now, self.epoch);
                let answer = if self.chance(10) { Err(lost()) } else { Ok(self.list()) };
                self.later(CALL, Event::Reply(Done::Listed(begun, answer), epoch));
            } else {
                let epoch = self.epoch;
                self.later(CALL, Event::Do(errand, epoch));
            }
        }
        while let Some(event) = self.agenda.members.event() {
            if let FleetEvent::Ended { worker } = event {
                self.here.remove(&worker);
            }
        }
        if let Some((why, _)) = self.agenda.members.take_failure() {
            self.failed.get_or_insert(why);
        }
    }

    fn list(&mut self) -> Vec<Sighting> {
        let then = self.now - millis(self.rng.u64(0..=LAG));
        let mut list = Vec::new();
        for (member, life) in &self.members {
            let state = match life.ends.filter(|ends| *ends <= then) {
                // Half of them are forgotten at once.
                Some(_) if life.token.as_str().ends_with(|last: char| last < '8') => continue,
                Some(_) => State::Ended { why: "dead".to_owned() },
                None if life.works <= then => State::Running,
                None => State::Queued,
            };
            if life.born <= then {
                list.push(Sighting { member: member.clone(), token: life.token.clone(), state, life: life.number });
            }
        }
        list
    }

    fn happens(&mut self, event: Event) {
        match event {
            Event::Do(Errand::Start(call), epoch) => {
                let answer = self.start(&call);
                self.later(CALL, Event::Reply(Done::Started(call, answer), epoch));
            }
            Event::Do(Errand::Stop(members), epoch) => {
                let answer = if self.chance(20) { Err(lost()) } else { Ok(()) };
                for member in members {
                    if answer.is_ok() || self.rng.bool() {
                        let at = self.now + millis(self.rng.u64(0..=5_000));
                        self.ends(&member, at);
                    }
                }
                self.later(CALL, Event::Reply(Done::Stopped(answer), epoch));
            }
            Event::Do(Errand::List(_), _) => unreachable!("it is answered at once"),
            // Its coordinator is dead.
            Event::Reply(_, epoch) if epoch != self.epoch => {}
            Event::Reply(done, _) => {
                if let Done::Started(call, Ok(started)) = &done {
                    self.answered.insert(call.token.clone(), started.members.clone());
                }
                self.agenda.done(done, self.now);
            }
            Event::Hello(member, number) => {
                let life = &self.members[&member];
                if life.number == number && life.works <= self.now && life.ends.is_none_or(|ends| ends > self.now) {
                    let worker = WorkerId::of_member(&member, number).unwrap();
                    self.agenda.members.joined(&worker, self.now);
                    self.here.insert(worker);
                }
            }
            Event::Lost(worker) => {
                if self.here.remove(&worker) {
                    self.agenda.members.lost(&worker, self.now);
                }
            }
            Event::Chaos if self.is_stormy => self.chaos(),
            Event::Chaos => {}
        }
    }

    fn start(&mut self, call: &Call) -> Result<Started, EngineError> {
        if let Some(members) = self.started.get(&call.token) {
            return Ok(Started { members: members.clone(), refused: None });
        }
        let refused = |class| EngineError::new(class, "no");
        if self.chance(10) {
            return Err(refused(Class::Throttled));
        }
        if self.chance(10) {
            return Err(refused(Class::Capacity));
        }
        if self.chance(10) {
            return Err(lost());
        }
        let count = if self.chance(20) { self.rng.u32(0..call.count) } else { call.count };
        let mut members = Vec::new();
        for _ in 0..count {
            self.number += 1;
            let member: MemberId = format!("m-{}", self.number).parse().unwrap();
            let works = self.now + millis(self.rng.u64(0..20_000));
            let life =
                Life { token: call.token.clone(), number: 0, born: self.now, works, ends: None, told_to_stop: false };
            self.members.insert(member.clone(), life);
            // Some are too ill to say anything.
            if !self.chance(3) {
                self.at(works + millis(100), Event::Hello(member.clone(), 0));
            }
            members.push(member);
        }
        self.last_start = self.now;
        self.started.insert(call.token.clone(), members.clone());
        if self.chance(15) {
            return Err(lost());
        }
        Ok(Started { members, refused: (count < call.count).then(|| refused(Class::Capacity)) })
    }

    fn ends(&mut self, member: &MemberId, at: Instant) {
        let life = self.members.get_mut(member).unwrap();
        if life.ends.is_none_or(|ends| ends > at) {
            life.ends = Some(at);
            let worker = WorkerId::of_member(member, life.number).unwrap();
            let after = at + millis(self.rng.u64(0..30_000));
            self.at(after, Event::Lost(worker));
        }
    }

    fn alive(&self) -> Vec<MemberId> {
        let is_alive = |life: &Life| life.ends.is_none_or(|ends| ends > self.now);
        self.members.iter().filter(|(_, life)| is_alive(life)).map(|(member, _)| member.clone()).collect()
    }

    fn chaos(&mut self) {
        self.later(20_000, Event::Chaos);
        let alive = self.alive();
        let one = self.rng.usize(0..alive.len().max(1));
        let one = alive.get(one).cloned();
        match (self.rng.u32(0..10), one) {
            (0..=1, _) => {
                self.wanted = self.rng.u32(0..20);
                self.most = self.most.max(self.wanted);
            }
            (2..=5, Some(member)) => self.ends(&member, self.now),
            (6, Some(member)) if !self.members[&member].told_to_stop => {
                let works = self.now + millis(self.rng.u64(1_000..60_000));
                let life = self.members.get_mut(&member).unwrap();
                let old = WorkerId::of_member(&member, life.number).unwrap();
                (life.number, life.works) = (life.number + 1, works);
                let number = life.number;
                self.later(30_000, Event::Lost(old));
                self.at(works + millis(50), Event::Hello(member, number));
            }
            (7, _) => self.take_over(),
            _ => {}
        }
    }

    /// The coordinator is killed, and another one comes.
    fn take_over(&mut self) {
        self.epoch += 1;
        self.here.clear();
        let members =
            self.answered.iter().flat_map(|(token, members)| members.iter().map(|m| (m.clone(), token.clone())));
        let mut open = self.called.clone();
        open.retain(|token, _| !self.answered.contains_key(token));
        let earlier = Earlier { open, members: members.collect() };
        let members = Members::new(self.tag.clone(), Epoch(self.epoch), LIMITS, earlier, self.now);
        self.agenda = Agenda::new(members, LIMITS, self.now);
        self.failed = None;
        for member in self.alive() {
            let life = &self.members[&member];
            if life.works <= self.now {
                let number = life.number;
                self.later(3_000, Event::Hello(member, number));
            }
        }
    }

    /// There are never more than anybody has ever wanted, but for those that were told to end.
    fn check(&self) {
        let counted = self.alive().iter().filter(|member| !self.members[*member].told_to_stop).count();
        let at = self.now - self.began;
        assert!(counted <= self.most as usize, "{counted} members at {at:?}, and at most {} were wanted", self.most);
    }
}

fn lost() -> EngineError {
    EngineError::new(Class::Unknown, "no answer")
}

fn goes_well(seed: u64) {
    let mut world = World::new(seed);
    world.run_until(world.began + CALM, |_| false);
    world.is_stormy = false;
    world.wanted = world.most;
    if world.failed.is_some() {
        // So many were killed before they could say hello; a resumed run begins anew.
        world.take_over();
    }
    world.run_until(world.began + END, |_| false);
    assert_eq!(world.failed, None);
    assert_eq!(world.alive().len(), world.wanted as usize, "at the end there are as many as are wanted");
    assert!(world.now - world.last_start > Duration::from_secs(60), "and no more are started");
    world.is_stormy = true;
    // Nobody is killed behind its back any more, but calls go wrong.
    world.events.retain(|_, event| !matches!(event, Event::Chaos));
    world.wanted = 0;
    world.here.clear();
    world.agenda.close(world.now);
    let closing = world.now;
    world.run_until(closing + Duration::from_secs(180), |world| world.agenda.is_closed());
    assert!(world.agenda.is_closed(), "stopping comes to its end");
    assert_eq!(world.alive(), Vec::<MemberId>::new(), "nobody is left");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_engine_does_wrong_as_many_exist_as_are_wanted_and_none_in_the_end(seed in any::<u64>()) {
        goes_well(seed);
    }
}
